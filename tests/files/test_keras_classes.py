"""Every public class of Keras that a config can hold is allowed, or refused and why."""

import inspect
import types

import keras
import pytest

from keras_selfdistill.files.config_check import REFUSED, check_config, resolve

pytestmark = pytest.mark.once


def public(module, name="keras", seen=None):
    """Yield the public names below a module of Keras, and what they stand for."""
    seen = set() if seen is None else seen
    seen.add(id(module))
    for key, each in sorted(vars(module).items()):
        if key.startswith("_") or key == "src":
            continue
        if isinstance(each, types.ModuleType):
            if each.__name__.startswith("keras.") and id(each) not in seen:
                yield from public(each, f"{name}.{key}", seen)
        else:
            yield f"{name}.{key}", each


def serialisable():
    """Return the public classes that Keras can make from a config, by first name."""
    found = {}
    for name, each in public(keras):
        if isinstance(each, type) and hasattr(each, "from_config"):
            found.setdefault(each, name)
    return {name: each for each, name in found.items()}


def symbol_of(name):
    module, _, class_name = name.rpartition(".")
    return {"module": module, "class_name": class_name, "config": {}}


def test_the_walk_sees_what_keras_has():
    names = set(serialisable())
    assert len(names) > 250
    assert {
        "keras.InputSpec",
        "keras.Sequential",
        "keras.optimizers.OptimizerMap",
        "keras.quantizers.Int8QuantizationConfig",
        "keras.quantizers.GPTQConfig",
        "keras.layers.TFSMLayer",
        "keras.metrics.AUC",
        "keras.dtype_policies.DTypePolicyMap",
    } <= {name for name, _ in public(keras)}


def test_every_class_is_allowed_or_refused_with_a_reason():
    """A new Keras shows its new ones here: allow their kind, or say why not."""
    refused = set()
    for name, each in serialisable().items():
        try:
            check_config(symbol_of(name))
        except ValueError:
            refused.add(name)
        else:
            assert resolve(symbol_of(name)) is each, name
    assert refused == set(REFUSED)
    assert all(REFUSED.values())


@pytest.mark.parametrize(
    "module", ["activations", "losses", "metrics", "ops", "regularizers"]
)
def test_every_function_a_config_can_hold_is_allowed(module):
    for name, each in vars(getattr(keras, module)).items():
        if inspect.isfunction(each) and name not in ("get", "serialize", "deserialize"):
            check_config(keras.saving.serialize_keras_object(each))
