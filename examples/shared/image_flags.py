"""Flags of programs that learn digits or CIFAR-100.

Without Keras, which would choose its backend before `train_distributed.py` does.
"""

from collections.abc import Sequence

from absl import flags

DATA_SETS = ("digits", "cifar100")

flags.disclaim_key_flags()  # They are the program's own.


def define(default: str = "digits") -> None:
    """Defines `--data`, `--data_dir` and `--train_examples`, as `image_sets.load` does.

    Args:
        default: One of `DATA_SETS`.
    """
    flags.DEFINE_enum("data", default, DATA_SETS, "Images to learn.")
    flags.DEFINE_string(
        "data_dir",
        "~/tensorflow_datasets",
        "Folder with CIFAR-100, as of train_cifar100.py.",
    )
    flags.DEFINE_integer(
        "train_examples",
        None,
        "Training images, the first ones; of CIFAR-100 a multiple of 100. Default: "
        "all.",
        lower_bound=1,
    )


def define_network(names: Sequence[str]) -> None:
    """Defines `--model` and `--width_multiplier`, as `image_sets.build_base` does.

    Args:
        names: Names of the networks for CIFAR-100.
    """
    flags.DEFINE_enum(
        "model",
        "resnet18",
        names,
        "Network for --data=cifar100; digits have the quickstart's.",
    )
    flags.DEFINE_float(
        "width_multiplier",
        1.0,
        "Factor on that network's layer widths.",
        lower_bound=0.0,
    )


def define_training(recipes: Sequence[str], augmentations: Sequence[str]) -> None:
    """Defines how long and how networks are trained, as `image_sets.train` does.

    Args:
        recipes: Names of the recipes to choose from.
        augmentations: Names of those that leave labels as they are.
    """
    flags.DEFINE_integer(
        "epochs",
        30,
        "Passes over the training images in each training.",
        lower_bound=1,
    )
    flags.DEFINE_integer("batch_size", 64, "Images per step.", lower_bound=1)
    flags.DEFINE_float(
        "learning_rate",
        0.05,
        "Rate at the start of a training; it falls to 0.",
        lower_bound=0.0,
    )
    flags.DEFINE_float(
        "weight_decay", 5e-4, "L2 decay, as PyTorch counts it.", lower_bound=0.0
    )
    flags.DEFINE_enum("recipe", "byot", recipes, "How the exits learn.")
    flags.DEFINE_list(
        "augmentation",
        None,
        "Of the training images of --data=cifar100, separated by commas: some of "
        f"{', '.join(augmentations)}. Default: standard, crop and mirror.",
    )
