"""Which section a call belongs to, by names, from the drawing of the base."""

import keras
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.exits.sections import base_sections, exit_sections
from keras_selfdistill.graph.nodes import graph_nodes
from tests.conftest import small_base

pytestmark = pytest.mark.once


def by_name(model, find, *arguments):
    graph = model.exit_graph
    ends = [each.output for each in graph.exits.values()] + [graph.ensemble]
    found = find(graph, graph_nodes(graph.base.inputs, ends), *arguments)
    return {node.operation.name: number for node, number in found.items()}


def wrapped(**options):
    return ksd.SelfDistiller(small_base(), ["stem_relu", "out_1"], "byot", **options)


def test_calls_of_the_base_belong_to_the_section_that_ends_behind_them():
    found = by_name(wrapped(), base_sections)
    for name, number in {
        "image": 0,
        "stem_relu": 0,
        "conv_1a": 1,
        "out_1": 1,
        "shortcut": 2,
        "pool": 2,
        "predictions_output": 2,
    }.items():
        assert found[name] == number
    assert not [name for name in found if name.startswith(("exit_", "ensemble"))]


def test_calls_belong_to_the_first_exit_that_needs_them():
    found = by_name(wrapped(), exit_sections, ["output"])
    for name, number in {
        "image": 0,
        "stem_relu": 0,
        "exit_1_logits": 0,
        "exit_1": 0,
        "conv_1a": 1,
        "exit_2": 1,
        "shortcut": 2,
        "predictions_output": 2,
    }.items():
        assert found[name] == number
    assert "ensemble" not in found
    assert "exit_1" not in by_name(wrapped(), exit_sections, ["logits"])


def test_heads_that_read_the_whole_base_need_it_at_the_first_exit():
    model = wrapped(head="top_down")
    of_exits = by_name(model, exit_sections, ["output"])
    of_base = by_name(model, base_sections)
    assert of_exits["conv_2b"] == of_exits["out_2"] == 0
    assert of_base["conv_2b"] == of_base["out_2"] == 2


def test_a_call_of_several_sections_is_in_the_first():
    inputs = keras.Input((6,), name="table")
    early = layers.Dense(4, name="early")(inputs)
    x = layers.Dense(4, name="tap")(early)
    x = layers.Add(name="late")([x, early])
    outputs = layers.Dense(3, "softmax", name="end")(layers.Dense(4)(x))
    base = keras.Model(inputs, outputs)
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    found = by_name(model, base_sections)
    names = ("table", "early", "tap", "late", "end_output")
    assert [found[name] for name in names] == [0, 0, 0, 1, 1]
