r"""Makes an early exit smaller still: int8 weights, or most weights zero.

    python examples/compress.py
    python examples/compress.py --data=cifar100 --data_dir=~/tensorflow_datasets \
        --wrapper=runs/byot/checkpoint.keras

Takes a trained wrapper (a checkpoint of `train_cifar100.py`, the model that
`quickstart.py` saved, or, without `--wrapper`, one trained on digits here) and compares
on test images:

- the final exit, which is the whole base;
- one early exit, by default `exit_2`;
- that exit quantised by Keras' own `model.quantize("int8")`, which needs no data and no
  training. Keras 3.15 quantises dense and embedding layers alone: convolutions stay in
  float32. The output says which share of the parameters became int8;
- that exit fine-tuned on labels, nothing else, for as long as the pruned one: what
  pruning costs is the distance to this row;
- that exit pruned by magnitude (Han et al. 2015): of all kernels together, the smallest
  weights become zero, and the rest is fine-tuned. Biases and batch normalisation are
  not pruned.

Sizes are those of the `.keras` file, and of that file after gzip. A file of floats does
not shrink by zeros, but gzip stores them in next to nothing: the second number is what
pruning saves in a download. Nor does a zero make a dense multiplication faster, so
expect the pruned exit's latency to be that of the unpruned one. Latencies are medians,
of interleaved calls, so that a busy machine disturbs all models alike; those of one
batch also contain what Keras spends on any call of `predict_on_batch`.

Everything is done to copies: the wrapper stays as it is. Writes to `--output_dir` one
`.keras` file a row and `compress.json`.
"""

import shared.quiet  # noqa: F401  # isort: skip  (first: it imports Keras)

import gzip
import math
import pathlib
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags, logging
from keras import ops

import keras_selfdistill as ksd
from shared import environment, image_flags, image_sets, run_folder, script

FLAGS = flags.FLAGS
PLACES = ("data_dir", "output_dir")  # They decide no result.


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string(
        "wrapper",
        None,
        "Saved SelfDistiller, e.g. the checkpoint.keras of train_cifar100.py or the "
        "selfdistilled.keras of quickstart.py. Default: one trained here on digits.",
    )
    image_flags.define()
    flags.DEFINE_string("exit", "exit_2", "Exit to compress.")
    flags.DEFINE_float(
        "sparsity",
        0.7,
        "Share of the kernels' weights that become zero.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_integer(
        "fine_tune_epochs",
        30,
        "Passes over the training images with the zeros kept; by default as many as in "
        "the quickstart, at its learning rate.",
        lower_bound=0,
    )
    flags.DEFINE_float(
        "learning_rate",
        2e-3,
        "Adam's at the start of fine-tuning; it falls to 0.",
        lower_bound=0.0,
    )
    flags.DEFINE_integer(
        "epochs",
        30,
        "Passes over the digits to train a wrapper; not read with --wrapper.",
        lower_bound=1,
    )
    flags.DEFINE_integer("batch_size", 64, "Images per training step.", lower_bound=1)
    flags.DEFINE_integer(
        "latency_batch",
        32,
        "Images per call of the second latency; the first is of a single image.",
        lower_bound=1,
    )
    flags.DEFINE_integer("repeats", 50, "Timed calls per latency.", lower_bound=1)
    flags.DEFINE_integer(
        "seed",
        0,
        "Seed of the order of batches and of digits' split into training and test: "
        "take that with which the wrapper was trained, or it has seen the test images.",
        lower_bound=0,
    )
    flags.DEFINE_string("output_dir", "runs/compress", "Folder of this run's files.")


