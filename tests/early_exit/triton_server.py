"""A stand-in for Triton, which runs a model repository as its documents say.

"Model Repository" and "Model Configuration" of its user guide, "Business Logic
Scripting" of its Python backend. ONNX models are run by onnxruntime.
"""

import importlib.util
import json
import sys
import types

import numpy as np
import onnxruntime
from google.protobuf import json_format, text_format

from tests.early_exit.triton_config import DATA_TYPES, NUMPY, ONNX, ModelConfig


class Tensor:
    """A tensor of `triton_python_backend_utils`."""

    def __init__(self, name, array):
        assert isinstance(name, str)
        assert isinstance(array, np.ndarray)
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class TritonError:
    def __init__(self, message):
        assert isinstance(message, str)
        self._message = message

    def message(self):
        return self._message


class TritonModelException(Exception):
    pass


class InferenceResponse:
    def __init__(self, *, output_tensors=(), error=None):
        self._outputs, self._error = list(output_tensors), error

    def output_tensors(self):
        return self._outputs

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


class PreferredMemory:
    def __init__(self, preferred_memory_type, preferred_device_id):
        self.type = preferred_memory_type


class Refused(Exception):
    """What Triton answers with an error."""


def by_name(tensors, name):
    return next((each for each in tensors if each.name() == name), None)


def check_tensors(tensors, ends, most, what):
    """Check tensors against a configuration; return their number of samples."""
    if sorted(each.name() for each in tensors) != sorted(each.name for each in ends):
        raise Refused(f"{what}: {[each.name() for each in tensors]}")
    sizes = set()
    for end in ends:
        array = by_name(tensors, end.name).as_numpy()
        kind = DATA_TYPES[end.data_type]
        fits = len(array.shape) == len(end.dims) + 1 and all(
            dim in (-1, size)
            for dim, size in zip(end.dims, array.shape[1:], strict=True)
        )
        if array.dtype != NUMPY[kind] or not fits:
            raise Refused(f"{what} {end.name}: {array.dtype} of shape {array.shape}")
        sizes.add(len(array))
    (size,) = sizes
    if not 1 <= size <= most:
        raise Refused(f"{what}: {size} samples, at most {most}")
    return size


def reshaped(tensors, config):
    """Return arrays by name, in the shapes that a model expects of Triton."""
    found = {}
    for end in config.input:
        array = by_name(tensors, end.name).as_numpy()
        shape = end.reshape.shape if end.HasField("reshape") else array.shape[1:]
        found[end.name] = array.reshape(len(array), *shape)
    return found


class Section:
    """An ONNX model of a repository."""

    def __init__(self, file, config):
        self.config = config
        self._session = onnxruntime.InferenceSession(file)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        assert len(inputs) == len(config.input)
        for exact, ends, found in (
            (False, config.input, inputs),
            (True, config.output, outputs),
        ):
            for end in ends:
                tensor = next(each for each in found if each.name == end.name)
                assert tensor.type == ONNX[DATA_TYPES[end.data_type]]
                assert end.dims, "the empty shape is not allowed"
                dims = end.reshape.shape if end.HasField("reshape") else end.dims
                batch, *sizes = (n if isinstance(n, int) else -1 for n in tensor.shape)
                assert batch == -1
                assert len(sizes) == len(dims)
                for size, dim in zip(sizes, dims, strict=True):
                    assert size == dim or (size == -1 and not exact)

    def __call__(self, tensors, names):
        config = self.config
        size = check_tensors(tensors, config.input, config.max_batch_size, "inputs")
        feed = reshaped(tensors, config)
        ends = [end for end in config.output if end.name in names]
        found = []
        arrays = self._session.run([end.name for end in ends], feed)
        for end, array in zip(ends, arrays, strict=True):
            shape = end.dims if end.HasField("reshape") else array.shape[1:]
            found.append(Tensor(end.name, array.reshape(size, *shape)))
        check_tensors(found, ends, config.max_batch_size, "outputs")
        return found


