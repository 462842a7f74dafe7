"""Images of TensorFlow Datasets as a folder, which all else reads."""

import importlib.util
import pathlib
import shutil

import keras
from absl import app

_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}


def write_folder(name: str, data_dir: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the training images of a data set into a folder, unless it is there.

    Each image's file is as it is stored, in a sub-folder of its class' name. The
    folder is complete or not there.

    Args:
        name: Name of a data set with features `image` and `label`.
        data_dir: Folder of TensorFlow Datasets, which downloads there what is missing.
        folder: The folder to write.

    Raises:
        UsageError: There is no such data set, or no means to read it.
    """
    if folder.exists():
        return
    for module in ("tensorflow", "tensorflow_datasets"):
        if importlib.util.find_spec(module) is None:
            raise app.UsageError(
                f"Received --dataset={name}, but {module} is not installed; expected "
                "tensorflow and tensorflow_datasets. Install them, or pass --data_dir."
            )
    import tensorflow as tf
    import tensorflow_datasets as tfds

    if keras.backend.backend() != "tensorflow":
        # TensorFlow would take all of the memory that JAX or PyTorch needs.
        tf.config.set_visible_devices([], "GPU")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        builder.download_and_prepare()
    except Exception as error:  # no such name, no connection, no space, ...
        raise app.UsageError(
            f"Received --dataset={name} --data_dir={data_dir}; expected a data set of "
            "TensorFlow Datasets that is there or can be downloaded: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    features = builder.info.features
    if not {"image", "label"} <= set(features or ()):
        raise app.UsageError(
            f"Received --dataset={name} with the features {sorted(features or ())}; "
            "expected `image` and `label`."
        )
    unfinished = folder.with_name(f".unfinished_{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    for class_name in features["label"].names:
        (unfinished / class_name).mkdir(parents=True)
    stored = builder.as_dataset(
        split="train",
        shuffle_files=False,
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    for number, example in enumerate(tfds.as_numpy(stored)):
        content = bytes(example["image"])
        suffix = next(
            (end for start, end in _SUFFIXES.items() if content.startswith(start)),
            ".png",
        )
        label = features["label"].int2str(int(example["label"]))
        (unfinished / label / f"{number:07d}{suffix}").write_bytes(content)
    unfinished.rename(folder)
