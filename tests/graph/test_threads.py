"""Several threads that look into the same layers, and classes that go when unused."""

import gc
import sys
import threading
import weakref

import keras
import pytest
from keras import layers, ops

import keras_selfdistill as ksd
from keras_selfdistill.costs.counting import Count, model_macs
from keras_selfdistill.graph.flatten import flatten
from keras_selfdistill.graph.nodes import producer

pytestmark = pytest.mark.once


def stack_class():
    """A class of a user's own, made of layers that Keras alone would not show."""

    class Stack(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first = layers.Dense(8, name="first")
            self.second = layers.Dense(8, name="second")

        def call(self, x):
            return self.second(self.first(x))

    return Stack


def base(make):
    inputs = keras.Input((8,))
    x = make(name="stack")(inputs)
    return keras.Model(inputs, layers.Dense(3, "softmax")(x))


@pytest.fixture
def busy_threads():
    """Threads change places as often as they can; the interval is restored."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def run_at_once(*functions):
    """Run functions side by side; return what they returned, or raise what one did."""
    results, errors = [None] * len(functions), []
    start = threading.Barrier(len(functions))

    def run(i, function):
        start.wait()
        try:
            results[i] = function()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=each) for each in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error  # Its traceback names the line in the thread.
    return results


def test_threads_count_wrap_and_save_the_same_layers(busy_threads):
    make = stack_class()
    model = base(make)
    expected = Count(2 * 8 * 8 + 8 * 3)

    def count():
        return {model_macs(model) for _ in range(8)}

    def wrap():
        taps = ["stack/first"]
        return {len(ksd.SelfDistiller(model, taps, "byot").layers) for _ in range(3)}

    def name():
        layer = model.get_layer("stack")
        seen = {
            keras.saving.serialize_keras_object(layer)["class_name"] for _ in range(50)
        }
        return seen | {type(layer) is make}

    counts, again, sizes, names = run_at_once(count, count, wrap, name)
    assert counts == again == {expected}
    assert len(sizes) == 1
    assert names == {"Stack", True}
    assert "__call__" not in vars(make)
    assert type(model.get_layer("stack")) is make


def test_a_model_is_flattened_between_the_traces_of_other_threads():
    """A trace removes its calls of a layer, and shifts the indices of later ones."""
    flattened = []

    class Interrupted(layers.Layer):
        meanwhile = None

        def call(self, x):
            thread, self.meanwhile = self.meanwhile, None
            if thread is not None:
                thread.start()
                thread.join(0.5)  # In vain, if it waits for this trace.
            return 2 * x

    interrupted = Interrupted()
    stack = [keras.Input((8,)), layers.Dense(8, name="first"), interrupted]
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.Sequential(stack, name="stack")(inputs))
    thread = threading.Thread(target=lambda: flattened.append(flatten(model)))
    interrupted.meanwhile = thread
    assert model_macs(model) == Count(8 * 8)
    thread.join()
    first = flattened[0].calls["stack/first"]
    assert first is producer(first).outputs[0]


def test_a_call_in_another_thread_is_keras_own():
    make = stack_class()
    model = base(make)
    layer = model.get_layer("stack")
    seen = []

    class Calling(layers.Layer):
        def call(self, x):
            (result,) = run_at_once(lambda: layer(keras.Input((8,))))
            seen.append(result._keras_history.operation)
            return layer(x)

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    inputs = keras.Input((8,))
    calling = Calling()
    calling.stack = layer
    assert model_macs(keras.Model(inputs, calling(inputs))) == Count(128)
    assert seen[-1] is layer


class Block(layers.Layer):
    """Layers in an attribute, in a list and in a model."""

    def __init__(self, units, activation, **kwargs):
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)
        self.one = layers.Dense(units)
        self.several = [layers.Dense(units)]
        inputs = keras.Input((units,))
        self.model = keras.Model(inputs, layers.Dense(units)(inputs))
        self.meanwhile = self.ran_in = None

    def call(self, x):
        self.ran_in = self.compute_dtype
        if self.meanwhile is not None:
            self.meanwhile()
        for layer in (self.one, *self.several, self.model):
            x = layer(x)
        return self.activation(x)


def test_layers_are_called_by_another_thread_while_they_are_wrapped(mixed_precision):
    mixed_precision("mixed_float16")
    seen, x = [], ops.ones((2, 8))
    inputs = keras.Input((8,))
    end = Block(3, "softmax", name="end")
    model = keras.Model(inputs, end(layers.ReLU()(layers.Dense(8, name="tap")(inputs))))
    inside = [end, end.one, *end.several, *end.model.layers]

    def meanwhile():
        end.meanwhile = None
        (output,) = run_at_once(lambda: model(x))
        seen.append((output.dtype, *[each.compute_dtype for each in inside]))
        end.meanwhile = meanwhile

    expected = (model(x).dtype, *["float16"] * len(inside))
    end.meanwhile = meanwhile
    ksd.SelfDistiller(model, ["tap"], "byot", head="linear")
    assert len(seen) > 1
    assert set(seen) == {expected}
    assert end.ran_in == "float16"  # As set by the other thread.


def test_a_class_is_not_kept_when_its_layers_are_gone():
    make = stack_class()
    model = base(make)
    model_macs(model)
    wrapper = ksd.SelfDistiller(model, ["stack/first"], "byot")
    ksd.profile(wrapper)
    kept = weakref.ref(make)
    del make, model, wrapper
    keras.backend.clear_session()
    gc.collect()
    assert kept() is None
