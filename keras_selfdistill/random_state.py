"""The random states of a process, besides the seeds that a model keeps: as plain data.

TensorFlow has one more, inside its own operations, which nothing can read.
"""

import random
import sys
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.random.seed_generator import (
    GLOBAL_SEED_GENERATOR,
    global_seed_generator,
)


def random_state() -> dict[str, Any]:
    """Return the states of Python, NumPy, PyTorch and Keras, as JSON can hold them.

    Example:
        >>> kept = random_state()
        >>> drawn = random.random(), np.random.rand()
        >>> set_random_state(kept)
        >>> drawn == (random.random(), np.random.rand())
        True
    """
    version, internal, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    name, key, *rest = numpy_state
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, key.tolist(), *rest],
    }
    # Where PyTorch is loaded: its data loaders draw from it on any backend.
    if torch := sys.modules.get("torch"):
        state["torch"] = torch.get_rng_state().tolist()
        if torch.cuda.is_available():
            devices = torch.cuda.get_rng_state_all()
            state["cuda"] = [device.tolist() for device in devices]
    # For keras.random without a seed. Not asked for, or the question would make it.
    generator = get_global_attribute(GLOBAL_SEED_GENERATOR)
    if generator is not None:
        value = keras.ops.convert_to_numpy(generator.state.value)
        state["keras"] = value.tolist()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set what `random_state` returned."""
    if "keras" in state:
        global_seed_generator().state.assign(np.array(state["keras"]))
    if "torch" in state:
        import torch

        torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
        for device, value in enumerate(state.get("cuda", ())):
            torch.cuda.set_rng_state(torch.tensor(value, dtype=torch.uint8), device)
    name, key, *rest = state["numpy"]
    np.random.set_state((name, np.array(key, "uint32"), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
