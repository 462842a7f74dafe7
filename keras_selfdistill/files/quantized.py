"""Layers of exits that were quantised: what a config keeps of that, and doing it again.

The config of a base describes its quantised layers itself. Those of the exits are made
anew by their heads, not quantised, before their saved weights are loaded.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_selfdistill.utils.keras_internals import flatten_layers

_MODES = ("int8", "int4", "float8")  # Others need data when a layer is quantised.


def quantizations(layers: Iterable[keras.Layer]) -> dict[str, Any]:
    """Return how layers were quantised, as a config can hold it.

    Args:
        layers: Layers, quantised or not.

    Returns:
        The serialised `keras.quantizers.QuantizationConfig` of each that was quantised,
        by name; `"name/1"` is the first layer inside of layer `"name"`.

    Raises:
        ValueError: One was quantised with data, which cannot be done again.

    Example:
        >>> dense = keras.layers.Dense(2, name="exit_1_logits")
        >>> dense.build((None, 4))
        >>> dense.quantize("int8")
        >>> quantizations([dense])["exit_1_logits"]["class_name"]
        'Int8QuantizationConfig'
    """
    found = {}
    for name, layer in _by_name(layers).items():
        mode = layer.quantization_mode
        if mode is None:
            continue
        if mode not in _MODES:
            raise ValueError(
                "The exits' layers cannot be saved as they were quantised. Received: "
                f"layer {name!r}, quantised by {mode!r}. Expected: one of {_MODES}. "
                "Quantise final_model(), exit_model(name) or ensemble_model() in that "
                "way, which can be saved."
            )
        found[name] = keras.saving.serialize_keras_object(layer.quantization_config)
    return found


def quantize(
    model: keras.Model, layers: Iterable[keras.Layer], quantized: Mapping[str, Any]
) -> None:
    """Quantise layers as `quantizations` says.

    Args:
        model: Model that holds the layers.
        layers: Built layers, of which some are to be quantised.
        quantized: What `quantizations` returned.

    Raises:
        ValueError: A name is of none of the layers, or a value is no
            `QuantizationConfig`.
    """
    by_name = _by_name(layers)
    for name, value in quantized.items():
        config = keras.saving.deserialize_keras_object(value)
        is_config = isinstance(config, keras.quantizers.QuantizationConfig)
        if name not in by_name or not is_config or config.mode not in _MODES:
            raise ValueError(
                "The config quantises what it cannot. Received: "
                f"{value!r} for layer {name!r}. Expected: a QuantizationConfig of "
                f"{_MODES} for one of {sorted(by_name)}."
            )
        # By the model, which then forgets what it compiled and tracked.
        model.quantize(
            config=config, filters=lambda each, name=name: each is by_name[name]
        )


def _by_name(layers):
    """Return layers and those inside of them."""
    found = {}
    for layer in layers:
        for i, each in enumerate(flatten_layers(layer)):
            found[f"{layer.name}/{i}" if i else layer.name] = each
    return found
