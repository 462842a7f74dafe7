"""The private node lists of Keras contain what this package expects."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_selfdistill.graph import nodes
from tests.conftest import to_numpy
from tests.keras_pins import pins

pytestmark = pytest.mark.once


@pytest.fixture
def parts():
    """A diamond of two calls of one layer, by name."""
    inputs = keras.Input((4,), name="table")
    dense = layers.Dense(4, name="dense")
    left = dense(inputs)
    right = dense(left)
    add = layers.Add(name="add")
    return {
        "inputs": inputs,
        "dense": dense,
        "left": left,
        "right": right,
        "add": add,
        "output": add([left, right]),
    }


@pins(nodes.nodes_of_function, of="Function._nodes_by_depth (ops/function.py)")
def test_a_function_lists_its_calls_in_an_order_that_runs(parts):
    unused = parts["dense"](parts["output"])
    assert unused is not None
    function = keras.Function(parts["inputs"], parts["output"])
    found = nodes.nodes_of_function(function)
    assert [each.operation.name for each in found] == ["table", "dense", "dense", "add"]
    assert found[1].outputs[0] is parts["left"]
    assert found[2].outputs[0] is parts["right"]


@pytest.mark.parametrize("kind", [keras.Model, keras.Sequential])
@pins(nodes.model_nodes, of="the calls of a model (models)")
def test_a_model_lists_the_calls_of_its_own_graph(kind):
    inputs, dense = keras.Input((4,), name="table"), layers.Dense(2, name="dense")
    sequential = kind is keras.Sequential
    model = kind([inputs, dense]) if sequential else kind(inputs, dense(inputs))
    model(keras.Input((4,)))
    (table, call) = nodes.model_nodes(model)
    assert table.is_input
    assert not call.is_input
    assert call.outputs[0] is model.outputs[0]


@pins(nodes.function_inside, of="Sequential._functional (models/sequential.py)")
def test_a_sequential_model_runs_a_function_of_its_own_graph():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="dense")])
    found = nodes.function_inside(model)
    assert found.outputs[0] is model.outputs[0]
    model.add(layers.ReLU(name="relu"))
    assert nodes.model_nodes(model)[-1].operation.name == "relu"


@pins(nodes.calls_of, of="Operation._inbound_nodes (ops/operation.py)")
def test_an_operation_lists_its_calls(parts):
    found = [call.outputs[0] for call in nodes.calls_of(parts["dense"])]
    assert [id(each) for each in found] == [id(parts["left"]), id(parts["right"])]
    concrete = layers.ReLU()
    concrete(ops.ones((1, 2)))
    assert nodes.calls_of(concrete) == []


@pins(nodes.readers_of, of="Operation._outbound_nodes (ops/operation.py)")
def test_an_operation_lists_the_calls_that_read_it(parts):
    readers = nodes.readers_of(parts["dense"])
    assert {call.operation.name for call in readers} == {"dense", "add"}
    assert nodes.readers_of(parts["add"]) == []
    size = len(readers)
    with nodes.unrecorded(keras.Model(parts["inputs"], parts["output"])):
        parts["dense"](parts["right"])
        assert len(readers) == size + 1
    assert len(readers) == size


@pins(nodes.origin, of="KerasTensor._keras_history (ops/node.py)")
def test_a_symbolic_tensor_knows_the_call_that_made_it(parts):
    assert nodes.origin(parts["left"]) == (parts["dense"], 0)
    assert nodes.origin(parts["right"]) == (parts["dense"], 1)
    assert nodes.producer(parts["right"]).input_tensors[0] is parts["left"]
    assert nodes.origin(parts["inputs"])[0].name == "table"


@pins(nodes.producer, of="Node and SymbolicArguments (ops/node.py)")
def test_a_call_knows_its_arguments(parts):
    call = nodes.producer(parts["output"])
    given = [id(parts["left"]), id(parts["right"])]
    assert call.operation is parts["add"]
    assert [id(each) for each in call.input_tensors] == given
    assert [id(each) for each in call.arguments.keras_tensors] == given
    args, kwargs = call.arguments.fill_in({given[0]: 1.0, given[1]: 2.0})
    assert args == ([1.0, 2.0],)
    assert kwargs == {}
    assert [id(each) for each in call.outputs] == [id(parts["output"])]


@pins(nodes.run_in_inference_mode, of="Function._run_through_graph (ops/function.py)")
def test_a_graph_from_its_middle_runs_in_inference_mode():
    inputs = keras.Input((2,))
    middle = layers.Dense(3)(inputs)
    dropout = layers.Dropout(0.5)
    outputs = dropout(middle, training=True) + 1.0
    function = keras.Function([middle], {"outputs": outputs})
    x = np.ones((4, 3), "float32")
    found = nodes.run_in_inference_mode(function, [x])
    np.testing.assert_array_equal(to_numpy(found["outputs"]), x + 1.0)
    assert len(dropout._inbound_nodes) == 1


@pins(nodes.run_other_operations, of="Function._run_through_graph (ops/function.py)")
def test_one_function_runs_other_operations():
    inputs = keras.Input((2,))
    outputs = layers.Rescaling(3.0)(inputs)
    one, other = keras.Function(inputs, outputs), keras.Model(inputs, outputs)
    for each in (one, other):
        nodes.run_other_operations(each, lambda _: layers.Rescaling(2.0))
        assert to_numpy(each(ops.ones((1, 2)))).tolist() == [[2.0, 2.0]]
    same = keras.Function(inputs, outputs)
    assert to_numpy(same(ops.ones((1, 2)))).tolist() == [[3.0, 3.0]]
