"""Taps given by name: which tensors of a base feed exits, and errors about them."""

import itertools
from collections.abc import Sequence
from typing import Any

from keras_selfdistill.config import did_you_mean
from keras_selfdistill.graph import ancestors, model_nodes


def named_taps(base: Any, feature: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the symbolic outputs of named layers, shallow to deep.

    Args:
        base: Functional model.
        feature: Its last feature; every tap must lead to it.
        names: Layer names in the order in which the data passes them.

    Raises:
        ValueError: A name is unknown or given twice, the layer lies behind the last
            feature or is called more than once, or the taps are out of order or on
            branches that do not lead to each other.
        TypeError: A name is not a string.

    Example:
        >>> import keras
        >>> hidden = keras.layers.Dense(3, name="hidden")
        >>> model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(2)])
        >>> named_taps(model, model.outputs[0], ["hidden"])["hidden"].shape
        (None, 3)
    """
    outputs: dict[str, list[Any]] = {}
    for node in model_nodes(base):
        outputs.setdefault(node.operation.name, []).append(node.outputs[0])
    for name in names:
        _check_name(base, name, outputs)
    repeated = {name for name in names if list(names).count(name) > 1}
    if repeated:
        raise ValueError(
            f"Every tap must be named once. Received: taps={list(names)}, in which "
            f"{sorted(repeated)} are repeated. Remove the repeated names."
        )
    taps = {name: outputs[name][0] for name in names}
    _check_path(base, feature, taps)
    return taps


def _check_name(base, name, outputs):
    if not isinstance(name, str):
        raise TypeError(
            f"`taps` must be layer names or a number. Received: {name!r} of type "
            f"{type(name).__name__}. Pass the layer's name, e.g. layer.name."
        )
    if name not in outputs:
        raise ValueError(
            f"No layer has this name. Received: tap {name!r}. Expected: the name of a "
            f"layer of model {base.name!r}.{did_you_mean(name, outputs)} All names: "
            "[layer.name for layer in model.layers]."
        )
    if len(outputs[name]) > 1:
        raise ValueError(
            f"The layer is called {len(outputs[name])} times, so its name does not "
            f"say which output to tap. Received: tap {name!r}. Tap a layer that is "
            "called once."
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
