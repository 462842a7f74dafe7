"""What is read of Keras that Keras does not publish: one small function for each."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras.src.backend import get_keras_mask, set_keras_mask
from keras.src.backend.common.global_state import (
    get_global_attribute,
    set_global_attribute,
)
from keras.src.layers.layer import CallContext
from keras.src.losses.losses import LossFunctionWrapper
from keras.src.utils.naming import get_object_name

_DEFERRED = "uninitialized_variables"
_CALL_CONTEXT = "current_call_ctx"


def writes_legacy_format() -> bool:
    """Tell whether Keras is asking for a config for a legacy `.h5` file.

    Its own models read the same attribute; nothing public tells a model what its config
    is for.

    Example:
        >>> writes_legacy_format()
        False
    """
    return bool(get_global_attribute("use_legacy_config", False))


def value_without_autocast(variable: Any) -> Any:
    """Return a variable's value in its own dtype, also inside of a layer's call.

    There, `variable.value` is cast to the layer's compute dtype, and Keras' scope that
    turns this off is not public.

    Example:
        >>> import keras
        >>> value_without_autocast(keras.Variable([1.0, 2.0])).shape == (2,)
        True
    """
    return variable._value


def run_in_inference_mode(function: keras.Function, inputs: Any) -> Any:
    """Return a graph's outputs where every layer is called with `training=False`.

    `keras.Function` replays the arguments of its symbolic calls, and there layers whose
    `call` has `training=True` as its default, such as `RandomFlip`, recorded that. Only
    functional models override it, but a functional model whose inputs are not those of
    `keras.Input` copies every call, and the layers would keep the copies.

    Uses `Function._run_through_graph`, as `Functional.call` does.

    Args:
        function: Symbolic graph.
        inputs: Tensors, in the structure of its inputs.

    Example:
        >>> inputs = keras.Input((2,))
        >>> noisy = keras.layers.GaussianNoise(1.0)(inputs, training=True)
        >>> outputs = run_in_inference_mode(
        ...     keras.Function(inputs, noisy), keras.ops.ones((1, 2)))
        >>> keras.ops.convert_to_numpy(outputs).tolist()
        [[1.0, 1.0]]
    """

    def inferring(operation):
        if not isinstance(operation, keras.Layer):
            return operation
        # Every layer takes `training`; those whose `call` does not ask hand it on.
        return lambda *args, **kwargs: operation(*args, **{**kwargs, "training": False})

    return function._run_through_graph(inputs, operation_fn=inferring)


def object_name(thing: Any) -> str:
    """Return the name under which Keras logs a metric, function or callable object.

    Example:
        >>> object_name(keras.metrics.categorical_accuracy)
        'categorical_accuracy'
    """
    return get_object_name(thing)


def set_direction(metric: keras.Metric, direction: str) -> None:
    """Tell Keras' callbacks, in mode "auto", whether `"up"` or `"down"` is better."""
    metric._direction = direction


def loss_of_function(function: Any, name: str, **options: Any) -> keras.losses.Loss:
    """Return a function of labels and outputs as a loss, as `keras.Model.compile` does.

    Args:
        function: Returns a value for each sample.
        name: Name of the loss.
        options: Further arguments of the function.
    """
    return LossFunctionWrapper(function, name=name, **options)


def loss_function(loss: keras.losses.Loss) -> tuple[Any, Mapping[str, Any]]:
    """Return the function that a loss computes, and its options.

    `(None, {})` for losses that are made of no function, and for subclasses that
    compute something else.

    Example:
        >>> function, options = loss_function(keras.losses.BinaryCrossentropy())
        >>> function is keras.losses.binary_crossentropy, options["from_logits"]
        (True, False)
    """
    kind, wrapper = type(loss), LossFunctionWrapper
    if kind.call is not wrapper.call or kind.__call__ is not wrapper.__call__:
        return None, {}
    return loss.fn, loss._fn_kwargs


