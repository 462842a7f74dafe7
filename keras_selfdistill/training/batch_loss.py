"""The loss of a batch: one forward pass of all exits, weighted by the recipe."""

import operator
import types
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras
from keras import ops

from keras_selfdistill.training.extra_terms import extra_terms
from keras_selfdistill.training.gradients.equilibrium import Multiply
from keras_selfdistill.training.gradients.section_gradients import mean_magnitudes
from keras_selfdistill.training.views import (
    as_one_batch,
    checked_views,
    first_view,
    views_of,
)
from keras_selfdistill.utils.keras_internals import aggregate_additional_loss
from keras_selfdistill.utils.type_aliases import Labels, Tensor, TensorStructure


class Step(NamedTuple):
    """Results of one batch, for the update and the logs.

    Args:
        loss: Total loss, a scalar: the sum of the terms and of the base's own losses.
        terms: Mapping of the names of loss terms to weighted scalars.
        outputs: Mapping of `ensemble` and the names of exits to outputs.
        labels: Labels of the batch.
        sample_weight: Sample weights of the batch, or `None`.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    outputs: dict[str, Tensor]
    labels: Labels
    sample_weight: Tensor | None


class BatchLoss(keras.Model):
    """The part of a `SelfDistiller` that computes the loss of a batch.

    It reads the graph of the exits, the recipe and its state, the external teacher, the
    objective, the gradients' equilibrium, the step counter and the scale of
    distillation.
    """

    def compute_loss(
        self,
        x: TensorStructure = None,
        y: Labels = None,
        y_pred: Mapping[str, Tensor] | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        """Return the total loss of a batch; override it to train another loss.

        `fit` minimises the returned loss and logs it as `loss`. Its terms are logged
        beside it if an override calls `super().compute_loss` exactly once.

        Args:
            x: Inputs of the batch.
            y: Labels of the batch.
            y_pred: Output of every exit by name, as the model returned it. The loss
                also compares features of the same forward pass; outside of a step, the
                exits run on `x`.
            sample_weight: Sample weights of shape `(batch,)`, or `None`.
            training: Whether the model is training.

        Raises:
            ValueError: `y_pred` is not what the model returned.

        Example:
            Add a term that increases the confidence of the final exit:

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
                "super().compute_loss needs the outputs as the model returned them, "
                "because the recipe also uses their logits and features. Received: "
                "a changed `y_pred`. Expected: the original `y_pred`; add terms of a "
                "changed one to the loss that super().compute_loss returns."
            )
        loss, terms = self._recipe_loss(batch, y, sample_weight)
        batch.terms.append(terms)
        return loss

    def run_exits(
        self,
        x: TensorStructure,
        y: Labels,
        sample_weight: Tensor | None,
        *,
        training: bool,
    ) -> Step:
        """Run all exits once on a batch and compute the loss, on any backend."""
        # Before the forward pass, which updates batch normalisation.
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

    def _forward(self, x: TensorStructure, training: bool) -> types.SimpleNamespace:
        """Run all exits and the external teacher on the inputs of a batch."""
        views = checked_views(self._recipe, x, training)
        found = self.exit_graph.training_network(as_one_batch(views), training=training)
        exits, of_views = found["exits"], found["exits"]
        ensemble = found["ensemble"]
        if len(views) > 1:
            of_views = views_of(exits, len(views))
            exits = first_view(exits, len(views))
            ensemble = first_view(ensemble, len(views))
        external_logits = None
        if self._teacher is not None:
            external_logits = self._teacher(x, training=False)
        return types.SimpleNamespace(
            exits=exits,
            exits_of_views=of_views,
            outputs={name: exits[name]["output"] for name in self.exit_names},
            ensemble=ensemble,
            external_logits=external_logits,
            inputs=x,
            training=training,
            terms=[],  # The terms of each call of `compute_loss`.
        )

    def _recipe_loss(
        self, batch: types.SimpleNamespace, y: Labels, sample_weight: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss of a batch after its forward pass, and its terms."""
        terms = self._objective(
            y,
            batch.exits,
            sample_weight,
            step=self._step.value,
            distillation_scale=self._distillation_scale.value,
            external_logits=batch.external_logits,
        )
        terms |= self._extra_terms(batch, y, sample_weight)
        if "distillation_loss" in terms:
            # A mean over the batch of one replica; scaled like the base's own losses.
            terms["distillation_loss"] = aggregate_additional_loss(
                self, terms["distillation_loss"]
            )
        # Keras scales the base's own losses for the number of replicas here.
        own_losses = [*self.losses]
        if self._equilibrium and batch.training:
            own_losses += self._equilibrium.undivided(self.trainable_variables)
        own_losses = [aggregate_additional_loss(self, loss) for loss in own_losses]
        return sum([*terms.values(), *own_losses]), terms

    def _extra_terms(
        self, batch: types.SimpleNamespace, y: Labels, sample_weight: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the recipe's own further terms of a batch."""
        if not self._recipe.extra_term_names:
            return {}
        found = extra_terms(
            self._recipe.at(self._step.value),
            y,
            batch.exits_of_views,
            self._recipe_state,
            output=batch.outputs["final"],
            inputs=batch.inputs,
            training=batch.training,
            sample_weight=sample_weight,
            label_loss=self._objective.label_loss,
        )
        scale = self._distillation_scale.value
        return {name: ops.cast(scale, v.dtype) * v for name, v in found.items()}

    def _in_equilibrium(
        self, gradients: Sequence[Tensor | None], multiply: Multiply = operator.mul
    ) -> Sequence[Tensor | None]:
        """Return the gradients of a step as the optimizer gets them."""
        if self._equilibrium is None:
            return gradients
        return self._equilibrium.divide(self.trainable_variables, gradients, multiply)

    def _gradient_magnitudes(
        self, gradients: Sequence[Tensor | None]
    ) -> dict[str, Tensor]:
        """Return the mean gradient of each section; empty if it is not logged."""
        if not self._sections:
            return {}
        scale = self.optimizer.scale_loss(ops.ones(()))
        return mean_magnitudes(
            self._sections, self.trainable_variables, gradients, scale
        )

    @property
    def losses(self) -> list[Tensor]:
        """The base's and the exits' own losses, not those of networks that teach."""
        found = super().losses
        networks = filter(None, (self._teacher, self._recipe_state))
        others = {id(loss) for network in networks for loss in network.losses}
        return [loss for loss in found if id(loss) not in others]
