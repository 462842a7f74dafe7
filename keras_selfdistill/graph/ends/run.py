"""A function of a base's graph, run with other values, weights and sizes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_selfdistill.graph.ends.pre_activation import ActivationNotCalledError
from keras_selfdistill.graph.ends.twins import Twins
from keras_selfdistill.graph.nodes import nodes_of_function
from keras_selfdistill.utils.keras_internals import flatten_layers
from keras_selfdistill.utils.type_aliases import Tensor

HALVES = ("float16", "bfloat16")
BATCH_SIZE = 2  # Where it is unknown.


class Run(keras.layers.Layer):
    """A function as a layer, whose call passes `training` to the layers inside."""

    def __init__(self, function: keras.Function) -> None:
        super().__init__(autocast=False)
        self._function = function
        self._twins = Twins()  # The layers themselves may run in other threads.
        self.built = True

    def call(self, values: Sequence[Tensor], training: bool | None = None) -> Tensor:
        """Return the function's output for values of any sizes."""
        return self._through(values, self._twins.of)

    def known_elements(self) -> float:
        """Return how many elements all tensors have; infinite if that is not known.

        Layers keep the batch axis; functions such as `keras.ops.repeat` may not.
        """
        nodes = nodes_of_function(self._function)
        shapes = [each.shape for node in nodes for each in node.outputs]
        layers = all(isinstance(node.operation, keras.Layer) for node in nodes)
        if not layers or any(None in shape[1:] for shape in shapes):
            return math.inf
        return sum((shape[0] or BATCH_SIZE) * math.prod(shape[1:]) for shape in shapes)

    def count_elements(self, shapes: Sequence[Sequence[int]]) -> int:
        """Return how many elements inputs of these shapes and all that follows have.

        Raises:
            Exception: The layers do not run on such inputs.
        """
        inputs = [
            keras.KerasTensor(shape, tensor.dtype)
            for shape, tensor in zip(shapes, self._function.inputs, strict=True)
        ]
        made = list(inputs)
        twins = Twins()

        def specified(operation: keras.Operation) -> Callable[..., Any]:
            def specify(*args: Any, **kwargs: Any) -> Any:
                found = twins.of(operation).compute_output_spec(*args, **kwargs)
                made.extend(keras.tree.flatten(found))
                return found

            return specify

        self._through(inputs, specified)
        return sum(math.prod(each.shape) for each in made)

    def _through(
        self, values: Sequence[Any], other: Callable[[keras.Operation], Any]
    ) -> Any:
        """Run the graph on values with other functions than those of its nodes.

        Calling `keras.Function` does not accept other sizes than its inputs have.
        """
        function = self._function
        known = {
            id(tensor): value
            for tensor, value in zip(function.inputs, values, strict=True)
        }
        for node in nodes_of_function(function):
            if node.is_input or any(
                id(each) not in known for each in node.input_tensors
            ):
                continue
            args, kwargs = node.arguments.fill_in(known)
            results = other(node.operation)(*args, **kwargs)
            pairs = zip(node.outputs, keras.tree.flatten(results), strict=True)
            known |= {id(tensor): result for tensor, result in pairs}
        return known[id(function.outputs[0])]

    def layers_inside(self) -> list[keras.Layer]:
        """Return all layers, sublayers included."""
        return [
            each
            for operation in self._function.operations
            if isinstance(operation, keras.Layer)
            for each in flatten_layers(operation)
        ]

    def weights_to_draw(self) -> list[keras.Variable]:
        """Return the float variables that may take any positive value.

        Those that a quantized layer does not train may not: an int4 kernel stores the
        indices of its groups as floats.
        """
        layers = self.layers_inside()
        encoded = {
            id(each)
            for layer in layers
            if layer.quantization_mode is not None
            for each in layer.non_trainable_variables
        }
        return [
            each
            for layer in layers
            for each in layer.variables
            if keras.backend.is_float_dtype(each.dtype) and id(each) not in encoded
        ]

    def precision(self) -> float:
        """Return the tolerance of the least precise layer, when `result` runs it."""
        halves = [each for each in self.layers_inside() if _is_half(each)]
        return 1e-5 if all(map(_runs_in_float32, halves)) else 2e-2

    def result(
        self,
        values: Sequence[Tensor],
        weights: Sequence[tuple[keras.Variable, Tensor]],
        training: bool | None,
    ) -> Tensor:
        """Return the function's result for values, with other weights."""
        inside = self.layers_inside()
        self._twins = Twins()
        # Rounded to half precision, different functions may look alike.
        for layer in filter(_runs_in_float32, inside):
            self._twins.of(layer).dtype_policy = "float32"
        scope = keras.StatelessScope(state_mapping=weights, collect_losses=True)
        try:
            with scope:
                return self(values, training=training)
        except ActivationNotCalledError:
            raise
        # A user's layers may raise anything on unexpected values.
        except Exception as error:
            raise ValueError(
                "The last layers of the base do not run on a random batch. Received: "
                f"layers {[each.name for each in inside]}, which raise "
                f"{type(error).__name__}: {error}. Expected: layers that run on any "
                "numbers. Wrap the model without them."
            ) from error


def _is_half(layer: keras.Layer) -> bool:
    return layer.compute_dtype in HALVES


def _runs_in_float32(layer: keras.Layer) -> bool:
    """Return whether a layer in half precision can be run in float32."""
    policy = layer.dtype_policy  # A map belongs to several layers.
    shared = isinstance(policy, keras.dtype_policies.DTypePolicyMap)
    return _is_half(layer) and layer.quantization_mode is None and not shared