class KeepZeros(keras.constraints.Constraint):
    """Keeps those weights at zero that were zero to begin with.

    Optimizers apply constraints as the last part of a step, inside the compiled step
    and on every backend, so neither momentum nor weight decay brings a weight back.

    Args:
        kept: Array of the weight's shape: whether each weight may differ from zero.
    """

    def __init__(self, kept: np.ndarray) -> None:
        self._kept = kept

    def __call__(self, w: Any) -> Any:
        """Returns the weight with zeros where they have to be."""
        w = ops.convert_to_tensor(w)  # a variable, of which JAX' where knows nothing
        return ops.where(self._kept, w, ops.zeros_like(w))


def copy_of(model: keras.Model) -> keras.Model:
    """Returns an uncompiled copy, without constraints, that shares no weight."""
    # keras.models.clone_model would compile the copy, and an optimizer's state would
    # then be saved with it.
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


def quantised(model: keras.Model) -> keras.Model:
    """Returns a copy quantised to int8 by Keras."""
    copy = copy_of(model)
    with warnings.catch_warnings():
        # Of every layer that stays in float32; the share of int8 says it in one line.
        warnings.filterwarnings("ignore", ".*does not have a `quantize` method")
        copy.quantize("int8")
    return copy


def int8_share(model: keras.Model, original: keras.Model) -> float:
    """Returns the share of the original's parameters that a quantised copy has in int8.

    The scales, which quantisation adds, are no part of it.
    """
    int8 = [each.shape for each in model.variables if each.dtype == "int8"]
    return sum(map(math.prod, int8)) / original.count_params()


def kernels(model: keras.Model) -> list[keras.Variable]:
    """Returns the weights that pruning looks at: no biases, no batch normalisation."""
    # Separable convolutions have a depthwise_kernel and a pointwise_kernel.
    return [weight for weight in model.weights if weight.name.endswith("kernel")]


def magnitude_masks(weights: Sequence[np.ndarray], sparsity: float) -> list[np.ndarray]:
    """Returns which weights stay when the smallest of all arrays together go.

    Args:
        weights: Arrays of any shapes.
        sparsity: Share of weights to drop. Exactly the nearest whole number of weights
            go, also where several are of one size.

    Returns:
        Arrays of bool of the same shapes, true where a weight stays.
    """
    sizes = [weight.size for weight in weights]
    magnitudes = np.concatenate([np.abs(weight).ravel() for weight in weights])
    kept = np.ones(len(magnitudes), bool)
    dropped = round(sparsity * len(magnitudes))
    kept[np.argsort(magnitudes, kind="stable")[:dropped]] = False
    parts = np.split(kept, np.cumsum(sizes)[:-1])
    return [part.reshape(each.shape) for part, each in zip(parts, weights, strict=True)]


def prune(model: keras.Model, sparsity: float) -> None:
    """Sets the smallest weights of all kernels to zero, for good."""
    weights = kernels(model)
    arrays = [ops.convert_to_numpy(weight) for weight in weights]
    masks = magnitude_masks(arrays, sparsity)
    for weight, array, mask in zip(weights, arrays, masks, strict=True):
        weight.assign(array * mask)
        weight.constraint = KeepZeros(mask)


def zeros(model: keras.Model) -> tuple[int, int]:
    """Returns how many of the kernels' weights are zero, and how many there are."""
    arrays = [ops.convert_to_numpy(weight) for weight in kernels(model)]
    return (
        sum(int(np.sum(array == 0)) for array in arrays),
        sum(array.size for array in arrays),
    )


def gives_probabilities(outputs: np.ndarray) -> bool:
    """Returns whether outputs are probabilities, as a softmax gives, not logits."""
    sums = np.sum(outputs, axis=-1)
    return bool(np.min(outputs) >= 0 and np.allclose(sums, 1, atol=1e-2))


def fine_tune(
    model: keras.Model,
    images: image_sets.Images,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> None:
    """Trains a model on labels alone, with Adam and a learning rate that falls to 0."""
    if not epochs:
        return
    some = images.test[0][:32]
    steps = epochs * -(-len(images.train[0]) // batch_size)
    # Also what the wrapper froze. Keras takes no notice of a value that the model has
    # already, even where its layers have another.
    model.trainable = False
    model.trainable = True
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(learning_rate, steps)
        ),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=not gives_probabilities(model.predict(some, verbose=0))
        ),
        metrics=["accuracy"],
    )
    image_sets.fit(model, images, epochs=epochs, batch_size=batch_size, seed=seed)


