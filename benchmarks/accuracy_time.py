r"""Time of training, of each method over the plain base's, for the table of accuracy.

    KERAS_BACKEND=tensorflow python benchmarks/accuracy_time.py --preset=cpu

trains all methods interleaved in one process, so that what else the machine does slows
them alike, with the batches of the accuracy benchmark. Writes
`<results_dir>/<preset>_time.json`, which `accuracy.py --table` shows: medians over
rounds, by the processor's time or, on an accelerator, by the clock. The time of `kd`
holds that of its teacher, which is trained for as many steps; that of the mixed regime
is half the bare base's, half the wrapper's.
"""

import pathlib

import keras
from absl import app, flags

import keras_selfdistill as ksd
from accuracy_grid.methods import METHODS, Cell, methods_of
from accuracy_grid.presets import PRESETS, named_preset
from accuracy_grid.step_time import ratios
from accuracy_grid.training import read_data
from shared.environment import origin
from shared.run_folder import write_json

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command line, which a test that imports this file does not want."""
    flags.DEFINE_enum("preset", "cpu", list(PRESETS), "Size of the experiment.")
    flags.DEFINE_enum(
        "model", None, list(ksd.networks.NETWORKS), "Instead of the preset's network."
    )
    flags.DEFINE_integer("rounds", 7, "Timed rounds.", lower_bound=1)
    flags.DEFINE_integer("steps", 3, "Steps of each method a round.", lower_bound=1)
    flags.DEFINE_string(
        "data_dir",
        "~/tensorflow_datasets",
        "Folder with CIFAR-100, as in examples/train_cifar100.py.",
    )
    flags.DEFINE_string("results_dir", "benchmarks/results", "Folder of the results.")


def main(argv: list[str]) -> None:
    """Times all methods, and writes the file."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1:]}; expected flags only: --name=value.")
    name, preset = named_preset(FLAGS.preset, FLAGS.model)
    keras.config.set_dtype_policy(preset.dtype)
    cells = [
        Cell(preset=preset, method=method, seed=0, fields=METHODS[method].fields)
        for method in methods_of(preset)
    ]
    train = next(read_data(preset, FLAGS.data_dir, select=False))
    found = ratios(cells, train, rounds=FLAGS.rounds, steps=FLAGS.steps)
    content = {
        "time_over_plain": found,
        "settings": {
            "preset": FLAGS.preset,
            "model": preset.model,
            "rounds": FLAGS.rounds,
            "steps": FLAGS.steps,
            "backend": keras.backend.backend(),
        },
        **origin(),
    }
    path = pathlib.Path(FLAGS.results_dir).expanduser() / f"{name}_time.json"
    write_json(path, content)
    for method, value in found.items():
        print(f"{method:28} {'{median:.2f} ({min:.2f}–{max:.2f})'.format(**value)}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
