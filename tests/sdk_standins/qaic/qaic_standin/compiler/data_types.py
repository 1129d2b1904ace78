"""Element types: from ONNX to the numbers of the IO descriptor."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from ..api_schema import DATA_TYPES
from ..program_description import BFLOAT16, FLOAT, FLOAT16, INT8, MXINT8, NATIVE


@dataclass(frozen=True, kw_only=True)
class ElementType:
    """How a graph tensor appears at the host when nothing else is asked for."""

    io_type: int
    size: int
    graph_type: str
    precision: str


def _native(io_type: str, size: int, graph_type: str) -> ElementType:
    return ElementType(io_type=DATA_TYPES[io_type], size=size, graph_type=graph_type, precision=NATIVE)


ELEMENT_TYPES: dict[int, ElementType] = {
    TensorProto.FLOAT: ElementType(io_type=DATA_TYPES["FLOAT_TYPE"], size=4, graph_type="float32", precision=FLOAT),
    TensorProto.FLOAT16: ElementType(
        io_type=DATA_TYPES["FLOAT_16_TYPE"], size=2, graph_type="float16", precision=FLOAT16
    ),
    # The reference graph widens bfloat16 to float32, because ONNX Runtime has hardly any bfloat16 kernels on the CPU.
    TensorProto.BFLOAT16: ElementType(
        io_type=DATA_TYPES["BFLOAT16_TYPE"], size=2, graph_type="float32", precision=BFLOAT16
    ),
    TensorProto.INT8: _native("INT8_Q_TYPE", 1, "int8"),
    TensorProto.UINT8: _native("UINT8_Q_TYPE", 1, "uint8"),
    TensorProto.INT16: _native("INT16_Q_TYPE", 2, "int16"),
    TensorProto.INT32: _native("INT32_I_TYPE", 4, "int32"),
    TensorProto.INT64: _native("INT64_I_TYPE", 8, "int64"),
    TensorProto.BOOL: _native("INT8_TYPE", 1, "bool"),
}

# Precision word of the custom-IO file -> (IO type, element size).
CUSTOM_PRECISIONS: dict[str, tuple[int, int]] = {
    FLOAT: (DATA_TYPES["FLOAT_TYPE"], 4),
    FLOAT16: (DATA_TYPES["FLOAT_16_TYPE"], 2),
    BFLOAT16: (DATA_TYPES["BFLOAT16_TYPE"], 2),
    INT8: (DATA_TYPES["INT8_Q_TYPE"], 1),
    MXINT8: (DATA_TYPES["INT8_Q_TYPE"], 1),
}

FLOAT_TENSORS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
