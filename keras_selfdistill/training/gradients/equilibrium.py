"""Gradient equilibrium: exits teach the weights that they share by their mean."""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import keras
from keras import ops

from keras_selfdistill.exits.attach import ExitGraph
from keras_selfdistill.exits.sections import needed_by
from keras_selfdistill.graph.nodes import model_nodes
from keras_selfdistill.graph.shells import original
from keras_selfdistill.utils.type_aliases import Tensor

Multiply: TypeAlias = Callable[[float, Tensor], Tensor]


class GradientEquilibrium:
    """Divides the gradient of each weight of the base by the number of exits behind it.

    Li et al., *Improved Techniques for Training Adaptive Deep Networks* (ICCV 2019,
    arXiv 1908.06294), scale gradients where an exit branches off. At the k-th of K
    exits, that of the exit is multiplied by 1 / (K − k + 1), that of all that lies
    behind by (K − k) / (K − k + 1). On the way from the loss of exit j back to a weight
    in front of exit i ≤ j, the factors telescope:

        (K − i) / (K − i + 1) · … · (K − j + 1) / (K − j + 2) · 1 / (K − j + 1)
        = 1 / (K − i + 1)

    This is the same for every j: the weight has the sum of all gradients, divided by
    the number of exits behind it, the final one included. Weights of heads have theirs
    undivided. So the gradients of a step are divided, before loss scales, clipping and
    the optimizer, and the graph stays as it is.

    Exits are behind a weight if any tensor of theirs depends on it; of a layer with
    several calls, on any call. Regularisers of weights are no branch: theirs is not
    divided (see `undivided`). Losses that layers of the base add for their outputs are
    divided like those of an exit.

    Args:
        graph: A base with exits.

    Example:
        >>> import numpy as np
        >>> import keras_selfdistill as ksd
        >>> base = ksd.networks.resnet18(width_multiplier=0.125, classes=10)
        >>> model = ksd.SelfDistiller(base, taps=2)
        >>> names = "stem_conv", "predictions"
        >>> kernels = [base.get_layer(name).kernel for name in names]
        >>> ones = [np.ones(kernel.shape, "float32") for kernel in kernels]
        >>> divided = GradientEquilibrium(model.exit_graph).divide(kernels, ones)
        >>> [round(float(each.mean()), 3) for each in divided]
        [0.333, 1.0]
    """

    def __init__(self, graph: ExitGraph):
        # With the variables, whose ids others would have after them.
        self._shared = {
            id(variable): (variable, len(exits))
            for variable, exits in exits_behind(graph)
            # Values that Keras' float8 layers pass on as gradients are none.
            if len(exits) > 1 and not variable.overwrite_with_gradient
        }

    def divide(
        self,
        variables: Iterable[keras.Variable],
        gradients: Iterable[Tensor | None],
        multiply: Multiply = operator.mul,
    ) -> list[Tensor | None]:
        """Return the gradients, each divided by the number of exits behind its weight.

        Args:
            variables: Variables of the gradients.
            gradients: Gradients; `None` if the loss does not depend on a variable.
            multiply: Multiplies a number with a gradient.
        """
        pairs = zip(variables, gradients, strict=True)
        return [
            multiply(1.0 / self._exits(variable), gradient)
            if gradient is not None and self._exits(variable) > 1
            else gradient
            for variable, gradient in pairs
        ]

    def undivided(self, variables: Iterable[keras.Variable]) -> list[Tensor]:
        """Return losses that are 0 and make up for the division in regularisers.

        Args:
            variables: Trainable variables.
        """
        regularized = [
            variable
            for variable in variables
            if variable.regularizer is not None and self._exits(variable) > 1
        ]
        return [
            (self._exits(each) - 1) * _without_value(each.regularizer(each.value))
            for each in regularized
        ]

    def _exits(self, variable: keras.Variable) -> int:
        return self._shared.get(id(variable), (variable, 1))[1]


def exits_behind(graph: ExitGraph) -> Sequence[tuple[keras.Variable, set[int]]]:
    """Return the weights of a base, each with the numbers of the exits that need it.

    Args:
        graph: A base with exits, whose numbers begin with 0.
    """
    ends = [list(each.tensors().values()) for each in graph.exits.values()]
    # The final exit's output may come from another call than the base's own.
    ends[-1] += graph.flat.model.outputs
    found: dict[int, tuple[keras.Variable, set[int]]] = {}
    for node, exits in needed_by(model_nodes(graph.flat.model), ends).items():
        layer = original(node.operation)
        for variable in layer.weights if isinstance(layer, keras.Layer) else ():
            found.setdefault(id(variable), (variable, set()))[1].update(exits)
    return list(found.values())


def _without_value(loss: Tensor) -> Tensor:
    """Return 0 with the gradient of a loss."""
    return loss - ops.stop_gradient(loss)