def with_loss_function(
    loss: keras.losses.Loss, function: Any, options: Mapping[str, Any]
) -> keras.losses.Loss:
    """Return a copy of a loss that computes another function, and is reduced alike.

    Its config would not do, as it holds no dtype, nor would `copy.copy`, which is by
    way of the config.

    Args:
        loss: One that `loss_function` knows.
        function: Of labels and outputs.
        options: All further arguments of the function.
    """
    copied = object.__new__(type(loss))
    vars(copied).update(vars(loss), fn=function, _fn_kwargs=dict(options))
    return copied


def copy_metric(metric: keras.Metric) -> keras.Metric:
    """Return a copy of a metric with variables of its own and everything else alike.

    The object is copied, not made again from its config, which may omit arguments.
    Layers, models, losses and functions in it are shared.

    Raises:
        TypeError: It holds what cannot be copied, such as an open file.

    Example:
        >>> import numpy as np
        >>> metric = keras.metrics.Precision(class_id=1)
        >>> copied = copy_metric(metric)
        >>> copied.update_state(np.eye(2), np.eye(2))
        >>> copied.class_id, float(copied.result()), float(metric.result())
        (1, 1.0, 0.0)
    """
    return _copy_metric(metric, {})


def _copy_metric(metric, memo):
    copied = memo[id(metric)] = object.__new__(type(metric))
    for inner in metric._metrics:
        if id(inner) not in memo:
            _copy_metric(inner, memo)
    for variable in metric._variables:
        memo[id(variable)] = _fresh(variable)
    for value in keras.tree.flatten([_plain(each) for each in vars(metric).values()]):
        if isinstance(value, (keras.Layer, keras.losses.Loss, keras.Optimizer)):
            memo[id(value)] = value
    # Keras copies its own objects by way of a file: this one must be none of them.
    vars(copied).update(copy.deepcopy(vars(metric), memo))
    _repair_tracker(metric, copied, memo)
    return copied


