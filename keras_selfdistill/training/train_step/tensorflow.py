"""Training and test step on TensorFlow."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_selfdistill.backend.finite import all_finite
from keras_selfdistill.training.batch_loss import Step
from keras_selfdistill.training.nonfinite import DeferredUpdates, FiniteCheck
from keras_selfdistill.utils.type_aliases import Logs, Tensor, TensorStructure


def train_step(self: keras.Model, data: TensorStructure) -> Logs:
    """Update the weights with one batch and return the logs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    variables = self.trainable_variables
    _check_scope(variables)
    with tf.GradientTape() as tape:
        with DeferredUpdates.keeping(variables) as deferred:
            step = self.run_exits(x, y, sample_weight, training=True)
        loss = self.optimizer.scale_loss(step.loss)
    gradients = tape.gradient(loss, variables)
    # By a function that takes sparse gradients of embeddings, too.
    gradients = self._in_equilibrium(gradients, tf.math.scalar_mul)
    check = _finite_check(step, deferred, gradients)
    # First, because applying gradients may change the loss scale.
    magnitudes = self._gradient_magnitudes(_dense_sum(self, gradients))
    deferred.assign(check.finite)
    if variables:
        _apply(self.optimizer, gradients, variables, check)
    return _logs(self, step, check, magnitudes)


def test_step(self: keras.Model, data: TensorStructure) -> Logs:
    """Evaluate one batch and return the logs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    return _logs(self, self.run_exits(x, y, sample_weight, training=False))


def _finite_check(
    step: Step, deferred: DeferredUpdates, gradients: Sequence[Tensor | None]
) -> FiniteCheck:
    """Return the finite check of a step, the same on all replicas."""
    values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    check = FiniteCheck(
        forward=all_finite([step.loss, *(value for _, value in deferred.updates)]),
        gradients=all_finite([value for value in values if value is not None]),
    )
    if _replicas() == 1:
        return check
    nonfinite = tf.cast(tf.logical_not(tf.stack(check)), "int32")
    context = tf.distribute.get_replica_context()
    return FiniteCheck(*tf.unstack(context.all_reduce("SUM", nonfinite) == 0))


def _apply(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Tensor | None],
    variables: Sequence[keras.Variable],
    check: FiniteCheck,
) -> None:
    """Call the optimizer if the check allows it, also with several replicas."""
    if not optimizer.built:  # Not in a branch of the graph.
        optimizer.build(variables)
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if _replicas() > 1 and scaled:
        # Keras checks the gradients of one replica only: pass on the check of all.
        # Not by a sparse gradient of an embedding, which would become dense.
        given = [i for i, g in enumerate(gradients) if g is not None]
        sparse = [isinstance(gradients[i], tf.IndexedSlices) for i in given]
        first = given[sparse.index(False) if False in sparse else 0]
        marked = tf.where(check.gradients, gradients[first], float("nan"))
        gradients = [*gradients[:first], marked, *gradients[first + 1 :]]

    def apply(gradients: Sequence[Tensor | None]) -> None:
        optimizer.apply(gradients, variables)

    def apply_on_all(
        strategy: tf.distribute.Strategy, gradients: Sequence[Tensor | None]
    ) -> None:
        if scaled or tf.distribute.has_strategy():
            strategy.extended.call_for_each_replica(apply, args=(gradients,))
        else:
            # Not as a single replica: the reduction of gradients in Keras would make
            # TensorFlow keep the whole graph in memory.
            apply(gradients)

    def apply_where_finite(
        strategy: tf.distribute.Strategy,
        gradients: Sequence[Tensor | None],
        applies: Tensor,
    ) -> None:
        # Replicas can synchronise only in a branch that all of them take together.
        applies = strategy.experimental_local_results(applies)[0]
        tf.cond(applies, lambda: apply_on_all(strategy, gradients), lambda: None)

    tf.distribute.get_replica_context().merge_call(
        apply_where_finite, args=(gradients, check.applies(optimizer))
    )


def _dense_sum(
    self: keras.Model, gradients: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """Return the dense gradients of all replicas, if their magnitudes are logged."""
    if not self._sections:
        return gradients
    # A sparse gradient of an embedding may have several rows for one word.
    found = [tf.convert_to_tensor(g) for g in gradients if g is not None]
    if _replicas() > 1:
        found = tf.distribute.get_replica_context().all_reduce("SUM", found)
    dense = iter(found)
    return [None if gradient is None else next(dense) for gradient in gradients]


def _check_scope(variables: Sequence[keras.Variable]) -> None:
    """Refuse weights that replicas do not share, for which Keras has no message."""
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return
    outside = [
        variable.path
        for variable in variables
        if not strategy.extended.variable_created_in_scope(variable.value)
    ]
    if outside:
        raise ValueError(
            f"The wrapper was created in the scope of {type(strategy).__name__}, but "
            f"{len(outside)} of its {len(variables)} trainable weights were not. "
            f"Received, among others: {outside[0]!r}. Expected: a base that is built "
            "or loaded within `with strategy.scope():`, too."
        )


def _logs(
    self: keras.Model,
    step: Step,
    check: FiniteCheck | None = None,
    magnitudes: dict[str, Tensor] | None = None,
) -> Logs:
    # Keras divides losses by the number of replicas; the logs show the mean over all.
    return self._update_logs(step, check, magnitudes, replicas=_replicas())


def _replicas() -> int:
    return tf.distribute.get_strategy().num_replicas_in_sync
