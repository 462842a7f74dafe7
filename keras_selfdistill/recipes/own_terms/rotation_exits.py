"""Rotation exits: each predicts the class and by how much the image was turned."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import keras
from keras import ops

from keras_selfdistill.graph.flatten import flatten
from keras_selfdistill.graph.layout import layer_data_format
from keras_selfdistill.graph.nodes import model_nodes
from keras_selfdistill.losses.labels import as_one_hot
from keras_selfdistill.recipes.base import TermWeights
from keras_selfdistill.recipes.exit_losses.byot import BYOT
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.schedules import PerExit
from keras_selfdistill.utils.type_aliases import (
    ExitTensors,
    Labels,
    Tensor,
    TensorStructure,
)

ROTATIONS = 4  # By 0, 90, 180 and 270 degrees.


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class RotationExits(BYOT):
    """Exits that predict the class and the rotation of an image, HSAKD's Teacher*.

    *Hierarchical Self-supervised Augmented Knowledge Distillation* (Yang et al., IJCAI
    2021, arXiv 2107.13715): the training of the network that its public code calls
    Teacher*. Every image is shown at 0, 90, 180 and 270 degrees. An exit has a logit
    for each class and rotation; its loss is the mean over the four views of the
    crossentropy of this joint distribution, `J = −log p(class, rotation)`. The final
    exit has no rotations; its loss is the label loss of the image as it is.

    An exit's prediction is the marginal of the class, `p(class) = Σ p(class,
    rotation)` over rotations, of the one image it gets: its logit of a class is the
    logsumexp of the four. So exits are evaluated, deployed and left early like others.

    All four views are one batch, also to batch normalisation, as in the authors' code:
    a step takes four times the computation and memory, and so does `evaluate`;
    predictions cost what they do with other recipes.

    The authors' exits repeat the base's stages; here they have the separable head. For
    the class that an exit predicts, their code sums logits, not probabilities, and
    tests it on all four views. It tests the final exit on one view, the image as it is.

    With `alpha` above 0, the final exit teaches the marginals as in `BYOT`: the loss of
    an exit is `(1 − α) · J + α · T² · KL(final ‖ exit) + β · hint`.

    `J` reads the labels, soft or mixed ones too, but not what the loss of `compile`
    makes of them, such as label smoothing. `LabelWarmUp` leaves it out, as it does
    every term but the label loss.

    Args:
        alpha: Share of the soft targets, α in [0, 1], or one for each exit but the
            final one; 0 in the authors' code.
        hint_weight: Weight of the hint, β; 0 in the authors' code.
        **fields: Fields of `BYOT`.

    Raises:
        ValueError: A field is out of its range or not finite; a wrapper has no taps;
            its base does not predict one class, or does not read one square image of
            known size, channels last.

    Example:
        >>> RotationExits(alpha=0.25).weights(["exit_1", "final"])["exit_1"]
        TermWeights(label=0.0, soft_target=0.25, hint=0.0)
    """

    head: ClassVar[str] = "separable"
    extra_term_names: ClassVar[tuple[str, ...]] = ("joint_loss",)
    reads_labels: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("multiclass",)
    logits_per_class: ClassVar[int] = ROTATIONS

    alpha: PerExit = 0.0
    hint_weight: PerExit = 0.0

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit."""
        *shallow, _ = exit_names
        if not shallow:
            raise ValueError(
                "RotationExits trains exits at taps, and there is none. Received: "
                "taps=0. Expected: a number of taps such as 3, or names of layers."
            )
        weights = super().weights(exit_names)
        # Their labels are in the joint loss.
        labels = {
            name: dataclasses.replace(weights[name], label=0.0) for name in shallow
        }
        return weights | labels

    def make_state(self, base: keras.Model) -> None:
        """Check that the images of a base can be turned; nothing is remembered."""
        shapes = [tuple(each.shape) for each in base.inputs]
        shape = shapes[0]
        square = len(shape) == 4 and shape[1] is not None and shape[1] == shape[2]
        if len(shapes) != 1 or not square or _reads_channels_first(base):
            raise ValueError(
                "RotationExits turns images. Received: a base whose inputs have shape "
                f"{', '.join(map(str, shapes))}. Expected: one input of shape (batch, "
                "size, size, channels), with a known size and channels last."
            )

    def views(
        self, inputs: TensorStructure, *, training: bool
    ) -> list[TensorStructure]:
        """Return the images turned by 0, 90, 180 and 270 degrees."""

        def turned(number: int) -> TensorStructure:
            # The one image may be in a list or dict.
            return keras.tree.map_structure(
                lambda images: ops.rot90(images, number, axes=(1, 2)), inputs
            )

        return [inputs, *(turned(number) for number in range(1, ROTATIONS))]

    def extra_terms(
        self,
        labels: Labels,
        exits: Mapping[str, ExitTensors],
        state: keras.Layer | None,
        *,
        inputs: TensorStructure,
        training: bool,
    ) -> dict[str, Tensor]:
        """Return the crossentropy of class and rotation, summed over the exits."""
        names = [name for name in exits if name != "final"]
        alpha = self.per_exit("alpha", names)
        losses = [_joint(labels, exits[name], 1.0 - alpha[name]) for name in names]
        return {"joint_loss": sum(losses)}


def _joint(labels: Labels, tensors: ExitTensors, weight: float | Tensor) -> Tensor:
    """Return the weighted crossentropy of class and rotation, a mean over the views."""
    joint = tensors["joint"]  # (batch, views, classes, rotations)
    # View number k is the image turned k times.
    right = ops.stack([joint[:, k, :, k] for k in range(ROTATIONS)], axis=1)
    surprisal = ops.logsumexp(joint, axis=(2, 3))[..., None] - right
    rows = as_one_hot(labels, right[:, 0])
    loss = ops.mean(ops.sum(rows[:, None] * surprisal, axis=-1), axis=1)
    return ops.cast(weight, loss.dtype) * loss


def _reads_channels_first(base: keras.Model) -> bool:
    """Return whether the first layer with a data format reads channels first."""
    for node in model_nodes(flatten(base).model):
        found = layer_data_format(node.operation, 4)
        if found is not None or isinstance(node.operation, keras.layers.Permute):
            return found == "channels_first"
    return False
