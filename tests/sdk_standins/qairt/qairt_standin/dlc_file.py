"""The stand-in's DLC: a zip archive with the graphs' description and the model.

A real DLC is a zip archive too; nothing else about this one resembles it, and a plugin has no business reading it.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

_DESCRIPTION = "dlc.json"
_MODEL = "model.onnx"
# Not a usual name: onnx refuses one that a file in the working folder has.
_WEIGHTS = "standin-dlc-weights.bin"
# Equal input gives equal bytes, so the archive carries no times.
_DATE = (1980, 1, 1, 0, 0, 0)


class DlcError(Exception):
    """The file is not a DLC of the stand-in."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph of the DLC: its name and the value of each symbol of the model."""

    name: str
    symbols: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output as the host sees it. `scale` is 0 without quantisation parameters."""

    name: str
    data_type: str
    scale: float = 0.0
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Dlc:
    """What the converter tells the generator besides the model."""

    graphs: tuple[Graph, ...]
    tensors: tuple[Tensor, ...]
    float_bitwidth: int
    target_backend: str


def write_dlc(path: Path, dlc: Dlc, model: onnx.ModelProto) -> None:
    """Write the archive; `model` has its weights in memory."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / _MODEL
        onnx.save_model(model, str(file), save_as_external_data=True, location=_WEIGHTS, size_threshold=1024)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
            archive.writestr(zipfile.ZipInfo(_DESCRIPTION, _DATE), json.dumps(asdict(dlc), sort_keys=True))
            for part in (_MODEL, _WEIGHTS):
                if not (Path(folder) / part).exists():
                    continue
                with (
                    (Path(folder) / part).open("rb") as source,
                    archive.open(zipfile.ZipInfo(part, _DATE), "w", force_zip64=True) as target,
                ):
                    while block := source.read(16 * 1024 * 1024):
                        target.write(block)


@contextmanager
def open_dlc(path: Path) -> Iterator[tuple[Dlc, Path]]:
    """The description and, for the length of the block, the path of the model.

    Raises:
        DlcError: missing, truncated, or something else.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                raw: dict[str, Any] = json.loads(archive.read(_DESCRIPTION))
                archive.extractall(folder)
        except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
            raise DlcError(f"cannot read DLC {path}: {error}") from error
        raw["graphs"] = tuple(Graph(**graph) for graph in raw["graphs"])
        raw["tensors"] = tuple(Tensor(**tensor) for tensor in raw["tensors"])
        yield Dlc(**raw), Path(folder) / _MODEL
