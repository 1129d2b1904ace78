"""Reads and checks the ONNX file (row C9)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor, uses_external_data

from .errors import compile_failed
from .graph_walk import real_inputs

# Shape inference needs the values of shape-like constants; anything larger is a weight and stays in its file.
_INLINE_LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A parsed model whose large weights are still in their external files."""

    path: Path
    model: onnx.ModelProto

    @property
    def folder(self) -> Path:
        """External data is resolved relative to this."""
        return self.path.parent

    def external_files(self) -> tuple[Path, ...]:
        """The files that hold external data."""
        names = {
            ExternalDataInfo(tensor).location for tensor in self.model.graph.initializer if uses_external_data(tensor)
        }
        return tuple(self.folder / name for name in sorted(names))


def read_model(path: Path) -> ModelFile:
    """Parse, check with the ONNX checker, and load small external constants.

    Raises:
        CompileError: the bytes are not a valid model, or external data is missing or too short.
    """
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise compile_failed(f"Unable to load ONNX model {path.name}: {error}") from error
    if not model.graph.node:
        raise compile_failed(f"Unable to load ONNX model {path.name}: the graph has no nodes")
    _check_external_data(model, path.parent)
    try:
        # By path: the checker then accepts models over 2 GB and looks up external data itself.
        onnx.checker.check_model(str(path.resolve()))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise compile_failed(f"Invalid ONNX model {path.name}: {error}") from error
    _check_ranks(model)
    for tensor in model.graph.initializer:
        if uses_external_data(tensor) and (ExternalDataInfo(tensor).length or 0) <= _INLINE_LIMIT_BYTES:
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return ModelFile(path=path, model=model)


def _check_external_data(model: onnx.ModelProto, folder: Path) -> None:
    for tensor in model.graph.initializer:
        if not uses_external_data(tensor):
            continue
        info = ExternalDataInfo(tensor)
        file = folder / info.location
        if not file.is_file():
            raise compile_failed(f"External data file '{info.location}' of tensor '{tensor.name}' not found")
        if (info.offset or 0) + (info.length or 0) > file.stat().st_size:
            raise compile_failed(f"External data file '{info.location}' is too short for '{tensor.name}'")


def _check_ranks(model: onnx.ModelProto) -> None:
    for value in (*real_inputs(model), *model.graph.output):
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            raise compile_failed(f"'{value.name}' is not a tensor of known rank")
