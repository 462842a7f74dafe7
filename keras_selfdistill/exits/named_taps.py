"""Taps given by name: their symbolic tensors, and errors about them."""

import itertools
import numbers
import re
from collections.abc import Mapping, Sequence

import keras

from keras_selfdistill.graph.flatten import FlatModel
from keras_selfdistill.graph.nodes import ancestors
from keras_selfdistill.utils.config import did_you_mean
from keras_selfdistill.utils.type_aliases import SymbolicTensor, TapsLike


def has_no_taps(taps: TapsLike) -> bool:
    """Return whether a wrapper has no taps: the number 0, or an empty list.

    Example:
        >>> [has_no_taps(taps) for taps in (0, [], 1, ["conv"], "auto", False)]
        [True, True, False, False, False, False]
    """
    if isinstance(taps, (list, tuple)):
        return not taps
    return (
        not isinstance(taps, bool) and isinstance(taps, numbers.Integral) and not taps
    )


def named_taps(
    flat: FlatModel, feature: SymbolicTensor, names: Sequence[str]
) -> dict[str, SymbolicTensor]:
    """Return the symbolic outputs of named layers, shallow to deep.

    Args:
        flat: The flattened base.
        feature: Last feature of the base; every tap must lead to it.
        names: Names in `flat.calls`, from shallow to deep.

    Raises:
        ValueError: A name is unknown, repeated, or ambiguous because the layer is
            called several times; a tap does not lead to the last feature; or the taps
            are out of order or on parallel branches.
        TypeError: A name is not a string.

    Example:
        >>> import keras
        >>> from keras_selfdistill.graph.flatten import flatten
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


def _check_name(flat: FlatModel, name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(
            f"`taps` must be layer names or a number. Received: {name!r} of type "
            f"{type(name).__name__}. Expected: the layer's name, e.g. layer.name."
        )
    if name in flat.calls:
        return
    calls = [call for call in flat.calls if re.sub(r"@\d+", "", call) == name]
    if calls:
        raise ValueError(
            f"The layer is called {len(calls)} times, so its name is ambiguous. "
            f"Received: tap {name!r}. Expected one of {calls}."
        )
    inside = [call for call in flat.calls if call.startswith(f"{name}/")]
    if inside:
        raise ValueError(
            f"A nested model is tapped at one of its layers. Received: tap {name!r}. "
            f"Expected, e.g., {inside[-1]!r}."
        )
    ending = [call for call in flat.calls if call.endswith(f"/{name}")]
    hint = f" Did you mean {ending[0]!r}?" if ending else ""
    raise ValueError(
        f"No layer has this name. Received: tap {name!r}. Expected: the name of a "
        f"layer of model {flat.model.name!r}; prefix a layer of a nested model with "
        f"that model's name: 'backbone/layer'."
        f"{hint or did_you_mean(name, flat.calls)} List all names by "
        "[layer.name for layer in model.layers]."
    )


def _check_path(
    base: keras.Model, feature: SymbolicTensor, taps: Mapping[str, SymbolicTensor]
) -> None:
    leads = ancestors(feature) - {id(feature)}
    for name, tensor in taps.items():
        if id(tensor) not in leads:
            raise ValueError(
                f"A tap must lie before the last feature, which the last layer reads. "
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
                "are on parallel branches. Tap where branches are joined, e.g. the "
                "output of a block."
            )
