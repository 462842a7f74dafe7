"""The random states of a process as plain data, besides the seeds in a model.

TensorFlow has another one inside its own operations, which cannot be read.
"""

import random
import sys
from typing import Any

import keras
import numpy as np

from keras_selfdistill.utils.keras_internals import (
    existing_seed_generator,
    global_seed_generator,
)
from keras_selfdistill.utils.number_checks import is_finite_number


def random_state() -> dict[str, Any]:
    """Return the random states of Python, NumPy, PyTorch and Keras, as JSON values.

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
    # If PyTorch is loaded: its data loaders draw from it on any backend.
    if torch := sys.modules.get("torch"):
        state["torch"] = torch.get_rng_state().tolist()
        # With another backend, reading the states would initialise every GPU.
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            devices = torch.cuda.get_rng_state_all()
            state["cuda"] = [device.tolist() for device in devices]
    # For keras.random without a seed. Read directly: Keras' getter would create it.
    generator = existing_seed_generator()
    if generator is not None:
        value = keras.ops.convert_to_numpy(generator.state.value)
        state["keras"] = value.tolist()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set the states that `random_state` returned; PyTorch's only if it is loaded."""
    if "keras" in state:
        global_seed_generator().state.assign(np.array(state["keras"]))
    if "torch" in state and (torch := sys.modules.get("torch")):
        torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
        for device, value in enumerate(state.get("cuda", ())):
            torch.cuda.set_rng_state(torch.tensor(value, dtype=torch.uint8), device)
    name, key, *rest = state["numpy"]
    np.random.set_state((name, np.array(key, "uint32"), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def is_random_state(value: object) -> bool:
    """Return whether a value, such as one from a file, is a valid random state.

    Example:
        >>> is_random_state(random_state()), is_random_state({"python": []})
        (True, False)
    """
    return (
        isinstance(value, dict)
        and {"python", "numpy"} <= value.keys() <= _SCHEMA.keys()
        and all(_SCHEMA[field](each) for field, each in value.items())
    )


def _is_list_below(limit: int, value: object, length: int | None = None) -> bool:
    return (
        isinstance(value, list)
        and length in (None, len(value))
        and all(type(each) is int and 0 <= each < limit for each in value)
    )


def _is_python(value: object) -> bool:
    """Return whether a value is a Mersenne Twister state: its words, then an index."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    version, internal, gauss = value
    return (
        version == random.getstate()[0]
        and _is_list_below(2**32, internal, 625)
        and internal[-1] <= 624
        and (gauss is None or is_finite_number(gauss))
    )


def _is_numpy(value: object) -> bool:
    """Return whether a value is NumPy's state of the same generator."""
    if not isinstance(value, list) or len(value) != 5:
        return False
    name, key, place, has_gauss, gauss = value
    return (
        name == "MT19937"
        and _is_list_below(2**32, key, 624)
        and _is_list_below(625, [place])
        and _is_list_below(2, [has_gauss])
        and is_finite_number(gauss)
    )


def _is_torch(value: object, device: str = "cpu") -> bool:
    """Return whether PyTorch accepts a state; any bytes if it is not loaded."""
    if not _is_list_below(256, value):
        return False
    torch = sys.modules.get("torch")
    if torch is None:
        return True
    try:
        torch.Generator(device).set_state(torch.tensor(value, dtype=torch.uint8))
    except RuntimeError:
        return False
    return True


def _is_devices(value: object) -> bool:
    """Return whether a value holds the states of at most as many GPUs as there are."""
    if not isinstance(value, list):
        return False
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return all(_is_list_below(256, each) for each in value)
    return len(value) <= torch.cuda.device_count() and all(
        _is_torch(each, f"cuda:{i}") for i, each in enumerate(value)
    )


_SCHEMA = {
    "python": _is_python,
    "numpy": _is_numpy,
    "torch": _is_torch,
    "cuda": _is_devices,
    "keras": lambda value: _is_list_below(2**63, value, 2),
}