def sizes(path: pathlib.Path) -> tuple[int, int]:
    """Returns the bytes of a file, and those of it after gzip."""
    content = path.read_bytes()
    return len(content), len(gzip.compress(content, compresslevel=9, mtime=0))


def latencies(
    models: dict[str, keras.Model], batch: np.ndarray, repeats: int, warm_up: int = 5
) -> dict[str, float]:
    """Returns each model's median time for a batch, in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(warm_up + repeats):
        for name, model in models.items():
            start = time.perf_counter()
            model.predict_on_batch(batch)  # an array: the computation has ended
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(each[warm_up:])) for name, each in times.items()}


def train_wrapper(images: image_sets.Images) -> ksd.SelfDistiller:
    """Trains the quickstart's network with two exits."""
    import quickstart

    keras.utils.set_random_seed(FLAGS.seed)
    wrapper = ksd.SelfDistiller(quickstart.build_base(), taps=2, recipe="byot")
    wrapper.compile(
        keras.optimizers.Adam(2e-3),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    image_sets.fit(
        wrapper,
        images,
        epochs=FLAGS.epochs,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
    )
    return wrapper


def load_wrapper(path: str, images: image_sets.Images) -> ksd.SelfDistiller:
    """Returns a saved wrapper that takes these images."""
    wrapper = ksd.load_model(pathlib.Path(path).expanduser())
    if not isinstance(wrapper, ksd.SelfDistiller):
        raise app.UsageError(
            f"Received --wrapper={path}, a {type(wrapper).__name__}; expected a saved "
            "SelfDistiller. A model trained with --recipe=plain has no exits."
        )
    expected, given = wrapper.inputs[0].shape[1:], images.test[0].shape[1:]
    if tuple(expected) != given:
        raise app.UsageError(
            f"Received --data={images.name} with images of shape {given}; expected "
            f"{tuple(expected)}, which {path} takes. Choose another --data."
        )
    return wrapper


def early_exit(wrapper: ksd.SelfDistiller, name: str) -> keras.Model:
    """Returns a copy of one exit, or raises an error that names the flag."""
    try:
        return copy_of(wrapper.exit_model(name))
    except ValueError as error:
        raise app.UsageError(f"Received --exit={name}. {error}") from error


def compressed(model: keras.Model, images: image_sets.Images) -> dict[str, keras.Model]:
    """Returns the compressed copies of an exit, and its fine-tuned one, by row."""
    options = {
        "epochs": FLAGS.fine_tune_epochs,
        "learning_rate": FLAGS.learning_rate,
        "batch_size": FLAGS.batch_size,
        "seed": FLAGS.seed,
    }
    tuned, pruned = copy_of(model), copy_of(model)
    logging.info("Fine-tuning %s.", FLAGS.exit)
    fine_tune(tuned, images, **options)
    prune(pruned, FLAGS.sparsity)
    logging.info("Fine-tuning %s with %.0f %% zeros.", FLAGS.exit, 100 * FLAGS.sparsity)
    fine_tune(pruned, images, **options)
    # Copies once more: the file of a compiled model also holds its optimizer's state.
    return {
        "int8": quantised(model),
        "fine-tuned": copy_of(tuned),
        "pruned": copy_of(pruned),
    }


def measure(
    models: dict[str, keras.Model], images: image_sets.Images, folder: pathlib.Path
) -> list[dict[str, Any]]:
    """Saves every model and returns a row of the table for each."""
    batches = (1, FLAGS.latency_batch)
    times = [latencies(models, images.test[0][:n], FLAGS.repeats) for n in batches]
    rows = []
    for name, model in models.items():
        path = folder / f"{name.replace(' ', '_')}.keras"
        run_folder.save(model, path)
        size, gzipped = sizes(path)
        rows.append(
            {
                "model": name,
                "accuracy": image_sets.accuracy(model, images),
                "file_bytes": size,
                "gzip_bytes": gzipped,
                "milliseconds": {
                    str(n): each[name] for n, each in zip(batches, times, strict=True)
                },
            }
        )
    return rows


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Returns the table as text, one line a model."""
    rows = list(rows)
    width = max(len(row["model"]) for row in rows)
    batches = list(rows[0]["milliseconds"])
    heads = ["accuracy", "file kB", "gzip kB", *(f"ms/batch {n}" for n in batches)]
    lines = ["  ".join([" " * width, *(f"{head:>11}" for head in heads)])]
    for row in rows:
        cells = [
            f"{row['accuracy']:.2%}",
            f"{row['file_bytes'] / 1000:,.1f}",
            f"{row['gzip_bytes'] / 1000:,.1f}",
            *(f"{row['milliseconds'][n]:.2f}" for n in batches),
        ]
        lines.append(
            "  ".join([f"{row['model']:{width}}", *(f"{c:>11}" for c in cells)])
        )
    return "\n".join(lines)


def report(found: dict[str, Any]) -> str:
    """Returns what one has to know to read the table."""
    zeros, count = found["zeros"], found["kernel_weights"]
    return (
        f"int8: {found['int8_share']:.1%} of the {found['parameters']:,} parameters; "
        "Keras leaves the others in float32.\n"
        f"pruned: {zeros:,} of {count:,} kernel weights ({zeros / count:.2%}) are "
        "zero.\n"
        f"Accuracy on {found['test_images']:,} test images. Sizes in 1,000 bytes. "
        f"Latency: median of {FLAGS.repeats} calls of predict_on_batch after warm-up, "
        f"{found['machine']}, "
        + ", ".join(f"{name} {each}" for name, each in found["versions"].items())
        + "."
    )


def main(argv: list[str]) -> None:
    """Compresses, measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1:]}; expected flags only: --name=value.")
    if FLAGS.wrapper is None and FLAGS.data != "digits":
        raise app.UsageError(
            f"Received --data={FLAGS.data} without --wrapper; expected a trained one. "
            "Train it with examples/train_cifar100.py, or take --data=digits."
        )
    image_sets.quiet_tensorflow()
    folder = pathlib.Path(FLAGS.output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    images = image_sets.load(
        FLAGS.data, FLAGS.data_dir, train_examples=FLAGS.train_examples, seed=FLAGS.seed
    )
    if FLAGS.wrapper is None:
        logging.info("Training a wrapper on digits.")
        wrapper = train_wrapper(images)
        run_folder.save(wrapper, folder / "selfdistilled.keras")
    else:
        wrapper = load_wrapper(FLAGS.wrapper, images)
    cut = early_exit(wrapper, FLAGS.exit)
    variants = compressed(cut, images)
    models = {"final": copy_of(wrapper.final_model()), FLAGS.exit: cut}
    models |= {f"{FLAGS.exit} {name}": model for name, model in variants.items()}

    rows = measure(models, images, folder)
    number, count = zeros(variants["pruned"])
    found = {
        "rows": rows,
        "int8_share": int8_share(variants["int8"], cut),
        "zeros": number,
        "kernel_weights": count,
        "parameters": cut.count_params(),
        "test_images": len(images.test[1]),
        "machine": environment.machine(),
        "versions": environment.versions(),
        "flags": run_folder.own_settings("sparsity", without=PLACES),
    }
    run_folder.write_json(folder / "compress.json", found)
    print(f"\n{table(rows)}\n")
    print(report(found))
    print(f"Saved the models and compress.json in {folder}")


if __name__ == "__main__":
    define_flags()
    FLAGS.set_default("verbosity", logging.INFO)
    script.run(main)
