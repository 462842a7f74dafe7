r"""Writes a folder of images as shards, which train_images.py reads by Grain.

    python examples/write_shards.py --data_dir=FOLDER --output_dir=shards
    python examples/train_images.py --data_dir=shards

FOLDER has a sub-folder of images for each class. All images are read once; files that
are broken and classes that are too small are named. 30% of each class are held out, as
train_images.py does it with a folder, for its three tests.

Writes to `--output_dir`, which is complete or not there: files of the ArrayRecord
format with the bytes of image files, `shards.json` with the classes and labels, and
`split.json` with the images' paths, in the order of the shards.
"""

import shared.quiet  # noqa: F401  # isort: skip  (first: it imports Keras)

import pathlib
import shutil
import sys

from absl import app, flags, logging

from images import shards, split
from shared import script

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder with a sub-folder of images for each class.",
        required=True,
    )
    flags.DEFINE_string(
        "output_dir", None, "Folder to write, a new one.", required=True
    )
    flags.DEFINE_integer("images_per_shard", 10_000, "Images in a file, at most.", 1)
    flags.DEFINE_float("held_out", 0.3, "Share of each class for the three tests.")
    flags.DEFINE_integer("seed", 0, "Seed of the split.", 0)


def main(argv: list[str]) -> None:
    """Checks the images, draws the split, and writes the shards."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1:]}; expected flags only: --name=value.")
    if not 0 < FLAGS.held_out < 1:
        raise app.UsageError(
            f"Received --held_out={FLAGS.held_out}; expected a number between 0 and 1."
        )
    shards.check_installed()
    sys.stdout.reconfigure(errors="backslashreplace")
    output_dir = pathlib.Path(FLAGS.output_dir).expanduser().absolute()
    if output_dir.exists():
        raise app.UsageError(
            f"Received --output_dir={output_dir}, which is there; expected a new "
            "folder. Remove it, or choose another."
        )
    unfinished = output_dir.with_name(f".unfinished_{output_dir.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    images = split.load_or_make(
        pathlib.Path(FLAGS.data_dir).expanduser(),
        unfinished / "split.json",
        share=FLAGS.held_out,
        seed=FLAGS.seed,
    )
    shards.write(unfinished, images, FLAGS.images_per_shard)
    unfinished.rename(output_dir)
    print(f"Wrote {output_dir}")


if __name__ == "__main__":
    define_flags()
    FLAGS.set_default("verbosity", logging.INFO)
    script.run(main)
