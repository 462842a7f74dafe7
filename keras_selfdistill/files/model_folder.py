"""Models as folders of a config and weights: on disk, and on model hubs."""

import os
import pathlib
import shutil
import zipfile
from collections.abc import Iterator, Sequence

from keras_selfdistill.files.regular_files import open_regular
from keras_selfdistill.utils.optional_packages import optional_module
from keras_selfdistill.utils.type_aliases import PathLike

MEMBERS = ("config.json", "metadata.json", "model.weights.h5")
ASSETS = "assets"
_HUGGING_FACE, _KAGGLE = "hf://", "kaggle://"


def local_path(path: PathLike) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Return a path; what it names on a hub is downloaded to the hub's cache first.

    In the cache of Hugging Face the files of a folder are links to another folder,
    which is returned, too. In other folders links may not lead out.

    Args:
        path: Path, or `"hf://owner/name"`, or `"kaggle://owner/name/keras/variation"`
            with or without `"/version"`.

    Raises:
        ImportError: The package of the hub is not installed.
        Exception: Any error of that package.
    """
    name = str(path)
    if name.startswith(_HUGGING_FACE):
        hub = optional_module("huggingface_hub", f"The path {name!r}")
        wanted = [*MEMBERS, f"{ASSETS}/*"]
        name = name.removeprefix(_HUGGING_FACE)
        folder = pathlib.Path(hub.snapshot_download(name, allow_patterns=wanted))
        return folder, folder.resolve().parents[1] / "blobs"
    if name.startswith(_KAGGLE):
        hub = optional_module("kagglehub", f"The path {name!r}")
        return pathlib.Path(hub.model_download(name.removeprefix(_KAGGLE))), None
    return pathlib.Path(path), None


def pack(
    folder: pathlib.Path, linked: pathlib.Path | None, archive: pathlib.Path
) -> None:
    """Write the model in a folder to a `.keras` file; other files are left out.

    Args:
        folder: Path of the folder.
        linked: Another folder that links in it may lead to, or `None`.
        archive: Path of the file, which does not exist.

    Raises:
        ValueError: A file is missing, or a link leads elsewhere or to a folder.
        OSError: A file is not regular or cannot be read, or there is no space.
    """
    missing = [name for name in MEMBERS if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"the folder has no {', '.join(missing)}. Write it by "
            "keras.saving.save_model(model, folder, zipped=False)."
        )
    roots = [each.resolve() for each in (folder, linked) if each is not None]
    with zipfile.ZipFile(archive, "x") as target:
        for path in _files(folder):
            name = path.relative_to(folder).as_posix()
            source = _inside(path, roots)
            with (
                open_regular(source, follow_links=False) as file,
                target.open(name, "w", force_zip64=True) as member,
            ):
                shutil.copyfileobj(file, member, 1 << 20)


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    yield from (folder / name for name in MEMBERS)
    for place, folders, names in os.walk(folder / ASSETS):
        for name in folders:
            if os.path.islink(os.path.join(place, name)):
                raise ValueError(f"{name!r} is a link to a folder.")
        yield from (pathlib.Path(place) / name for name in names)


def _inside(path: pathlib.Path, roots: Sequence[pathlib.Path]) -> pathlib.Path:
    target = path.resolve()
    if not any(map(target.is_relative_to, roots)):
        raise ValueError(f"{path.name!r} is a link that leads out of the folder.")
    return target
