"""The custom-IO YAML file (row C13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import yaml

from ..program_description import BFLOAT16, INT8
from .data_types import CUSTOM_PRECISIONS, ELEMENT_TYPES, FLOAT_TENSORS
from .errors import compile_failed
from .graph_walk import rank_of, real_inputs
from .target import supports_bfloat16

_KEYS = {"IOName", "Precision", "Layout", "Scale", "Offset"}
_LAYOUTS = ("NCHW", "NHWC")
_LAYOUT_RANK = 4


@dataclass(frozen=True, kw_only=True)
class CustomIo:
    """Representation asked for one input or output."""

    precision: str
    channels_last: bool = False
    scale: float = 1.0
    offset: int = 0


def read_custom_io(
    path: Path | None, model: onnx.ModelProto, target: str, pairs: Mapping[str, str]
) -> dict[str, CustomIo]:
    """The file's items by IO name; empty without a file.

    Raises:
        CompileError: not a list of items, an unknown name, key, precision or layout, or a retained pair that differs.
    """
    if path is None:
        return {}
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise compile_failed(f"{path.name} is not YAML: {error}") from error
    if not isinstance(document, list) or not document:
        raise compile_failed(f"{path.name} must be a list of items with IOName and Precision")
    values = {value.name: value for value in (*real_inputs(model), *model.graph.output)}
    result: dict[str, CustomIo] = {}
    for item in document:
        name = _io_name(item, path.name)
        if name not in values:
            raise compile_failed(f"IOName '{name}' in {path.name} is not an input or output of the model")
        if name in result:
            raise compile_failed(f"IOName '{name}' appears twice in {path.name}")
        result[name] = _item(item, values[name], target)
    _check_pairs(result, pairs)
    return result


def write_template(path: Path, model: onnx.ModelProto) -> None:
    """Write a custom-IO file that asks for what the graph has anyway."""
    items = [
        {"IOName": value.name, "Precision": ELEMENT_TYPES[value.type.tensor_type.elem_type].precision}
        for value in _float_values(model)
    ]
    path.write_text(yaml.safe_dump(items, sort_keys=False), encoding="utf-8")


def _float_values(model: onnx.ModelProto) -> Sequence[onnx.ValueInfoProto]:
    return [
        value
        for value in (*real_inputs(model), *model.graph.output)
        if value.type.tensor_type.elem_type in FLOAT_TENSORS
    ]


def _io_name(item: Any, file: str) -> str:
    if not isinstance(item, dict) or not isinstance(item.get("IOName"), str):
        raise compile_failed(f"Every item of {file} needs an IOName, got {item!r}")
    unknown = sorted(map(str, set(item) - _KEYS))
    if unknown:
        raise compile_failed(f"Unknown key {', '.join(unknown)} for IOName '{item['IOName']}' in {file}")
    return str(item["IOName"])


def _item(item: Mapping[str, Any], value: onnx.ValueInfoProto, target: str) -> CustomIo:
    name = value.name
    precision = item.get("Precision")
    if precision not in CUSTOM_PRECISIONS or (precision == BFLOAT16 and not supports_bfloat16(target)):
        raise compile_failed(f"Precision {precision!r} of '{name}' is not supported on {target}")
    if value.type.tensor_type.elem_type not in FLOAT_TENSORS:
        raise compile_failed(f"Precision {precision} asked for '{name}', which is not a float tensor")
    layout = item.get("Layout", _LAYOUTS[0])
    if layout not in _LAYOUTS or ("Layout" in item and rank_of(value) != _LAYOUT_RANK):
        raise compile_failed(f"Layout {layout!r} of '{name}': {', '.join(_LAYOUTS)} for tensors of rank 4 only")
    scale, offset = item.get("Scale"), item.get("Offset")
    if precision == INT8 and not (_is_number(scale) and isinstance(offset, int)):
        raise compile_failed(f"Precision int8 of '{name}' needs Scale and Offset")
    if precision != INT8 and (scale is not None or offset is not None):
        raise compile_failed(f"Scale and Offset of '{name}' are for precision int8 only")
    return CustomIo(
        precision=precision,
        channels_last=layout == "NHWC",
        scale=float(scale) if scale is not None else 1.0,
        offset=offset or 0,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _check_pairs(items: Mapping[str, CustomIo], pairs: Mapping[str, str]) -> None:
    for name, output in pairs.items():
        if items.get(name) != items.get(output):
            raise compile_failed(
                f"Retained state '{name}' and '{output}' must have the same precision, got "
                f"{_shown(items.get(name))} and {_shown(items.get(output))}"
            )


def _shown(item: CustomIo | None) -> str:
    return item.precision if item else "none"
