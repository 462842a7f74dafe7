"""Mean teacher: a moving average of the base teaches every exit."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import ops

from keras_selfdistill.losses.soft_target import soft_target_divergence
from keras_selfdistill.recipes.fields import check_share
from keras_selfdistill.recipes.own_terms.all_exits import AllExits
from keras_selfdistill.recipes.own_terms.copied_base import CopiedBase
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.schedules import PerExit, Scalar
from keras_selfdistill.utils.type_aliases import (
    ExitTensors,
    Labels,
    Tensor,
    TensorStructure,
)


class MeanNetwork(CopiedBase):
    """The logits of a base with moving averages of its weights.

    Args:
        base: The base, which is copied.

    Raises:
        ValueError: A weight of the base has too few digits to be averaged.

    Example:
        >>> base = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> mean = MeanNetwork(base)
        >>> mean.follow(0.9)
        >>> base.set_weights([weight + 1.0 for weight in base.get_weights()])
        >>> mean.follow(0.9)  # The mean of the two.
        >>> ops.convert_to_numpy(mean.copied.weights[1]).tolist()
        [0.5, 0.5, 0.5]
    """

    def __init__(self, base: keras.Model):
        coarse = [w.path for w in base.weights if w.dtype in ("float16", "bfloat16")]
        if coarse:
            raise ValueError(
                "MeanTeacher averages weights, whose steps half precision rounds away. "
                f"Received: a base with {len(coarse)} such weights, among them "
                f"{coarse[0]!r}. Expected: weights in float32, as those of dtype "
                "policy 'mixed_bfloat16'."
            )
        super().__init__(base, recipe="MeanTeacher", name=f"mean_{base.name}")
        # In a plain object: the weights of the base are not the average's to freeze.
        self._followed = types.SimpleNamespace(base=base)
        self.steps = self.add_weight(
            name="steps", initializer="zeros", aggregation="only_first_replica"
        )

    def follow(self, decay: float | Tensor) -> None:
        """Move the averages towards the weights that the base has now.

        Args:
            decay: Share of the past, once the mean of all steps gives it as much.
        """
        # The first time, the base is all there is.
        decay = ops.minimum(1.0 - 1.0 / (self.steps + 1.0), decay)
        pairs = zip(self.copied.weights, self._followed.base.weights, strict=True)
        for mean, weight in pairs:
            now = ops.stop_gradient(weight.value)
            if keras.backend.is_float_dtype(weight.dtype):
                share = ops.cast(decay, weight.dtype)
                now = share * mean.value + (1.0 - share) * now
            mean.assign(now)
        self.steps.assign_add(1.0)


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanTeacher(AllExits):
    """Every exit also learns from a moving average of the base.

    *Mean teachers are better role models* (Tarvainen & Valpola, NIPS 2017, arXiv
    1703.01780), with exits. Loss of each exit, the final one included: `label loss + w
    · T² · KL(mean ‖ exit)`, where `mean` is the prediction of the base with averaged
    weights. The second term is logged as `mean_teacher_loss`. With `taps=0` there is
    only the final exit, and this is the paper's method with its labelled data.

    Before each training step the averages become `d · average + (1 − d) · weights`,
    with `d = min(1 − 1 / (n + 1), decay)` in step n = 0, 1, …: first the mean of all
    steps, as in the authors' code. Evaluation and steps that are not finite change
    nothing. With gradient accumulation each batch is a step. The wrapper has the
    averaged base as `teacher`; the heads are not averaged.

    Differences from the paper: it adds unlabelled data; its teacher sees another
    augmentation of the batch, in training mode with its own batch statistics. Here the
    teacher predicts the batch itself in inference mode, and moving statistics, such as
    those of batch normalisation, are averaged like the weights. A step costs another
    forward pass of the base.

    The divergence is that of the authors' code for ImageNet, the decay its default. Its
    weight is 10 (`--consistency=10 --consistency-type=kl`), to which it rises from
    about 0 during the first five epochs: pass
    `mean_weight=keras.optimizers.schedules.PolynomialDecay(0.0, steps, 10.0)`, a
    straight line for its `exp(−5 · (1 − t)²)`. Without that rise so great a weight
    holds the base near its average of the past, hence 1 by default.

    With `alpha` above 0, the final exit teaches the others as well, as in `BYOT`.

    Args:
        mean_weight: Weight of the soft targets of the average, w, or one for each exit
            and the final one.
        decay: Share of the past in the averages of a step, in [0, 1].
        temperature: Positive temperature of the soft targets, T.
        alpha: Share of the final exit's soft targets, or one for each exit but the
            final one.
        hint_weight: Weight of the hint, β, as in `BYOT`.
        **fields: Fields of `BYOT`.

    Raises:
        ValueError: A field is out of its range or not finite; a wrapper's task is not
            multiclass; its base cannot be cloned or has weights in half precision.

    Example:
        >>> MeanTeacher(mean_weight=[1.0, 10.0]).per_exit(
        ...     "mean_weight", ["exit_1", "final"])
        {'exit_1': 1.0, 'final': 10.0}
    """

    extra_term_names: ClassVar[tuple[str, ...]] = ("mean_teacher_loss",)
    term_weights: ClassVar[tuple[str, ...]] = ("mean_weight",)

    mean_weight: PerExit = 1.0
    decay: Scalar = 0.999
    temperature: Scalar = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        check_share(self, "decay")

    def make_state(self, base: keras.Model) -> keras.Layer:
        """Return a copy of the base, which follows it."""
        return MeanNetwork(base)

    def extra_terms(
        self,
        labels: Labels,
        exits: Mapping[str, ExitTensors],
        state: Any,
        *,
        inputs: TensorStructure,
        training: bool,
    ) -> dict[str, Tensor]:
        """Return the divergence from the averaged base, summed over the exits."""
        if training:
            state.follow(self.decay)
        teacher = ops.stop_gradient(ops.cast(state(inputs), "float32"))
        weights = self.per_exit("mean_weight", list(exits))
        losses = [
            weights[name]
            * soft_target_divergence(
                teacher, exit_tensors["logits"], temperature=self.temperature
            )
            for name, exit_tensors in exits.items()
        ]
        return {"mean_teacher_loss": sum(losses)}