class Server:
    """Models of a repository, ready for requests.

    Attributes:
        calls: Name of the model and number of samples of every call of a section.
    """

    def __init__(self, repository):
        self.calls, self.sections = [], {}
        for folder in sorted(repository.iterdir()):
            if not folder.is_dir():  # Triton reads folders alone.
                continue
            text = (folder / "config.pbtxt").read_text()
            config = text_format.Parse(text, ModelConfig())
            assert config.name == folder.name
            versions = [each.name for each in folder.iterdir() if each.is_dir()]
            assert versions == ["1"]
            assert config.max_batch_size > 0
            assert config.HasField("dynamic_batching")
            if config.backend == "onnxruntime":
                model = Section(folder / "1" / "model.onnx", config)
                self.sections[config.name] = model
            else:
                assert config.backend == "python"
                self.config, self._file = config, folder / "1" / "model.py"
        self.model = self._load()

    def _load(self):
        """Return the model of the Python backend, initialized."""
        name = "triton_python_backend_utils"
        utils = types.ModuleType(name)
        utils.Tensor, utils.InferenceRequest = Tensor, self._request_class()
        utils.InferenceResponse, utils.TritonError = InferenceResponse, TritonError
        utils.TritonModelException = TritonModelException
        utils.PreferredMemory, utils.TRITONSERVER_MEMORY_CPU = PreferredMemory, "CPU"
        utils.get_input_tensor_by_name = lambda request, each: by_name(
            request.inputs(), each
        )
        utils.get_output_tensor_by_name = lambda response, each: by_name(
            response.output_tensors(), each
        )
        spec = importlib.util.spec_from_file_location("model", self._file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = utils
        try:
            spec.loader.exec_module(module)
        finally:
            del sys.modules[name]
        model = module.TritonPythonModel()
        config = json_format.MessageToDict(
            self.config, preserving_proto_field_name=True
        )
        model.initialize({"model_config": json.dumps(config), "model_version": "1"})
        return model

    def _request_class(self):
        server = self

        class InferenceRequest:
            def __init__(
                self, model_name, requested_output_names, inputs, preferred_memory=None
            ):
                self._model, self._names = model_name, requested_output_names
                self._inputs, self._memory = inputs, preferred_memory

            def inputs(self):
                return self._inputs

            def exec(self):
                # Others may return tensors of a GPU, which NumPy does not read.
                assert self._memory.type == "CPU"
                try:
                    server.calls.append((self._model, len(self._inputs[0].as_numpy())))
                    section = server.sections[self._model]
                    outputs = section(self._inputs, self._names)
                    return InferenceResponse(output_tensors=outputs)
                except Exception as error:
                    return InferenceResponse(error=TritonError(str(error)))

        self.request_class = InferenceRequest
        return InferenceRequest

    def infer(self, *requests):
        """Return the responses to requests that are batched.

        Args:
            *requests: For each request its arrays by name.

        Returns:
            For each the outputs by name, or the message of the error.
        """
        config = self.config
        names = [end.name for end in config.output]
        made, room = [], config.max_batch_size
        for arrays in requests:
            tensors = [Tensor(name, array) for name, array in arrays.items()]
            room -= check_tensors(tensors, config.input, room, "inputs")
            expected = reshaped(tensors, config)
            tensors = [Tensor(name, array) for name, array in expected.items()]
            made.append(self.request_class(config.name, names, tensors))
        responses = self.model.execute(made)
        assert len(responses) == len(requests)
        found = []
        for request, response in zip(made, responses, strict=True):
            if response.has_error():
                found.append(response.error().message())
                continue
            outputs = response.output_tensors()
            check_tensors(outputs, config.output, config.max_batch_size, "outputs")
            assert len(outputs[0].as_numpy()) == len(request.inputs()[0].as_numpy())
            found.append({each.name(): each.as_numpy() for each in outputs})
        return found
