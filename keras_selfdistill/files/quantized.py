"""Save and restore the quantisation of exits' layers.

The config of a base describes its quantised layers itself. The layers of exits are
rebuilt by their heads and quantised again before their saved weights are loaded.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_selfdistill.utils.keras_internals import flatten_layers
from keras_selfdistill.utils.type_aliases import ConfigDict

_MODES = ("int8", "int4", "float8")  # Others need data when a layer is quantised.


def quantizations(layers: Iterable[keras.Layer]) -> dict[str, ConfigDict]:
    """Return the quantisation configs of layers.

    Args:
        layers: Layers, quantised or not.

    Returns:
        The serialised `keras.quantizers.QuantizationConfig` of each quantised layer, by
        name; `"name/1"` is the first sublayer of layer `"name"`.

    Raises:
        ValueError: A layer was quantised with data, which cannot be repeated.

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
                "Layers of exits quantised with data cannot be saved. Received: "
                f"layer {name!r}, quantised by {mode!r}. Expected: one of {_MODES}. "
                "Quantise final_model(), exit_model(name) or ensemble_model() instead; "
                "those can be saved."
            )
        found[name] = keras.saving.serialize_keras_object(layer.quantization_config)
    return found


def quantize(
    model: keras.Model, layers: Iterable[keras.Layer], quantized: Mapping[str, Any]
) -> None:
    """Quantise layers as in the result of `quantizations`.

    Args:
        model: Model that contains the layers.
        layers: Built layers, some of which are to be quantised.
        quantized: Configs as returned by `quantizations`.

    Raises:
        ValueError: No layer has a name, or a value is not a `QuantizationConfig`.
    """
    by_name = _by_name(layers)
    for name, value in quantized.items():
        config = keras.saving.deserialize_keras_object(value)
        is_config = isinstance(config, keras.quantizers.QuantizationConfig)
        if name not in by_name or not is_config or config.mode not in _MODES:
            raise ValueError(
                "The quantisation config is invalid. Received: "
                f"{value!r} for layer {name!r}. Expected: a QuantizationConfig of "
                f"{_MODES} for one of {sorted(by_name)}."
            )
        # By the model, which then resets its compiled functions and its tracking.
        model.quantize(
            config=config, filters=lambda each, name=name: each is by_name[name]
        )


def _by_name(layers: Iterable[keras.Layer]) -> dict[str, keras.Layer]:
    """Return layers and their sublayers by name."""
    found = {}
    for layer in layers:
        for i, each in enumerate(flatten_layers(layer)):
            found[f"{layer.name}/{i}" if i else layer.name] = each
    return found
