"""How large the gradient is in every section of a base."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_selfdistill.exits.attach import ExitGraph
from keras_selfdistill.exits.sections import base_sections
from keras_selfdistill.graph.nodes import model_nodes
from keras_selfdistill.graph.shells import original


def section_weights(graph: ExitGraph) -> dict[str, list[Any]]:
    """Return the trainable weights of each section of a base, shallow to deep.

    A layer that several sections call counts in the first; layers of the exits' heads
    are in no section, and a section with no weight to train is left out.

    Args:
        graph: A base with exits.

    Returns:
        Mapping of `section_1`, … to variables; `section_1` ends at the tap of `exit_1`,
        the last one at the base's end.

    Example:
        >>> import keras_selfdistill as ksd
        >>> base = ksd.networks.resnet18(width_multiplier=0.125, classes=10)
        >>> model = ksd.SelfDistiller(base, taps=2, recipe="byot")
        >>> list(section_weights(model.exit_graph))
        ['section_1', 'section_2', 'section_3']
    """
    digits = len(str(len(graph.exits)))
    found: dict[str, list[Any]] = {
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
    sections: Mapping[str, Sequence[Any]],
    variables: Sequence[Any],
    gradients: Sequence[Any],
    scale: Any = 1.0,
) -> dict[str, Any]:
    """Return the mean absolute gradient of a weight in each section.

    Args:
        sections: From `section_weights`.
        variables: Variables that gradients were taken of.
        gradients: Their gradients; `None` where the loss does not depend on one.
        scale: Factor on the loss, and so on the gradients, which is taken out.

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
