"""The IO YAML file of `--config` (rows N3 and N4)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import yaml

from ....qaic.qaic_standin.compiler.data_types import FLOAT_TENSORS
from ....qaic.qaic_standin.compiler.graph_walk import rank_of, real_inputs
from ..errors import ToolError

INPUTS = "Input Tensor Configuration"
OUTPUTS = "Output Tensor Configuration"
DESIRED = "Desired Model Parameters"
SOURCE = "Src Model Parameters"
RETAINED = "_RetainedState"

_MAX_CONFIGURATIONS = 2
_TUPLE = r"\(\s*\d+\s*(?:,\s*\d+\s*)*,?\s*\)"
_SHAPES = re.compile(rf"{_TUPLE}(?:\s*,\s*{_TUPLE})*")
_FLOATS = ("float32", "float16", "bfloat16", "uint8", "int8")

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class IoConfig:
    """Data type of each tensor that the file names, its quantisation, and the shapes of each input."""

    data_types: Mapping[str, str]
    quantisation: Mapping[str, tuple[float, int]]
    shapes: Mapping[str, tuple[Shape, ...]]

    @property
    def configurations(self) -> int:
        """Number of graphs that the DLC gets."""
        return max(map(len, self.shapes.values()))


def failed(reason: str) -> ToolError:
    """A refusal in the tool's words."""
    return ToolError(f"ERROR - {reason}")


def read_io_config(path: Path, model: onnx.ModelProto, known_types: Sequence[str]) -> IoConfig:
    """Read and check the file.

    Raises:
        ToolError: anything that the contract does not vouch for.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise failed(f"--config {path}: {error}") from error
    if not isinstance(document, dict) or set(document) != {INPUTS, OUTPUTS}:
        raise failed(f"{path.name} must have exactly the keys '{INPUTS}' and '{OUTPUTS}'")
    inputs = {value.name: value for value in real_inputs(model)}
    outputs = {value.name: value for value in model.graph.output}
    given_inputs = _items(document[INPUTS], inputs, INPUTS, {"DataType", "Shape"})
    given_outputs = _items(document[OUTPUTS], outputs, OUTPUTS, {"DataType"})
    missing = [name for name in inputs if name not in given_inputs]
    if missing:
        raise failed(f"'{INPUTS}' lacks the inputs {', '.join(missing)}")
    shapes = {name: _shapes(name, item.get("Shape"), inputs[name]) for name, item in given_inputs.items()}
    _check_counts(shapes)
    values = {**inputs, **outputs}
    given = {**given_inputs, **given_outputs}
    data_types = {
        name: _data_type(name, item["DataType"], values[name], known_types)
        for name, item in given.items()
        if "DataType" in item
    }
    _check_states(data_types, inputs)
    return IoConfig(
        data_types=data_types,
        quantisation={name: _quantisation(name, item) for name, item in given.items() if "QuantParams" in item},
        shapes=shapes,
    )


def _items(
    items: Any, known: Mapping[str, onnx.ValueInfoProto], section: str, allowed: set[str]
) -> dict[str, Mapping[str, Any]]:
    if not isinstance(items, list) or not items:
        raise failed(f"'{section}' must be a list")
    result: dict[str, Mapping[str, Any]] = {}
    for item in items:
        if not isinstance(item, dict) or not {"Name", DESIRED} <= set(item) <= {"Name", DESIRED, SOURCE}:
            raise failed(f"every item of '{section}' needs Name and '{DESIRED}', got {item!r}")
        name, desired = item["Name"], item[DESIRED]
        if name not in known:
            raise failed(f"'{name}' in '{section}' is no such tensor of the model")
        if name in result:
            raise failed(f"'{name}' appears twice in '{section}'")
        if not isinstance(desired, dict) or not set(desired) <= allowed | {"QuantParams"}:
            raise failed(f"'{DESIRED}' of '{name}' takes {', '.join(sorted(allowed))} and QuantParams, got {desired!r}")
        result[name] = desired
    return result


def _shapes(name: str, text: Any, value: onnx.ValueInfoProto) -> tuple[Shape, ...]:
    if not isinstance(text, str) or not _SHAPES.fullmatch(text.strip()):
        raise failed(f"Shape of '{name}' must be a text of tuples such as '(1, 32), (1, 1)', got {text!r}")
    shapes = tuple(tuple(map(int, re.findall(r"\d+", part))) for part in re.findall(_TUPLE, text))
    for shape in shapes:
        if len(shape) != rank_of(value):
            raise failed(f"Shape {shape} of '{name}' has rank {len(shape)}, the input has {rank_of(value)}")
        if 0 in shape:
            raise failed(f"Shape {shape} of '{name}' has an empty dimension")
        for size, dim in zip(shape, value.type.tensor_type.shape.dim, strict=True):
            if dim.HasField("dim_value") and dim.dim_value != size:
                raise failed(f"Shape {shape} of '{name}' differs from the model's dimension {dim.dim_value}")
    return shapes


def _check_counts(shapes: Mapping[str, tuple[Shape, ...]]) -> None:
    counts = {len(item) for item in shapes.values()}
    if max(counts) > _MAX_CONFIGURATIONS:
        raise failed(f"at most {_MAX_CONFIGURATIONS} configurations are supported, got {max(counts)}")


def _data_type(name: str, data_type: Any, value: onnx.ValueInfoProto, known: Sequence[str]) -> str:
    if data_type not in known:
        raise failed(f"DataType {data_type!r} of '{name}' is unknown; known: {', '.join(known)}")
    element_type = value.type.tensor_type.elem_type
    graph_type = str(onnx.helper.tensor_dtype_to_np_dtype(element_type))
    is_possible = data_type in _FLOATS if element_type in FLOAT_TENSORS else data_type == graph_type
    if not is_possible:
        raise failed(f"DataType {data_type} of '{name}' does not fit the model's {graph_type}")
    return str(data_type)


def _quantisation(name: str, item: Mapping[str, Any]) -> tuple[float, int]:
    given = item["QuantParams"]
    if (
        not isinstance(given, dict)
        or set(given) != {"Scale", "Offset"}
        or not isinstance(given["Scale"], int | float)
        or not isinstance(given["Offset"], int)
        or given["Scale"] <= 0
    ):
        raise failed(f"QuantParams of '{name}' needs Scale and Offset, got {given!r}")
    return float(given["Scale"]), given["Offset"]


def _check_states(data_types: Mapping[str, str], inputs: Mapping[str, onnx.ValueInfoProto]) -> None:
    for output, data_type in data_types.items():
        name = output.removesuffix(RETAINED)
        if name != output and name in inputs and data_types.get(name) != data_type:
            raise failed(f"'{name}' is {data_types.get(name)} and '{output}' is {data_type}: a state has one DataType")
