"""Private names of Keras that this package needs, one small function and test for each.

Docstrings name the file below keras/src and why no public API will do. Internal.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_selfdistill.utils.type_aliases import Data, Tensor

try:
    from keras.src.backend import get_keras_mask, set_keras_mask
    from keras.src.backend.common import global_state
    from keras.src.layers.layer import CallContext
    from keras.src.losses.losses import LossFunctionWrapper
    from keras.src.random import seed_generator
    from keras.src.utils.naming import get_object_name
except ImportError as error:
    raise ImportError(f"Keras {keras.__version__}: {error}; mend {__name__}") from error

_CALL_CONTEXT, _DEFERRED = "current_call_ctx", "uninitialized_variables"


def writes_legacy_format() -> bool:
    """Tell whether Keras is asking for a config for a legacy `.h5` file.

    Reads the global attribute set by legacy/saving/legacy_h5_format.py, as Keras' own
    models do. No public API tells a model what its config is for.
    """
    return bool(global_state.get_global_attribute("use_legacy_config", False))


@contextlib.contextmanager
def deferred_values() -> Iterator[list[keras.Variable]]:
    """Build layers in the scope without values; return their variables at its end.

    Creating values takes most of the time of building. Keras lists such variables in a
    global attribute (backend/common/variables.py), from which these are removed; no
    public API lists them. `give_values` initializes them.
    """
    before = list(global_state.get_global_attribute(_DEFERRED, []))
    variables: list[keras.Variable] = []
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield variables
    finally:
        variables += global_state.get_global_attribute(_DEFERRED, [])[len(before) :]
        global_state.set_global_attribute(_DEFERRED, before)


def give_values(variables: list[keras.Variable]) -> None:
    """Give variables from `deferred_values` the values of their initializers.

    Sets the global attribute of `deferred_values`, for the same reason.
    """
    before = global_state.get_global_attribute(_DEFERRED, [])
    global_state.set_global_attribute(_DEFERRED, [*before, *variables])
    with keras.StatelessScope():  # Its end gives values, if no scope is around it.
        pass


def existing_seed_generator() -> keras.random.SeedGenerator | None:
    """Return the global generator of `keras.random`, or `None` if there is none yet.

    Reads the global attribute of random/seed_generator.py. The public API can only
    reset it to a seed.
    """
    return global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR)


def global_seed_generator() -> keras.random.SeedGenerator:
    """Return the same generator, created if there is none yet (same file)."""
    return seed_generator.global_seed_generator()


def value_without_autocast(variable: keras.Variable) -> Tensor:
    """Return a variable's value in its own dtype, even inside a layer's call.

    Reads `Variable._value` (backend/common/variables.py). In a call, `variable.value`
    is cast to the compute dtype, and the scope that disables this is private.
    """
    return variable._value


def refuses_clones(model_class: Any) -> Any:
    """Decorate a model class: `clone_model` calls its `refuse_clone`, which raises.

    Overrides `Functional._run_through_graph` (models/functional.py), which
    `keras.models.clone_model` (models/cloning.py) calls with a function of its own. It
    calls no public method that could refuse.
    """
    cloning = keras.models.clone_model.__module__

    def run_through_graph(
        self: Any, inputs: Any, operation_fn: Any = None, call_fn: Any = None
    ) -> Any:
        if getattr(operation_fn, "__module__", None) == cloning:
            self.refuse_clone()
        usual = super(model_class, self)._run_through_graph
        return usual(inputs, operation_fn or (lambda each: each), call_fn)

    model_class._run_through_graph = run_through_graph
    return model_class


def object_name(thing: object) -> str:
    """Return the name under which Keras logs a metric, function or callable object.

    Calls `get_object_name` (utils/naming.py). Only `compile` applies it in public.
    """
    return get_object_name(thing)


def set_direction(metric: keras.Metric, direction: str) -> None:
    """Tell Keras' callbacks, in mode "auto", whether `"up"` or `"down"` is better.

    Sets `Metric._direction`, which callbacks/monitor_callback.py reads. The public
    alternative is the argument `mode` of each callback, which users set.
    """
    metric._direction = direction


def loss_of_function(function: Any, name: str, **options: Any) -> keras.losses.Loss:
    """Return a function of labels and outputs as a loss, as `keras.Model.compile` does.

    Instantiates `LossFunctionWrapper` (losses/losses.py), which is not exported.
    """
    return LossFunctionWrapper(function, name=name, **options)


def loss_function(loss: keras.losses.Loss) -> tuple[Any, Mapping[str, Any]]:
    """Return the function that a loss computes, and its options.

    `(None, {})` if there is none, or a subclass computes something else. Reads `fn` and
    `_fn_kwargs` (losses/losses.py). The config of a loss contains neither.
    """
    kind, wrapper = type(loss), LossFunctionWrapper
    if kind.call is not wrapper.call or kind.__call__ is not wrapper.__call__:
        return None, {}
    return loss.fn, loss._fn_kwargs


def with_loss_function(
    loss: keras.losses.Loss, function: Any, options: Mapping[str, Any]
) -> keras.losses.Loss:
    """Return a copy of a loss with another function and all its further arguments.

    Sets what `loss_function` reads. The config of a loss will not do, as it contains
    no dtype, nor will `copy.copy`, which goes through the config.
    """
    copied = object.__new__(type(loss))
    vars(copied).update(vars(loss), fn=function, _fn_kwargs=dict(options))
    return copied


def variables_inside(metric: keras.Metric) -> list[keras.Variable]:
    """Return the list of a metric's own variables.

    Returns `Metric._variables` (metrics/metric.py). `variables` also has those of the
    metrics it contains.
    """
    return metric._variables


def metrics_inside(metric: keras.Metric) -> list[keras.Metric]:
    """Return the list of the metrics that a metric contains.

    Returns `Metric._metrics` (metrics/metric.py). No public API lists them.
    """
    return metric._metrics


def set_tracked(
    metric: keras.Metric,
    variables: Sequence[keras.Variable],
    metrics: Sequence[keras.Metric],
) -> None:
    """Replace the variables and metrics that a metric tracks.

    Sets `stored_ids` of `Metric._tracker` (utils/tracking.py), the `id`s of what it
    tracks, which are wrong in a copy. The public API can only add.
    """
    variables_inside(metric)[:] = variables
    metrics_inside(metric)[:] = metrics
    stored = metric._tracker.stored_ids
    stored["variables"] = {id(each) for each in variables}
    stored["metrics"] = {id(each) for each in metrics}


def parameters(model: keras.Model) -> list[keras.Variable]:
    """Return the weights that would be trained if no layer were frozen.

    Reads `Layer._trainable_variables` (layers/layer.py). `trainable_variables` excludes
    those of frozen layers, and `weights` includes moving statistics and seeds.
    """
    trained = {
        id(variable)
        for layer in flatten_layers(model)
        for variable in layer._trainable_variables
    }
    return [variable for variable in model.weights if id(variable) in trained]


def flatten_layers(layer: keras.Layer) -> list[keras.Layer]:
    """Return a layer and all its sublayers, at any depth, the layer itself first.

    Calls `Layer._flatten_layers` (layers/layer.py). Only models have `layers`, which
    excludes the sublayers of layers.
    """
    return list(layer._flatten_layers())


def mask_of(tensor: Tensor) -> Tensor:
    """Return the mask attached to a tensor, symbolic or not, or `None`.

    Calls `get_keras_mask` (backend/common/masking.py). Only `compute_mask`, what a
    layer makes of masks, is public.
    """
    return get_keras_mask(tensor)


def set_mask(tensor: Tensor, mask: Tensor) -> None:
    """Attach a mask to a tensor, as Keras' own models do with their inputs.

    Calls `set_keras_mask` (backend/common/masking.py), for the same reason.
    """
    set_keras_mask(tensor, mask)


@contextlib.contextmanager
def call_context(layer: keras.Layer, training: bool | None) -> Iterator[None]:
    """Call layers in the scope as if inside another layer's call.

    They inherit its `training`, unless given. Sets the global attribute of a
    `CallContext` (layers/layer.py). In public, only `Layer.__call__` sets it, and that
    does not run `call` on symbolic tensors of ours.
    """
    context = CallContext(entry_layer=layer)
    context.set_value("training", training)
    before = global_state.get_global_attribute(_CALL_CONTEXT)
    global_state.set_global_attribute(_CALL_CONTEXT, context)
    try:
        yield
    finally:
        global_state.set_global_attribute(_CALL_CONTEXT, before)


def aggregate_additional_loss(model: keras.Model, loss: Tensor) -> Tensor:
    """Return a further loss, such as a regularizer's, as a term of the total loss.

    Calls `Trainer._aggregate_additional_loss` (trainers/trainer.py), which divides by
    the number of replicas. The public `compute_loss` only gives the sum of all.
    """
    return model._aggregate_additional_loss(loss)


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Set the epoch at which the starting `fit` begins; `None` keeps its argument.

    Sets `Trainer._initial_epoch` (trainers/trainer.py), as `BackupAndRestore` does. A
    callback cannot set the argument `initial_epoch`.
    """
    model._initial_epoch = epoch


def build_metrics(model: keras.Model, batch: Data) -> None:
    """Create the variables of the compiled metrics, without a step.

    Calls `Trainer._symbolic_build` (trainers/trainer.py), as `fit` does. The public
    `test_on_batch` would run the model and draw random numbers.
    """
    model._symbolic_build(data_batch=batch)


def give_back_weights(model: keras.Model) -> None:
    """Write the state of a running `fit` to the model's variables; on JAX it is apart.

    Calls `jax_state_sync` (backend/jax/trainer.py), which is not documented.
    """
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
