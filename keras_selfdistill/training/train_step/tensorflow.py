"""One training step and one test step on TensorFlow."""

import keras
import tensorflow as tf

from keras_selfdistill.training.nonfinite import (
    DeferredUpdates,
    FiniteCheck,
    all_finite,
)


def train_step(self, data):
    """Update the weights with one batch and return the logs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    variables = self.trainable_variables
    _check_scope(variables)
    with tf.GradientTape() as tape:
        with DeferredUpdates.keeping(variables) as held:
            step = self._run_exits(x, y, sample_weight, training=True)
        loss = self.optimizer.scale_loss(step.loss)
    gradients = tape.gradient(loss, variables)
    verdict = _judge(step, held, gradients)
    # First, because applying gradients may change the factor on the loss.
    magnitudes = self._gradient_magnitudes(_dense_sum(self, gradients))
    held.assign(verdict.finite)
    if variables:
        _apply(self.optimizer, gradients, variables, verdict)
    return _logs(self, step, verdict, magnitudes)


def test_step(self, data):
    """Evaluate one batch and return the logs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    return _logs(self, self._run_exits(x, y, sample_weight, training=False))


def _judge(step, held, gradients):
    """Return a verdict that all replicas agree on."""
    values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    verdict = FiniteCheck(
        forward=all_finite([step.loss, *(value for _, value in held.updates)]),
        gradients=all_finite([value for value in values if value is not None]),
    )
    if _replicas() == 1:
        return verdict
    nonfinite = tf.cast(tf.logical_not(tf.stack(verdict)), "int32")
    context = tf.distribute.get_replica_context()
    return FiniteCheck(*tf.unstack(context.all_reduce("SUM", nonfinite) == 0))


def _apply(optimizer, gradients, variables, verdict):
    """Call the optimizer where the verdict lets it, also if replicas train together."""
    if not optimizer.built:  # Not in a branch of the graph.
        optimizer.build(variables)
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if _replicas() > 1 and scaled:
        # Keras asks one replica alone whether gradients are finite: tell it of others.
        # Not an embedding's, which would no longer hold a few rows alone.
        given = [i for i, g in enumerate(gradients) if g is not None]
        sparse = [isinstance(gradients[i], tf.IndexedSlices) for i in given]
        first = given[sparse.index(False) if False in sparse else 0]
        told = tf.where(verdict.gradients, gradients[first], float("nan"))
        gradients = [*gradients[:first], told, *gradients[first + 1 :]]

    def apply(gradients):
        optimizer.apply(gradients, variables)

    def apply_on_all(strategy, gradients):
        if scaled or tf.distribute.has_strategy():
            strategy.extended.call_for_each_replica(apply, args=(gradients,))
        else:
            # For itself, not as the one replica of many: reducing gradients, Keras has
            # TensorFlow keep the whole graph for good.
            apply(gradients)

    def apply_where_finite(strategy, gradients, applies):
        # A branch in which replicas meet must itself be one where they have met.
        applies = strategy.experimental_local_results(applies)[0]
        tf.cond(applies, lambda: apply_on_all(strategy, gradients), lambda: None)

    tf.distribute.get_replica_context().merge_call(
        apply_where_finite, args=(gradients, verdict.applies(optimizer))
    )


def _dense_sum(self, gradients):
    """Return gradients whose magnitudes are to be logged, over all replicas."""
    if not self._sections:
        return gradients
    # An embedding's holds a row for each word of the batch, some of them twice.
    found = [tf.convert_to_tensor(g) for g in gradients if g is not None]
    if _replicas() > 1:
        found = tf.distribute.get_replica_context().all_reduce("SUM", found)
    dense = iter(found)
    return [None if gradient is None else next(dense) for gradient in gradients]


def _check_scope(variables):
    """Refuse weights that the replicas do not share: Keras' own error has no words."""
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
            f"The wrapper was made in the scope of {type(strategy).__name__}, but "
            f"{len(outside)} of its {len(variables)} trainable weights were not. "
            f"Received, among others: {outside[0]!r}. Build or load the base, too, "
            "inside of `with strategy.scope():`."
        )


def _logs(self, step, verdict=None, magnitudes=None):
    # Keras' losses divide by the number of replicas; the logs show the whole mean.
    return self._update_logs(step, verdict, magnitudes, replicas=_replicas())


def _replicas():
    return tf.distribute.get_strategy().num_replicas_in_sync
