"""A folder of images, one sub-folder a class: what is in it, and whether it is whole.

Nothing in the folder is changed. What is wrong is told with the files' names, before
anything is written or trained.
"""

import collections
import concurrent.futures
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from absl import app, logging
from PIL import Image, ImageOps

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SHOWN = 20  # Names in one message.
# Of these, Pillow keeps every pixel when it makes RGB of them.
_PLAIN = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV")
_TRANSPARENT = ("LA", "PA", "RGBA", "La", "RGBa")
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N")


class Listing(NamedTuple):
    """The images of a folder, by class.

    Args:
        classes: Names of the classes, sorted, as Keras numbers them.
        paths: For each class, its images' paths below the folder, sorted, with `/`.
        ignored: Paths of files that are no images, by their names.
    """

    classes: tuple[str, ...]
    paths: tuple[tuple[str, ...], ...]
    ignored: tuple[str, ...]


def find_images(folder: pathlib.Path) -> Listing:
    """Lists the images in the sub-folders of a folder, and in their sub-folders.

    Raises:
        UsageError: There is no folder, there are fewer than two classes, or a class has
            fewer than two images.
    """
    if not folder.is_dir():
        raise app.UsageError(
            f"Received --data_dir={shown(folder)}, which is no folder; expected one "
            "with a sub-folder of images for each class."
        )
    entries = sorted(folder.iterdir(), key=lambda path: path.name)
    inside = [each for each in entries if each.is_dir() and each.name[0] != "."]
    if len(inside) < 2:
        raise app.UsageError(
            f"Received --data_dir={shown(folder)} with {len(inside)} sub-folders; "
            "expected at least two, one for each class, whose names are the classes'. "
            "Move the images of each class into a folder of its own."
        )
    found, ignored = [], [each.name for each in entries if each.is_file()]
    for each in inside:
        files = _files_below(each, folder)
        images = [name for name in files if name.lower().endswith(SUFFIXES)]
        found.append(tuple(images))
        ignored += [name for name in files if not name.lower().endswith(SUFFIXES)]
    listing = Listing(
        tuple(each.name for each in inside),
        tuple(found),
        tuple(name for name in ignored if not _is_hidden(name)),
    )
    _refuse_small_classes(listing)
    return listing


def _files_below(folder: pathlib.Path, root: pathlib.Path) -> list[str]:
    found = []
    for place, _, names in os.walk(folder):
        below = pathlib.Path(place).relative_to(root)
        found += [(below / name).as_posix() for name in names if name[0] != "."]
    return sorted(found)


def _is_hidden(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith(".")


def _refuse_small_classes(listing: Listing) -> None:
    few = [
        f"{shown(name)}: {f'only {shown(paths[0])}' if paths else 'no image'}"
        for name, paths in zip(listing.classes, listing.paths, strict=True)
        if len(paths) < 2
    ]
    if few:
        raise app.UsageError(
            f"Received {len(few)} classes with fewer than two images; expected at "
            "least two, one to train and one to test on. Add images to these folders, "
            f"or move them out of --data_dir:\n{listed(few)}"
        )


def shown(path: object) -> str:
    """Returns a path as any output can show it, also where it is no Unicode."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def listed(lines: Sequence[str]) -> str:
    """Returns lines as one text, the first ones of many."""
    rest = len(lines) - SHOWN
    return "\n".join([*lines[:SHOWN], *([f"and {rest} more"] if rest > 0 else [])])


def read(path: pathlib.Path | BinaryIO) -> Image.Image:
    """Reads an image as RGB, upright, and what is transparent on white.

    Of several frames, the first. 16 bits become 8.

    Raises:
        ValueError: Its pixels are no 8 or 16 bits.
        OSError: It is broken; Pillow raises other errors, too.
    """
    with Image.open(path) as image:
        return _as_rgb(ImageOps.exif_transpose(image))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP:
        image = Image.fromarray((np.asarray(image, "uint32") // 257).astype("uint8"))
    elif image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    elif image.mode not in _PLAIN:
        raise ValueError(f"pixels of mode {image.mode}: save it with 8 bits a channel")
    return image.convert("RGB")


def check(folder: pathlib.Path, paths: Sequence[str]) -> Mapping[str, int]:
    """Reads all images once, and tells which are not RGB.

    Args:
        folder: The folder.
        paths: Paths of images below it.

    Returns:
        Each image's size in bytes.

    Raises:
        UsageError: Some images cannot be read; the message has their names.
    """
    logging.info("Reading all %d images once, to find broken ones.", len(paths))
    workers = min(8, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda path: _look_at(folder / path), paths))
    broken = [
        f"{shown(path)}: {shown(problem)}"
        for path, (_, problem) in zip(paths, found, strict=True)
        if problem
    ]
    if broken:
        raise app.UsageError(
            f"Received {len(broken)} of {len(paths)} images that cannot be read; "
            "expected whole ones. Repair them, or move them out of --data_dir:\n"
            f"{listed(broken)}"
        )
    _tell_conversions(paths, [mode for mode, _ in found])
    return {path: (folder / path).stat().st_size for path in paths}


def _look_at(path: pathlib.Path) -> tuple[str, str]:
    """Returns an image's mode, and what is wrong with it, if anything is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of odd metadata, which pixels have not.
            with Image.open(path) as image:
                mode = image.mode
            read(path)
    # Decoders raise what they like of a broken file: OSError, SyntaxError, ...
    except Exception as error:
        return "", str(error) or type(error).__name__
    return mode, ""


def _tell_conversions(paths: Sequence[str], modes: Sequence[str]) -> None:
    by_mode = collections.defaultdict(list)
    for path, mode in zip(paths, modes, strict=True):
        by_mode[mode].append(path)
    by_mode.pop("RGB", None)
    for mode, names in sorted(by_mode.items()):
        ground = ", on white" if mode in _TRANSPARENT else ""
        print(
            f"{len(names)} images are {mode}, not RGB, and are converted{ground}; the "
            f"first: {shown(names[0])}"
        )
