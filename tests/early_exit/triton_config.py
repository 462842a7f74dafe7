"""Messages of the servers' configurations, as far as our files use them.

Names, numbers and types of fields are those of `protobuf/model_config.proto` of
`triton-inference-server/common`, and of `BatchingParameters` in TensorFlow Serving's
`session_bundle_config.proto`. The parser refuses all that is not described here.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

NUMPY = {
    "TYPE_BOOL": "bool",
    "TYPE_INT32": "int32",
    "TYPE_INT64": "int64",
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float32",
}
ONNX = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
}
# Messages: number and type of each field, with "*" where it is repeated.
ENUMS = {
    "DataType": {
        "TYPE_INVALID": 0,
        "TYPE_BOOL": 1,
        "TYPE_INT32": 8,
        "TYPE_INT64": 9,
        "TYPE_FP16": 10,
        "TYPE_FP32": 11,
    },
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3},
}
MESSAGES = {
    "ModelTensorReshape": {"shape": (1, "int64*")},
    "ModelInput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (4, "int64*"),
        "reshape": (5, "ModelTensorReshape"),
    },
    "ModelOutput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (3, "int64*"),
        "reshape": (5, "ModelTensorReshape"),
    },
    "ModelDynamicBatching": {
        "preferred_batch_size": (1, "int32*"),
        "max_queue_delay_microseconds": (2, "uint64"),
    },
    "ModelInstanceGroup": {"count": (2, "int32"), "kind": (4, "Kind")},
    "ModelParameter": {"string_value": (1, "string")},
    "ModelConfig": {
        "name": (1, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "ModelInput*"),
        "output": (6, "ModelOutput*"),
        "instance_group": (7, "ModelInstanceGroup*"),
        "dynamic_batching": (11, "ModelDynamicBatching"),
        "parameters": (14, "ModelConfig.ParametersEntry*"),
        "backend": (17, "string"),
    },
}
# Wrapped numbers of TensorFlow Serving, `google.protobuf.Int64Value`.
MESSAGES |= {
    "Int64Value": {"value": (1, "int64")},
    "BatchingParameters": {
        "max_batch_size": (1, "Int64Value"),
        "batch_timeout_micros": (2, "Int64Value"),
        "max_enqueued_batches": (3, "Int64Value"),
        "num_batch_threads": (4, "Int64Value"),
    },
}
# `map<string, ModelParameter> parameters`, as protobuf writes maps.
ENTRY = {"key": (1, "string"), "value": (2, "ModelParameter")}


def add_fields(message, fields):
    """Add fields to the description of a message."""
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, (number, kind) in fields.items():
        base = kind.removesuffix("*")
        label = kinds.LABEL_REPEATED if base != kind else kinds.LABEL_OPTIONAL
        field = message.field.add(name=name, number=number, label=label)
        if base in ("string", "int32", "int64", "uint64"):
            field.type = getattr(kinds, f"TYPE_{base.upper()}")
        else:
            field.type = kinds.TYPE_ENUM if base in ENUMS else kinds.TYPE_MESSAGE
            field.type_name = f".inference.{base}"


def messages():
    """Return the classes of messages by name."""
    file = descriptor_pb2.FileDescriptorProto(
        name="model_config.proto", package="inference", syntax="proto3"
    )
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for each, number in values.items():
            enum.value.add(name=each, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        add_fields(message, fields)
        if name == "ModelConfig":
            entry = message.nested_type.add(name="ParametersEntry")
            entry.options.map_entry = True
            add_fields(entry, ENTRY)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"inference.{name}")
        )
        for name in ("ModelConfig", "BatchingParameters")
    }


ModelConfig, BatchingParameters = messages().values()
DATA_TYPES = {number: name for name, number in ENUMS["DataType"].items()}
