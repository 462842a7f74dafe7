"""`profile`: multiply-adds and parameters by layer, section and exit."""

import math
from collections.abc import Iterable, Mapping

import keras

from keras_selfdistill.costs.counting import (
    Count,
    Shapes,
    macs_by_node,
    macs_ratio,
    model_macs,
)
from keras_selfdistill.costs.input_shapes import given_shapes
from keras_selfdistill.exits.sections import exit_sections
from keras_selfdistill.graph.ends.pre_activation import PreActivation
from keras_selfdistill.graph.flatten import flatten
from keras_selfdistill.graph.nodes import (
    check_functional,
    graph_nodes,
    model_nodes,
    producer,
)
from keras_selfdistill.graph.shells import original
from keras_selfdistill.reporting.profile_result import Cost, LayerCost, Profile
from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.utils.type_aliases import InputShape, Node, SymbolicTensor


def profile(model: keras.Model, input_shape: InputShape = None) -> Profile:
    """Return multiply-adds and parameters by exit, section and layer.

    The cost of an exit is that of its `exit_model` or `ensemble_model`, so `final` is
    the base without heads. Exits that cannot be cut off are left out. Layers whose
    cost is unknown are listed in `unknown` and left out of the sums; register their
    cost with `register_macs`.

    Args:
        model: A `SelfDistiller`, or a functional or Sequential model, which has the
            single exit `final`.
        input_shape: Shape of one sample, without the batch axis, for a model with
            unknown sizes, such as the length of a text. For several inputs, shapes in
            the structure of the model's inputs.

    Returns:
        A `Profile`: a mapping of exit names to `Cost`.

    Raises:
        TypeError: `model` is not a functional model.
        ValueError: The model has unknown sizes and `input_shape` is missing, or
            `input_shape` does not fit the model.

    Example:
        >>> import keras_selfdistill as ksd
        >>> base = ksd.networks.resnet18(width_multiplier=0.125, classes=10)
        >>> costs = ksd.profile(ksd.SelfDistiller(base, taps=1, recipe="byot"))
        >>> {name: round(cost.macs_ratio, 2) for name, cost in costs.items()}
        {'exit_1': 0.54, 'final': 1.0, 'ensemble': 1.02}
        >>> print(costs)
        model of  parameters    MACs  MACs ratio
        exit_1        17.6 k  4.83 M       54.4%
        final          178 k  8.87 M      100.0%
        ensemble       184 k  9.02 M      101.7%
        <BLANKLINE>
        section of  parameters    MACs  MACs ratio
        exit_1          17.6 k  4.83 M       54.4%
        final            166 k  4.19 M       47.3%
        >>> costs.layers[1].name, costs.layers[1].macs
        ('stem_conv', 221184)
    """
    if not isinstance(model, SelfDistiller):
        check_functional(model)
    base = model.base if isinstance(model, SelfDistiller) else model
    return profile_at(model, given_shapes(base, input_shape))


def profile_at(model: keras.Model, shapes: Shapes) -> Profile:
    """Return the profile of a model whose inputs have the given shapes.

    Args:
        model: Model as `profile` takes it.
        shapes: Shapes of the inputs with unknown sizes.
    """
    if isinstance(model, SelfDistiller):
        return _profile_exits(model, shapes)
    flat = flatten(model)
    counts = macs_by_node(model_nodes(flat.model), shapes)
    rows = _layer_costs(counts, dict.fromkeys(counts, "final"), flat.calls)
    total = Count.total(counts.values())
    cost = _as_cost(flat.model.count_params(), total, total)
    return Profile({"final": cost}, {"final": cost}, tuple(rows.values()))


def _profile_exits(model: SelfDistiller, shapes: Shapes) -> Profile:
    graph = model.exit_graph
    names = model.exit_names if model.has_early_exits else ["final"]
    models = {name: model.exit_model(name) for name in names}
    models["final"] = graph.flat.model  # It knows the sizes in nested models.
    models["ensemble"] = model.ensemble_model()
    found = {name: model_macs(each, shapes) for name, each in models.items()}
    of_base = found["final"]
    exits = {
        name: _as_cost(each.count_params(), found[name], of_base)
        for name, each in models.items()
    }
    ends = [each.output for each in graph.exits.values()] + [graph.ensemble]
    nodes = graph_nodes(graph.base.inputs, ends)
    numbers = exit_sections(graph, nodes, ["output"])
    section = {node: model.exit_names[number] for node, number in numbers.items()}
    for node in nodes:
        if node.is_input:  # One that the base does not use is passed to exit 1, too.
            section.setdefault(node, model.exit_names[0])
    counts = macs_by_node(nodes, shapes)
    rows = _layer_costs(counts, section, graph.flat.calls)
    sections = {}
    for name in model.exit_names:
        own = [node for node in nodes if section.get(node) == name]
        parameters = sum(rows[node].parameters for node in own)
        count = Count.total(counts[node] for node in own)
        sections[name] = _as_cost(parameters, count, of_base)
    return Profile(exits, sections, tuple(rows.values()))


def _as_cost(parameters: int, count: Count, of_base: Count) -> Cost:
    return Cost(parameters, count.macs, macs_ratio(count, of_base), count.unknown)


def _layer_costs(
    counts: Mapping[Node, Count],
    sections: Mapping[Node, str],
    calls: Mapping[str, SymbolicTensor],
) -> dict[Node, LayerCost]:
    """Return the `LayerCost` of every counted node."""
    paths = {id(tensor): path for path, tensor in calls.items()}
    # A `PreActivation` calls the last layer of the base without its activation.
    by_layer = {
        id(original(producer(tensor).operation)): path for path, tensor in calls.items()
    }
    own = _own_parameters(counts, sections)
    rows = {}
    for node, count in counts.items():
        layer = original(node.operation)
        path = paths.get(id(node.outputs[0]), node.operation.name)
        if isinstance(layer, PreActivation):
            layer = layer.layer
            path = by_layer.get(id(layer), path)
        rows[node] = LayerCost(
            name=path,
            kind=type(layer).__name__,
            section=sections.get(node, "ensemble"),
            parameters=own[node],
            macs=None if count.unknown else count.macs,
            unknown=count.unknown,
        )
    return rows


def _own_parameters(
    nodes: Iterable[Node], sections: Mapping[Node, str]
) -> dict[Node, int]:
    """Return the number of weights that each node is the first to use.

    Nodes of the ensemble come last, because they may use weights of the final exit.
    """
    seen: set[int] = set()
    found = {}
    for node in sorted(nodes, key=lambda node: node not in sections):
        layer = original(node.operation)
        weights = layer.weights if isinstance(layer, keras.Layer) else []
        new = {id(each): math.prod(each.shape) for each in weights}
        found[node] = sum(size for key, size in new.items() if key not in seen)
        seen |= new.keys()
    return found
