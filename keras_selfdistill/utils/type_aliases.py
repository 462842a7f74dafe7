"""The kinds of values that annotations name, each in one place.

Keras, the backends and Matplotlib have no types that mypy reads, so to mypy the aliases
of tensors are `Any`. To the reader they say what a function takes and returns.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import keras

# Values.
Tensor: TypeAlias = Any
"""Tensor of the backend in use, or a NumPy array."""
SymbolicTensor: TypeAlias = keras.KerasTensor
"""What `keras.Input` and calls on it return: a shape and a dtype, without values."""
TensorStructure: TypeAlias = Any
"""Tensor, symbolic or not, or a nested list, tuple or dict of tensors."""
Labels: TypeAlias = Any
"""Class indices, one-hot labels or regression targets; tensor, array or list."""
Data: TypeAlias = Any
"""What `fit` takes as `x`: array, list or dict of arrays, dataset or generator."""
ExitTensors: TypeAlias = Mapping[str, Any]
"""Tensors of one exit by name: `output`, `logits`, `feature`, `hint`, maybe `joint`."""

# Descriptions.
Shape: TypeAlias = tuple[int | None, ...]
"""Shape; a size that is not known is `None`, as that of the batch."""
DType: TypeAlias = str | keras.DTypePolicy | None
"""Dtype or dtype policy of a layer; `None` for the global policy."""
ConfigDict: TypeAlias = dict[str, Any]
"""What `get_config` returns, or any other JSON object."""
Logs: TypeAlias = dict[str, Any]
"""Values of losses and metrics by name, as callbacks get them."""
Evaluation: TypeAlias = Any
"""What `evaluate` returns: a value, a list of values or, with `return_dict`, logs."""
PathLike: TypeAlias = str | os.PathLike[str]
"""Path of a file or folder."""
Check: TypeAlias = Callable[[Any], bool]
"""Whether a value of a JSON document is what a schema asks for."""
TapsLike: TypeAlias = Any
"""What `SelfDistiller` takes as `taps`: names, a number, `"auto"` or suggested taps."""
InputShape: TypeAlias = Any
"""Shape of an input, or a list or dict of shapes; `None` for the model's own."""

# What Keras looks up: an object, its name, its config or a function.
LossLike: TypeAlias = Any
"""Loss, or what `keras.losses.get` takes."""
MetricsLike: TypeAlias = Any
"""What `compile` takes as `metrics`: metrics or names, in a list or dict."""
CallbacksLike: TypeAlias = Any
"""What `fit` takes as `callbacks`: a callback, a list of them or a `CallbackList`."""

# Plots.
Axes: TypeAlias = Any
"""`matplotlib.axes.Axes`; Matplotlib is an optional dependency."""
Figure: TypeAlias = Any
"""`matplotlib.figure.Figure`."""


class Node(Protocol):
    """One call in the graph of a functional model, as Keras records it."""

    @property
    def operation(self) -> keras.Operation:
        """The layer or operation that was called."""

    @property
    def arguments(self) -> Any:
        """The arguments of the call; `fill_in` replaces its tensors."""

    @property
    def input_tensors(self) -> list[SymbolicTensor]:
        """Symbolic tensors among the arguments."""

    @property
    def outputs(self) -> list[SymbolicTensor]:
        """Symbolic tensors that the call returned."""

    @property
    def is_input(self) -> bool:
        """Whether the node is a `keras.Input`."""
