"""Gradient magnitude in every section of a base."""

import math
from collections.abc import Mapping, Sequence

import keras
from keras import ops

from keras_selfdistill.exits.attach import ExitGraph
from keras_selfdistill.exits.sections import base_sections
from keras_selfdistill.graph.nodes import model_nodes
from keras_selfdistill.graph.shells import original
from keras_selfdistill.utils.type_aliases import Tensor


def section_weights(graph: ExitGraph) -> dict[str, list[keras.Variable]]:
    """Return the trainable weights of each section of a base, shallow to deep.

    A layer that several sections call belongs to the first; layers of heads belong to
    no section, and a section without trainable weights is left out.

    Args:
        graph: A base with exits.

    Returns:
        Mapping of `section_1`, … to variables; `section_1` ends at the tap of `exit_1`,
        the last section at the base's end.

    Example:
        >>> import keras_selfdistill as ksd
        >>> base = ksd.networks.resnet18(width_multiplier=0.125, classes=10)
        >>> model = ksd.SelfDistiller(base, taps=2, recipe="byot")
        >>> list(section_weights(model.exit_graph))
        ['section_1', 'section_2', 'section_3']
    """
    digits = len(str(len(graph.exits)))
    found: dict[str, list[keras.Variable]] = {
        f"section_{i + 1:0{digits}}": [] for i in range(len(graph.exits))
    }
    names = list(found)
    seen = set()
    nodes = model_nodes(graph.flat.model)
    for node, number in base_sections(graph, nodes).items():
        layer = original(node.operation)
        if isinstance(layer, keras.Layer) and id(layer) not in seen:
            seen.add(id(layer))
            found[names[number]] += layer.trainable_variables
    return {section: weights for section, weights in found.items() if weights}


def mean_magnitudes(
    sections: Mapping[str, Sequence[keras.Variable]],
    variables: Sequence[keras.Variable],
    gradients: Sequence[Tensor | None],
    scale: Tensor | float = 1.0,
) -> dict[str, Tensor]:
    """Return the mean absolute gradient of the weights in each section.

    Args:
        sections: Weights by section, as `section_weights` returns them.
        variables: Variables of the gradients.
        gradients: Gradients; `None` if the loss does not depend on a variable.
        scale: Loss scale, by which the gradients are divided.

    Returns:
        Mapping of `section_1_gradient`, … to scalars.

    Example:
        >>> import numpy as np
        >>> kernel = keras.Variable(np.ones(2, "float32"))
        >>> gradient = np.array([-4.0, 2.0], "float32")
        >>> found = mean_magnitudes({"section_1": [kernel]}, [kernel], [gradient], 2.0)
        >>> {name: float(ops.convert_to_numpy(each)) for name, each in found.items()}
        {'section_1_gradient': 1.5}
    """
    by_variable = {id(v): g for v, g in zip(variables, gradients, strict=True)}
    means = {}
    for section, weights in sections.items():
        found = [by_variable.get(id(weight)) for weight in weights]
        sums = [
            ops.sum(ops.abs(ops.cast(g, "float32"))) for g in found if g is not None
        ]
        count = sum(math.prod(weight.shape) for weight in weights)
        total = sum(sums, start=ops.zeros((), "float32"))
        means[f"{section}_gradient"] = total / (count * ops.cast(scale, "float32"))
    return means
