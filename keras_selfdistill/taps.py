"""Taps: which tensors of a base feed exits, given by name or placed automatically."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from keras import layers

from keras_selfdistill.config import did_you_mean
from keras_selfdistill.flat import FlatModel, original
from keras_selfdistill.graph import ancestors, graph_nodes

# What may follow the operation that ends a block and still belongs to the block.
_FINISHING = (
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.PReLU,
    layers.ELU,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
)
_NORMALIZATION = (
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.GroupNormalization,
)


def named_taps(flat: FlatModel, feature: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the symbolic outputs of named layers, shallow to deep.

    Args:
        flat: The base, spread out.
        feature: Its last feature; every tap must lead to it.
        names: Names in `flat.calls`, in the order in which the data passes them.

    Raises:
        ValueError: A name is unknown or given twice, does not say which call of a layer
            is meant, lies behind the last feature, or the taps are out of order or on
            branches that do not lead to each other.
        TypeError: A name is not a string.

    Example:
        >>> import keras
        >>> from keras_selfdistill.flat import flatten
        >>> hidden = keras.layers.Dense(3, name="hidden")
        >>> model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(2)])
        >>> flat = flatten(model)
        >>> named_taps(flat, flat.model.outputs[0], ["hidden"])["hidden"].shape
        (None, 3)
    """
    for name in names:
        _check_name(flat, name)
    repeated = {name for name in names if list(names).count(name) > 1}
    if repeated:
        raise ValueError(
            f"Every tap must be named once. Received: taps={list(names)}, in which "
            f"{sorted(repeated)} are repeated. Remove the repeated names."
        )
    taps = {name: flat.calls[name] for name in names}
    _check_path(flat.model, feature, taps)
    return taps


def placed_taps(
    flat: FlatModel, feature: Any, costs: dict[int, int], exits: int
) -> dict[str, Any]:
    """Place taps at the ends of blocks, at nearly equal shares of the multiply-adds.

    A block ends where one tensor alone carries all that the rest of the base reads.
    Tap i of k is the block end nearest to the share i / (k + 1).

    Args:
        flat: The base, spread out.
        feature: Its last feature.
        costs: Multiply-adds of each call, by the id of its node's first output.
        exits: How many taps to place.

    Raises:
        ValueError: `exits` is below 1 or above the number of block ends.

    Example:
        >>> import keras
        >>> from keras_selfdistill.flat import flatten
        >>> stack = [keras.layers.Dense(8, name=f"dense_{i}") for i in range(4)]
        >>> model = keras.Sequential([keras.Input((8,)), *stack])
        >>> costs = {id(layer.output): 64 for layer in stack}
        >>> list(placed_taps(flatten(model), model.outputs[0], costs, 1))
        ['dense_1']
    """
    if exits < 1:
        raise ValueError(
            f"`taps` must hold at least one tap. Received: taps={exits}. Expected: a "
            "number of exits such as 3, or a list of layer names."
        )
    ends = block_ends(flat, feature, costs)
    if exits > len(ends):
        raise ValueError(
            f"The base has too few block ends for that many exits. Received: "
            f"taps={exits}. Expected: at most {len(ends)} for model "
            f"{flat.model.name!r}, at {[name for name, _, _ in ends]}."
        )
    chosen: list[tuple[str, Any, float]] = []
    for i in range(exits):
        start = ends.index(chosen[-1]) + 1 if chosen else 0
        # Leave enough block ends for the taps still to come.
        free = ends[start : len(ends) - (exits - 1 - i)]
        target = (i + 1) / (exits + 1)
        chosen.append(min(free, key=lambda end: abs(end[2] - target)))
    return {name: tensor for name, tensor, _ in chosen}


