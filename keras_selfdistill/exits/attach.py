"""Attach exits to a base: from taps and a head to each exit's symbolic tensors."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence

import keras
from absl import logging

from keras_selfdistill.exits.exit_tensors import (
    Exit,
    check_task,
    ensemble_output,
    exits_of,
)
from keras_selfdistill.exits.head_budget import features_within_budget
from keras_selfdistill.exits.named_taps import has_no_taps, named_taps
from keras_selfdistill.exits.placement import Tap, flatten_to_place, placed_taps
from keras_selfdistill.graph.ends.base_end import BaseEnd, find_base_end
from keras_selfdistill.graph.flatten import FlatModel, flatten
from keras_selfdistill.graph.layout import dtype_policy
from keras_selfdistill.graph.nodes import (
    ancestors,
    check_functional,
    input_structure,
    producer,
    unrecorded,
)
from keras_selfdistill.graph.task import Task
from keras_selfdistill.heads import registry
from keras_selfdistill.heads.base import Head, Target
from keras_selfdistill.recipes.base import Recipe
from keras_selfdistill.utils.type_aliases import (
    SymbolicTensor,
    TapsLike,
    TensorStructure,
)


@dataclasses.dataclass(frozen=True)
class ExitGraph:
    """A base with exits.

    Args:
        base: The user's model.
        flat: The base with its nested models flattened.
        taps: Names of the tapped layers, shallow to deep.
        head: Head of the exits.
        task: Task of the base.
        exits: The exits by name, shallow to deep; the last one is `final`.
        ensemble: Output of the ensemble: the base's activation of the mean of all
            exits' logits.
        training_network: Model of all outputs that training reads: for every exit
            `{"output": …, "logits": …, "feature": …, "hint": …}`, maybe with `"joint"`,
            and the ensemble's output. The final exit's may come from a `PreActivation`
            layer, which has no weights of its own, so that the base's last layer runs
            once.
        dtype_policy: Dtype policy of the deepest tap.
    """

    base: keras.Model
    flat: FlatModel
    taps: tuple[str, ...]
    head: Head
    task: Task
    exits: dict[str, Exit]
    ensemble: SymbolicTensor
    training_network: keras.Model
    dtype_policy: keras.DTypePolicy

    @property
    def outputs(self) -> dict[str, SymbolicTensor]:
        """Every exit's output; that of the final exit is the base's own."""
        found = {name: each.output for name, each in self.exits.items()}
        return {**found, "final": self.flat.model.outputs[0]}

    @property
    def inputs(self) -> TensorStructure:
        """The base's inputs, in the structure that the base expects."""
        return input_structure(self.base)

    def adapters(self) -> list[keras.Layer]:
        """Return the layers that adapt features to the teacher's, for the hint loss."""
        return [
            producer(each.hint).operation
            for each in self.exits.values()
            if each.hint is not each.feature
        ]

    def model(self, output: SymbolicTensor, name: str) -> keras.Model:
        """Return a functional model of only the layers that a symbolic output needs."""
        needed = ancestors(output)
        inputs = [tensor for tensor in self.base.inputs if id(tensor) in needed]
        if len(inputs) == len(self.base.inputs):
            return keras.Model(self.inputs, output, name=name)
        return keras.Model(inputs[0] if len(inputs) == 1 else inputs, output, name=name)


def attach_exits(
    base: keras.Model,
    taps: int | str | Sequence[str | Tap],
    head: Head | None,
    recipe: Recipe,
    task: str | None = None,
) -> ExitGraph:
    """Tap a base, attach a head to every tap, and return the exits.

    The base is not changed.

    Args:
        base: Functional or built Sequential classifier.
        taps: Layer names or `Tap`s from shallow to deep, or a number of exits to place,
            or `"auto"`. With none, the final exit is the only one.
        head: Head of all exits. `None` for the recipe's own, narrowed if it would cost
            too much, or replaced by one that fits the taps if it does not.
        recipe: Recipe that chooses which features are adapted for the hint.
        task: Task of the base, if it is ambiguous.

    Raises:
        TypeError: The base is not a functional model, or `taps` has another type.
        ValueError: The end of the base is unknown, a tap is invalid, a layer of the
            base has a name that exits use, or the head does not fit a tap.
    """
    check_functional(base)
    if _are_placed(taps):
        flat = flatten_to_place(base)
    else:
        flat = flatten(base, _tap_names(taps))
    with unrecorded(flat.model):
        return _attach(base, flat, find_base_end(flat.model, task), taps, head, recipe)


