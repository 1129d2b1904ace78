"""The IO descriptor messages (`QAicApi_pb2`), built at run time from a table of field numbers.

The vendor's .proto file is proprietary and is not used. Field numbers, names and message nesting are facts that the
contract lists; the scalar widths, the enum type names and the types of fields 5 to 7 of `IoDesc` (which the stand-in
never sets) are ours. Any field-compatible module reads the bytes.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from .profiles import Profile

PACKAGE = "aicapi"

DATA_TYPES = {
    "FLOAT_TYPE": 0,
    "FLOAT_16_TYPE": 1,
    "INT8_Q_TYPE": 2,
    "UINT8_Q_TYPE": 3,
    "INT16_Q_TYPE": 4,
    "INT32_Q_TYPE": 5,
    "INT32_I_TYPE": 6,
    "INT64_I_TYPE": 7,
    "INT8_TYPE": 8,
    "BFLOAT16_TYPE": 11,
    "INVALID_TYPE": 0xFF,
}
DIRECTIONS = {"BUFFER_IO_TYPE_INPUT": 0, "BUFFER_IO_TYPE_OUTPUT": 1}

_TYPE_ENUM = "IoDataType"
_DIRECTION_ENUM = "IoDirection"
_REPEATED = "repeated"

# Message -> (field, number, type, repeated). A type that is not a scalar name is a message or enum of this package.
_MESSAGES: dict[str, tuple[tuple[str, int, str, str], ...]] = {
    "DmaBuf": (("index", 1, "uint32", ""), ("size", 2, "uint64", ""), ("dir", 3, _DIRECTION_ENUM, "")),
    "DmaBufInfo": (
        ("dma_buf_index", 1, "uint32", ""),
        ("dma_size", 2, "uint64", ""),
        ("io_binding_offset", 3, "uint64", ""),
        ("dma_offset", 4, "uint64", ""),
    ),
    "IoBinding": (
        ("name", 1, "string", ""),
        ("index", 2, "uint32", ""),
        ("type", 3, _TYPE_ENUM, ""),
        ("dir", 4, _DIRECTION_ENUM, ""),
        ("quant_scale", 5, "float", ""),
        ("quant_offset", 6, "int32", ""),
        ("dims", 7, "uint32", _REPEATED),
        ("size", 8, "uint64", ""),
        ("dma_buf_info", 9, "DmaBufInfo", _REPEATED),
        ("is_partial_buf_allowed", 10, "bool", ""),
        ("is_valid", 20, "bool", ""),
    ),
    "IoSet": (("name", 1, "string", ""), ("bindings", 2, "IoBinding", _REPEATED)),
    "TensorShape": (("type", 1, _TYPE_ENUM, ""), ("dims", 2, "uint32", _REPEATED)),
    "IoShapes": (("shapes", 1, "TensorShape", _REPEATED),),
    "IoDesc": (
        ("io_sets", 1, "IoSet", _REPEATED),
        ("selected_set", 2, "IoSet", ""),
        ("program_name", 3, "string", ""),
        ("dma_buf", 4, "DmaBuf", _REPEATED),
        ("runtime_constants", 5, "bytes", ""),
        ("pre_process_skip_stages", 6, "bytes", ""),
        ("post_process_skip_stages", 7, "bytes", ""),
        ("allowed_shapes", 8, "IoShapes", _REPEATED),
    ),
}

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _FIELD.TYPE_STRING,
    "bytes": _FIELD.TYPE_BYTES,
    "bool": _FIELD.TYPE_BOOL,
    "float": _FIELD.TYPE_FLOAT,
    "int32": _FIELD.TYPE_INT32,
    "uint32": _FIELD.TYPE_UINT32,
    "uint64": _FIELD.TYPE_UINT64,
}


def api_names(profile: Profile) -> dict[str, Any]:
    """The public names of `QAicApi_pb2` under a profile: message classes and enum values as integers.

    `BFLOAT16_TYPE` is absent from older modules, which is why callers need `getattr` with a default.
    """
    enums = {**DATA_TYPES, **DIRECTIONS}
    if not profile.has_newer_runtime_calls:
        del enums["BFLOAT16_TYPE"]
    return {**message_classes(), **enums}


def message_classes() -> dict[str, Any]:
    """Message classes by name. `Any`: protobuf builds these classes at run time, so they have no static type."""
    # A pool of our own: the default pool would refuse a second, different definition in a process that has the real module.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_file_descriptor().SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES
    }


def _file_descriptor() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="qaic_standin/QAicApi.proto", package=PACKAGE, syntax="proto3")
    for enum_name, values in ((_TYPE_ENUM, DATA_TYPES), (_DIRECTION_ENUM, DIRECTIONS)):
        enum = file.enum_type.add(name=enum_name)
        for name, number in values.items():
            enum.value.add(name=name, number=number)
    for message_name, message_fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for name, number, kind, label in message_fields:
            field = message.field.add(
                name=name,
                number=number,
                label=_FIELD.LABEL_REPEATED if label == _REPEATED else _FIELD.LABEL_OPTIONAL,
            )
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type = _FIELD.TYPE_ENUM if kind in (_TYPE_ENUM, _DIRECTION_ENUM) else _FIELD.TYPE_MESSAGE
                field.type_name = f".{PACKAGE}.{kind}"
    return file