def block_ends(
    flat: FlatModel, feature: Any, costs: dict[int, int]
) -> list[tuple[str, Any, float]]:
    """Return (layer name, tensor, share of multiply-adds) at the end of every block.

    Left out are the ends before any and after all multiply-adds: an exit there would
    have nothing to read, or what the final exit reads.
    """
    nodes = graph_nodes(flat.model.inputs, feature)
    done = list(itertools.accumulate(costs.get(id(n.outputs[0]), 0) for n in nodes))
    total = sum(costs.values())
    ends: list[tuple[Any, int]] = []  # (node, multiply-adds so far)
    unfinished = True
    for position in _single_tensor_cuts(nodes):
        node, so_far = nodes[position], done[position]
        if not 0 < so_far < done[-1]:
            continue
        if ends and ends[-1][1] == so_far:
            # A later cut at the same cost: the same block, if it only finishes it.
            if unfinished and _finishes(node, costs.get(id(ends[-1][0].outputs[0]))):
                ends[-1] = (node, so_far)
            else:
                unfinished = False
            continue
        ends.append((node, so_far))
        unfinished = True
    names = {id(tensor): name for name, tensor in flat.calls.items()}
    return [
        (names[id(node.outputs[0])], node.outputs[0], so_far / total)
        for node, so_far in ends
    ]


def _finishes(node, cost_before):
    if isinstance(original(node.operation), _NORMALIZATION):
        # Behind a kernel it closes the block, behind a sum it opens the next one.
        return bool(cost_before)
    return isinstance(original(node.operation), _FINISHING)


def _single_tensor_cuts(nodes):
    """Yield each position after which one tensor alone is still to be read."""
    last_use = {}
    for position, node in enumerate(nodes):
        for tensor in node.input_tensors:
            last_use[id(tensor)] = position
    alive: set[int] = set()
    for position, node in enumerate(nodes):
        alive.update(id(tensor) for tensor in node.outputs if id(tensor) in last_use)
        alive = {tensor for tensor in alive if last_use[tensor] > position}
        if alive == {id(node.outputs[0])}:
            yield position


def _check_name(flat, name):
    if not isinstance(name, str):
        raise TypeError(
            f"`taps` must be layer names or a number. Received: {name!r} of type "
            f"{type(name).__name__}. Pass the layer's name, e.g. layer.name."
        )
    if name in flat.calls:
        return
    calls = [call for call in flat.calls if re.sub(r"@\d+", "", call) == name]
    if calls:
        raise ValueError(
            f"The layer is called {len(calls)} times, so its name does not say which "
            f"output to tap. Received: tap {name!r}. Expected one of {calls}."
        )
    inside = [call for call in flat.calls if call.startswith(f"{name}/")]
    if inside:
        raise ValueError(
            f"A nested model is tapped at a layer inside it. Received: tap {name!r}. "
            f"Expected, say, {inside[-1]!r}."
        )
    ending = [call for call in flat.calls if call.endswith(f"/{name}")]
    hint = f" Did you mean {ending[0]!r}?" if ending else ""
    raise ValueError(
        f"No layer has this name. Received: tap {name!r}. Expected: the name of a "
        f"layer of model {flat.model.name!r}, in a nested model with the model's name "
        f"before it: 'backbone/layer'.{hint or did_you_mean(name, flat.calls)} All "
        "names: [layer.name for layer in model.layers]."
    )


def _check_path(base, feature, taps):
    leads = ancestors(feature) - {id(feature)}
    for name, tensor in taps.items():
        if id(tensor) not in leads:
            raise ValueError(
                f"A tap must lie before the last feature, which the classifier reads. "
                f"Received: tap {name!r} of model {base.name!r}, which does not lead "
                "to it. Tap an earlier layer."
            )
    for (name, tensor), (deeper, deeper_tensor) in itertools.pairwise(taps.items()):
        if id(deeper_tensor) in ancestors(tensor):
            raise ValueError(
                f"Taps must go from shallow to deep. Received: {name!r} before "
                f"{deeper!r}, which is shallower. Swap them."
            )
        if id(tensor) not in ancestors(deeper_tensor):
            raise ValueError(
                f"Taps must lie on one path. Received: {name!r} and {deeper!r}, which "
                "are on branches beside each other. Tap where branches have joined, "
                "e.g. the output of a block."
            )
