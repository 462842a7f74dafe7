"""Which images are trained on and which are held out: drawn once, then kept."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import app
from PIL import Image

from images import folder
from shared import run_folder

# Held out for: when to stop and which exit to choose; thresholds of early exit, whose
# guarantee needs images that nothing else was chosen by; and the numbers that are told.
HELD_OUT = ("validation", "calibration", "test")
PARTS = ("train", *HELD_OUT)


class Part(NamedTuple):
    """Images of one part: their paths below the folder, and class indices."""

    root: pathlib.Path
    paths: tuple[str, ...]
    labels: np.ndarray

    def read(self, index: int) -> Image.Image:
        """Returns an image as RGB."""
        return folder.read(self.root / self.paths[index])


class Split(NamedTuple):
    """The classes' names, and the four disjoint parts."""

    classes: tuple[str, ...]
    train: Part
    validation: Part
    calibration: Part
    test: Part


def load_or_make(
    root: pathlib.Path, kept: pathlib.Path, *, share: float, seed: int
) -> Split:
    """Returns the split of a file, or draws one, which it writes there.

    Args:
        root: Folder of images.
        kept: The file.
        share: Share of each class that is held out, in three equal parts.
        seed: Seed of the draw.

    Raises:
        UsageError: Images are broken, missing or changed, or classes too small.
    """
    listing = folder.find_images(root)
    if listing.ignored:
        print(
            f"{len(listing.ignored)} files are ignored, which are no images by their "
            f"names; the first: {folder.shown(listing.ignored[0])}"
        )
    if not kept.exists():
        drawn = _draw(listing.paths, share, np.random.default_rng(seed))
        _check_parts(drawn)
        sizes = folder.check(root, [path for each in listing.paths for path in each])
        run_folder.write_json(
            kept,
            {
                "classes": listing.classes,
                "parts": {
                    part: [
                        {path: sizes[path] for path in paths} for paths in drawn[part]
                    ]
                    for part in PARTS
                },
            },
        )
    return _read(root, kept, listing)


def _draw(
    by_class: Sequence[Sequence[str]], share: float, rng: np.random.Generator
) -> dict[str, list[list[str]]]:
    """Returns the paths of each part, by class.

    Of every class, at least one image is held out and one is not. The held-out ones go
    to whichever part has the fewest so far, so small classes do not all miss the same.
    """
    drawn: dict[str, list[list[str]]] = {part: [] for part in PARTS}
    totals = dict.fromkeys(HELD_OUT, 0)
    for paths in by_class:
        order = [paths[index] for index in rng.permutation(len(paths))]
        count = min(max(1, round(share * len(paths))), len(paths) - 1)
        own: dict[str, list[str]] = {part: [] for part in HELD_OUT}
        for path in order[:count]:
            part = min(HELD_OUT, key=lambda each: (len(own[each]), totals[each]))
            own[part].append(path)
            totals[part] += 1
        for part, chosen in {**own, "train": order[count:]}.items():
            drawn[part].append(sorted(chosen))
    return drawn


def _check_parts(drawn: Mapping[str, Sequence[Sequence[str]]]) -> None:
    counts = {part: sum(map(len, drawn[part])) for part in PARTS}
    if min(counts.values()) < 2:
        raise app.UsageError(
            f"Received too few images: {counts}; expected at least two in each part. "
            "Add images, or raise --held_out."
        )


def _read(root: pathlib.Path, kept: pathlib.Path, listing: folder.Listing) -> Split:
    content = json.loads(kept.read_text(encoding="utf-8"))
    classes = tuple(content["classes"])
    if classes != listing.classes:
        raise app.UsageError(
            f"Received the classes {_names(listing.classes)} in --data_dir; expected "
            f"{_names(classes)}, of which {kept} holds the split. Put the folder back "
            "as it was, or choose another --output_dir."
        )
    parts, sizes = {}, {}
    for part in PARTS:
        by_class = content["parts"][part]
        for each in by_class:
            sizes.update(each)
        labels = np.repeat(np.arange(len(classes)), list(map(len, by_class)))
        paths = tuple(path for each in by_class for path in each)
        parts[part] = Part(root, paths, labels.astype("int32"))
    _refuse_changes(root, kept, sizes)
    new = {path for each in listing.paths for path in each} - sizes.keys()
    if new:
        print(
            f"{len(new)} images are not used, because they came after the split was "
            f"drawn; the first: {folder.shown(min(new))}. To use them, choose another "
            "--output_dir."
        )
    return Split(classes, **parts)


def _names(classes: Sequence[str]) -> str:
    return ", ".join(map(folder.shown, classes))


def _refuse_changes(
    root: pathlib.Path, kept: pathlib.Path, sizes: Mapping[str, int]
) -> None:
    changed = [
        folder.shown(path)
        for path, size in sizes.items()
        if not (root / path).is_file() or (root / path).stat().st_size != size
    ]
    if changed:
        raise app.UsageError(
            f"Received {len(changed)} images that are missing or changed since {kept} "
            "was made; expected all as they were. Put them back, or choose another "
            f"--output_dir:\n{folder.listed(changed)}"
        )