def _attach(
    base: keras.Model,
    flat: FlatModel,
    end: BaseEnd,
    taps: TapsLike,
    head: Head | None,
    recipe: Recipe,
) -> ExitGraph:
    check_task(recipe, base, end.task)
    chosen = _choose_taps(flat, end, taps)
    names = exit_names(len(chosen))
    _check_names(flat.model, names)
    by_exit = dict(zip(names[:-1], chosen.values(), strict=True))
    target = head_target(end, flat.calls)
    features: dict[str, SymbolicTensor] = {}
    if not chosen:
        head = head or registry.get(recipe.head)
    elif head is None:
        own = registry.head_for_taps(recipe.head, list(chosen.values()), target)
        head, features = features_within_budget(
            flat.model, own, by_exit, target, end.task.units * recipe.logits_per_class
        )
    else:
        features = head.features(by_exit, target)
    exits = exits_of(features, end, head, recipe)
    ensemble = ensemble_output(exits, end.activation)
    tensors = {name: each.tensors() for name, each in exits.items()}
    network = keras.Model(
        input_structure(base), {"exits": tensors, "ensemble": ensemble}
    )
    policy = dtype_policy([*chosen.values()][-1]) if chosen else base.dtype_policy
    return ExitGraph(
        base, flat, tuple(chosen), head, end.task, exits, ensemble, network, policy
    )


def exit_names(taps: int) -> list[str]:
    """Return the names of the exits at the taps and the final one, shallow to deep.

    Example:
        >>> exit_names(2)
        ['exit_1', 'exit_2', 'final']
    """
    digits = len(str(taps))
    return [f"exit_{i:0{digits}d}" for i in range(1, taps + 1)] + ["final"]


def _are_placed(taps: TapsLike) -> bool:
    number = isinstance(taps, numbers.Integral) and not isinstance(taps, bool)
    return number or (isinstance(taps, str) and taps == "auto")


def _choose_taps(
    flat: FlatModel, end: BaseEnd, taps: TapsLike
) -> dict[str, SymbolicTensor]:
    if has_no_taps(taps):
        return {}
    if _are_placed(taps):
        placed = placed_taps(flat, end, taps)
        logging.info("Exits of %s: %s", flat.model.name, [each.name for each in placed])
        return {each.name: each.tensor for each in placed}
    if not isinstance(taps, (list, tuple)):
        calls = list(flat.calls)
        raise TypeError(
            "`taps` must be a list of layer names, a number or 'auto'. Received: "
            f"taps={taps!r} of type {type(taps).__name__}. Expected, e.g., taps=3 or "
            f"taps=[{(taps if taps in calls else calls[len(calls) // 2])!r}]."
        )
    return named_taps(flat, end.feature, _tap_names(taps))


def _tap_names(taps: TapsLike) -> list[str]:
    """Return the names of the taps; `_choose_taps` checks their types."""
    given = taps if isinstance(taps, (list, tuple)) else ()
    return [tap.name if isinstance(tap, Tap) else tap for tap in given]


def head_target(end: BaseEnd, calls: Mapping[str, SymbolicTensor]) -> Target:
    """Return what heads of a flattened base's exits lead to.

    Args:
        end: The end of the base.
        calls: Symbolic outputs by the names of their layers.
    """
    mask = calls.get("padding_mask")
    channels_last = end.data_format == "channels_last"
    shape = tuple(end.last_spatial.shape) if end.last_spatial is not None else ()
    return Target(
        width=end.feature.shape[-1],
        spatial_shape=shape[1:-1] if channels_last else shape[2:],
        channels=shape[-1 if channels_last else 1] if shape else end.feature.shape[-1],
        data_format=end.data_format,
        spatial=end.last_spatial,
        positions=tuple(end.feature.shape[1:-1]),
        padding_mask=mask if mask is not None and len(mask.shape) == 2 else None,
    )


def _check_names(base: keras.Model, names: Sequence[str]) -> None:
    taken = {
        layer.name
        for layer in base.layers
        for name in [*names[:-1], "ensemble"]
        if layer.name == name or layer.name.startswith(f"{name}_")
    }
    if taken:
        raise ValueError(
            f"Layers of the base have names that the exits use. Received: "
            f"{sorted(taken)} in model {base.name!r}. Expected: other names. Rename "
            "the layers; to wrap a model that has exits already, wrap its "
            "final_model()."
        )