def _plain(value):
    """Return a container that Keras tracks as one that its tree functions open."""
    if isinstance(value, dict):
        return [_plain(each) for each in value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    return [value]


def _fresh(variable):
    value = value_without_autocast(variable)
    if keras.backend.backend() == "tensorflow":
        # Of devices that train together, each has its own: all began alike.
        value = getattr(value, "values", (value,))[0]
    return keras.Variable(
        keras.ops.convert_to_numpy(value),
        dtype=variable.dtype,
        trainable=False,
        aggregation=variable.aggregation,
        synchronization=variable.synchronization,
        name=variable.name,
    )


def _repair_tracker(metric, copied, memo):
    """Let the copy's tracker know the copy's variables, and each of them once.

    It knows what it tracks by `id`; copied lists, which it watches, tell it again.
    """
    stores = {"variables": "_variables", "metrics": "_metrics"}
    for store, attribute in stores.items():
        held = [memo[id(each)] for each in getattr(metric, attribute)]
        getattr(copied, attribute)[:] = held
        copied._tracker.stored_ids[store] = {id(each) for each in held}


def parameters(model: keras.Model) -> list[Any]:
    """Return the weights that training changes where nothing is frozen.

    `trainable_variables` leaves out those of frozen layers, and `weights` has moving
    statistics and states of random generators, too; only a layer's private list tells
    frozen weights from those.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3),
        ...     keras.layers.BatchNormalization()])
        >>> model.trainable = False
        >>> [variable.name for variable in parameters(model)]
        ['kernel', 'bias', 'gamma', 'beta']
    """
    trained = {
        id(variable)
        for layer in model._flatten_layers()
        for variable in layer._trainable_variables
    }
    return [variable for variable in model.weights if id(variable) in trained]


def flatten_layers(layer: Any) -> list[Any]:
    """Return a layer and all layers inside of it, the layer itself first.

    `layer.layers` is there in models alone, and lists no layers of layers.

    Example:
        >>> import keras
        >>> rnn = keras.layers.RNN(keras.layers.GRUCell(2))
        >>> [type(each).__name__ for each in flatten_layers(rnn)]
        ['RNN', 'GRUCell']
    """
    return list(layer._flatten_layers())


def mask_of(tensor: Any) -> Any:
    """Return the mask that a tensor carries, `None` if it carries none.

    Keras hands masks from layer to layer beside the tensors, symbolic ones too; public
    is only what a layer computes of them.

    Example:
        >>> import keras
        >>> ids = keras.Input((5,))
        >>> mask_of(keras.layers.Embedding(9, 2, mask_zero=True)(ids)).shape
        (None, 5)
    """
    return get_keras_mask(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Let a tensor carry a mask, as Keras' own models do with what they are given.

    Example:
        >>> import keras
        >>> tensor, mask = keras.Input((5, 2)), keras.Input((5,), dtype="bool")
        >>> set_mask(tensor, mask)
        >>> mask_of(tensor) is mask
        True
    """
    set_keras_mask(tensor, mask)


@contextlib.contextmanager
def call_context(layer: Any, training: bool | None) -> Iterator[None]:
    """Let layers called in the scope be called as from inside of another layer's call.

    They then train or not as that layer does, where they are not told; Keras keeps this
    in a global attribute that only `Layer.__call__` sets.

    Example:
        >>> import keras
        >>> outer, drop = keras.layers.ReLU(), keras.layers.Dropout(1 - 1e-6, seed=1)
        >>> with call_context(outer, training=True):
        ...     values = drop(keras.ops.ones((2, 3)))
        >>> float(keras.ops.convert_to_numpy(keras.ops.max(values)))
        0.0
    """
    context = CallContext(entry_layer=layer)
    context.set_value("training", training)
    before = get_global_attribute(_CALL_CONTEXT)
    set_global_attribute(_CALL_CONTEXT, context)
    try:
        yield
    finally:
        set_global_attribute(_CALL_CONTEXT, before)


@contextlib.contextmanager
def deferred_values() -> Iterator[list[Any]]:
    """Build layers in the scope without values; return their variables at its end.

    Values are most of the time that building takes. Keras lists such variables in a
    global attribute; these are taken off, and get values by `give_values` or never.

    Example:
        >>> import keras
        >>> with deferred_values() as variables:
        ...     outputs = keras.layers.Dense(2)(keras.Input((3,)))
        >>> [tuple(variable.shape) for variable in variables]
        [(3, 2), (2,)]
    """
    before = list(get_global_attribute(_DEFERRED, []))
    variables: list[Any] = []
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield variables
    finally:
        variables += get_global_attribute(_DEFERRED, [])[len(before) :]
        set_global_attribute(_DEFERRED, before)


def give_values(variables: list[Any]) -> None:
    """Give variables from `deferred_values` the values of their initializers.

    Example:
        >>> import keras
        >>> with deferred_values() as variables:
        ...     outputs = keras.layers.Dense(2)(keras.Input((3,)))
        >>> give_values(variables)
        >>> keras.ops.convert_to_numpy(variables[1]).tolist()
        [0.0, 0.0]
    """
    before = list(get_global_attribute(_DEFERRED, []))
    set_global_attribute(_DEFERRED, [*before, *variables])
    with keras.StatelessScope():  # Its end gives values, if no scope is around it.
        pass


def loss_of_hook(model: keras.Model, *args: Any, training: bool) -> Any:
    """Return what a model's `compute_loss` says, whether or not it takes `training`.

    Overrides written for older versions of Keras do not; Keras' own steps call them so.
    """
    return model._compute_loss(*args, training=training)


def is_cloned_by(operation_fn: Any) -> bool:
    """Tell whether `keras.models.clone_model` runs a graph to copy it.

    It asks nothing of the model that it copies; only its function is its own.
    """
    cloning = keras.models.clone_model.__module__
    return getattr(operation_fn, "__module__", None) == cloning
