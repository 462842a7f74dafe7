"""Saving, copying and configs of a wrapper."""

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any, NoReturn, Self

import keras

from keras_selfdistill.files.config_check import check_config
from keras_selfdistill.files.quantized import quantizations, quantize
from keras_selfdistill.utils.config import for_any_backend
from keras_selfdistill.utils.keras_internals import refuses_clones, writes_legacy_format
from keras_selfdistill.utils.type_aliases import ConfigDict, PathLike, Tensor

# Fields of the config that hold configs of Keras objects.
_SERIALIZED = (
    "model",
    "recipe",
    "head",
    "teacher",
    "distillation_losses",
    "distillation_loss_weights",
)


@refuses_clones
class SavedWrapper(keras.Model):
    """The part of a `SelfDistiller` that saves it and converts it to a config."""

    def refuse_clone(self) -> NoReturn:
        """Raise the error of `keras.models.clone_model`, which would drop the exits."""
        raise TypeError(
            "keras.models.clone_model would return a plain model without recipe "
            f"and heads. Received: {type(self).__name__} {self.name!r}. Expected: "
            "copy.deepcopy(model) for a copy with the same weights, or "
            "type(model).from_config(model.get_config()) for new weights."
        )

    def save(
        self,
        filepath: PathLike,
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the wrapper to a `.keras` file, as `keras.Model.save` does.

        As there, a file at the path is overwritten by default, whatever it contains,
        and not atomically: it is lost if the disk is full or the process is killed.

        Raises:
            ValueError: The path is that of a legacy `.h5` file, which could not be
                loaded. An existing file at the path does not change.
        """
        if str(filepath).endswith((".h5", ".hdf5")):
            raise _legacy_format_error(f"filepath={str(filepath)!r}")
        super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)

    def get_config(self) -> ConfigDict:
        """Return the config from which `from_config` creates an equal wrapper.

        Raises:
            ValueError: Keras calls it to write a legacy `.h5` file.
        """
        if writes_legacy_format():
            raise _legacy_format_error("a call of keras.saving.save_model with one")
        base, teacher = map(
            keras.saving.serialize_keras_object,
            (self.exit_graph.base, self._given.teacher),
        )
        for config in filter(None, (base, teacher)):
            config.pop("compile_config", None)  # The wrapper has its own optimizer.
        return {
            "model": base,
            "taps": self.taps,
            "recipe": keras.saving.serialize_keras_object(self._recipe),
            "head": keras.saving.serialize_keras_object(self._head),
            "teacher": teacher,
            "distillation_losses": [
                keras.saving.serialize_keras_object(pair.loss)
                for pair in self._given.pair_losses
            ],
            "distillation_loss_weights": [
                keras.saving.serialize_keras_object(pair.weight)
                for pair in self._given.pair_losses
            ],
            "gradient_equilibrium": self._given.gradient_equilibrium,
            "task": self._given.task,
            "name": self.name,
            "frozen": [
                layer.name for layer in self._added_layers if not layer.trainable
            ],
            "quantized": quantizations(self._added_layers),
        }

    @classmethod
    def from_config(
        cls, config: ConfigDict, custom_objects: Mapping[str, Any] | None = None
    ) -> Self:
        """Return a wrapper with the config that `get_config` returned.

        Raises:
            ValueError: A field is missing or unknown, or names a class that is not
                allowed in models (see `files.config_check`).
        """
        # An empty scope would hide an outer scope.
        scope = keras.saving.custom_object_scope
        with scope(custom_objects) if custom_objects else contextlib.nullcontext():
            check_config(config, code=True)
        own = {"frozen", "quantized"}  # Not arguments, but changes of the layers.
        needed = {*_SERIALIZED, "taps", *own}
        known = {*inspect.signature(cls.__init__).parameters, *own} - {"self"}
        if not needed <= config.keys() <= known:
            raise ValueError(
                "The wrapper's config has other fields than this version writes. "
                f"Received: {list(config)}. Expected: {sorted(needed)} and at most "
                f"{sorted(known - needed)}."
            )
        config = dict(config)
        frozen, quantized = set(config.pop("frozen")), config.pop("quantized")
        for key in _SERIALIZED:
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects
            )
        model = cls(**config)
        for layer in model._added_layers:
            layer.trainable = layer.name not in frozen
        quantize(model, model._added_layers, quantized)
        return model

    def get_compile_config(self) -> ConfigDict:
        """Return the arguments of `compile`, serialised."""
        if not self.compiled:
            return {}
        arguments = keras.saving.serialize_keras_object(vars(self._compile_arguments))
        return for_any_backend({**super().get_compile_config(), **arguments})

    def compile_from_config(self, config: ConfigDict) -> None:
        """Compile with what `get_compile_config` returned and build the optimizer."""
        check_config(config, code=True)
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    @property
    def _added_layers(self) -> list[keras.Layer]:
        """The layers of the exits, which are not in the config of the base."""
        own = {id(layer) for layer in self.exit_graph.flat.model.layers}
        return [
            layer for layer in [*self.layers, *self._adapters] if id(layer) not in own
        ]

    def load_own_variables(self, store: Mapping[str, Tensor]) -> None:
        """Load the step counter and reset the scale of distillation."""
        super().load_own_variables(store)
        self.distillation_scale = 1.0


def _legacy_format_error(received: str) -> ValueError:
    return ValueError(
        "A wrapper cannot be saved to a legacy HDF5 file: nothing could load it. "
        f"Received: {received}. Expected: a path that ends in '.keras'; or, for the "
        "weights only, save_weights with a path that ends in '.weights.h5'."
    )
