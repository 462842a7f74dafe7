"""The loss of a batch: one forward pass through all exits, weighed by the recipe."""

import types
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_selfdistill.training.section_gradients import mean_magnitudes
from keras_selfdistill.utils.keras_internals import aggregate_additional_loss


class Step(NamedTuple):
    """What one batch gave, for the update and the logs."""

    loss: Any  # Scalar: the sum of the terms and of the base's own losses.
    terms: dict[str, Any]  # Scalar of each term, weighted.
    outputs: dict[str, Any]  # Every exit's output and the ensemble's.
    labels: Any
    sample_weight: Any


class BatchLoss(keras.Model):
    """The part of a `SelfDistiller` that computes what a step trains.

    It reads the graph of the exits, the external teacher, the objective, the step
    counter and the scale of distillation.
    """

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Return the total loss of a batch; override it to train something else.

        What it returns is what `fit` trains and logs as `loss`. The loss terms that are
        logged beside it are those of the one call of this method; of none or several,
        none are.

        Args:
            x: Inputs of the batch.
            y: Labels of the batch.
            y_pred: Output of every exit by name, as the model returned it. The loss
                compares features, too, which come from the same forward pass; without
                one, the exits run on `x`.
            sample_weight: `None` or shape `(batch,)`.
            training: Whether the model trains.

        Raises:
            ValueError: `y_pred` was changed, as features cannot be changed with it.

        Example:
            Train the final exit to be sure, beside the recipe:

            >>> import keras_selfdistill as ksd
            >>> class Sure(ksd.SelfDistiller):
            ...     def compute_loss(self, x, y, y_pred, sample_weight, training=True):
            ...         loss = super().compute_loss(
            ...             x, y, y_pred, sample_weight, training)
            ...         return loss - 0.1 * ops.mean(ops.max(y_pred["final"], axis=-1))
        """
        batch = self._batch.now
        if batch is None:
            batch = self._forward(x, training)
            loss, _ = self._recipe_loss(batch, y, sample_weight)
            if training:
                self._step.assign_add(1)
            return loss
        if y_pred is not None and not all(
            y_pred.get(name) is output for name, output in batch.outputs.items()
        ):
            raise ValueError(
                "compute_loss must be given the outputs as the model returned them. "
                "Received: a changed `y_pred`, which features and logits of the recipe "
                "would not follow. Expected: y_pred itself; add a term of what you "
                "made of it to what super().compute_loss returns."
            )
        loss, terms = self._recipe_loss(batch, y, sample_weight)
        batch.terms.append(terms)
        return loss

    def _run_exits(self, x, y, sample_weight, *, training) -> Step:
        """Run all exits once on a batch and compute the loss, on any backend."""
        # Before the exits run: batch normalisation would already have learned.
        self._objective.check_labels(y, self.base.outputs[0], sample_weight)
        batch = self._forward(x, training)
        self._batch.now = batch
        try:
            mode = {"training": training} if self._loss_takes_training else {}
            loss = self.compute_loss(x, y, dict(batch.outputs), sample_weight, **mode)
        finally:
            self._batch.now = None
        if loss is None or len(loss.shape):
            raise ValueError(
                f"{type(self).__name__}.compute_loss must return a scalar. Received: "
                f"{None if loss is None else f'shape {tuple(loss.shape)}'}. Take the "
                "mean over the batch."
            )
        if training:
            self._step.assign_add(1)
        terms = batch.terms[0] if len(batch.terms) == 1 else {}
        outputs = {**batch.outputs, "ensemble": batch.ensemble}
        return Step(loss, terms, outputs, y, sample_weight)

    def _forward(self, x, training):
        """Run everything that a batch's loss is computed from."""
        found = self.exit_graph.training_network(x, training=training)
        exits = found["exits"]
        external_logits = None
        if self._teacher is not None:
            external_logits = self._teacher(x, training=False)
        return types.SimpleNamespace(
            exits=exits,
            outputs={name: exits[name]["output"] for name in self.exit_names},
            ensemble=found["ensemble"],
            external_logits=external_logits,
            terms=[],  # One mapping for each call of `compute_loss`.
        )

    def _recipe_loss(self, batch, y, sample_weight):
        """Return the total loss of a batch that was run, and its terms."""
        terms = self._objective(
            y,
            batch.exits,
            sample_weight,
            step=self._step.value,
            distillation_scale=self._distillation_scale.value,
            external_logits=batch.external_logits,
        )
        if "distillation_loss" in terms:
            # A mean over the batch of one replica, as the base's own losses are sums.
            terms["distillation_loss"] = aggregate_additional_loss(
                self, terms["distillation_loss"]
            )
        # Keras scales the base's own losses for the number of replicas here.
        own_losses = [aggregate_additional_loss(self, loss) for loss in self.losses]
        return sum([*terms.values(), *own_losses]), terms

    def _gradient_magnitudes(self, gradients) -> dict[str, Any]:
        """Return what is to be logged of the gradients of the scaled loss."""
        if not self._sections:
            return {}
        scale = self.optimizer.scale_loss(ops.ones(()))
        return mean_magnitudes(
            self._sections, self.trainable_variables, gradients, scale
        )

    @property
    def losses(self) -> list[Any]:
        """The base's and the exits' own losses, not those of the external teacher."""
        found = super().losses
        if self._teacher is None:
            return found
        others = {id(loss) for loss in self._teacher.losses}
        return [loss for loss in found if id(loss) not in others]
