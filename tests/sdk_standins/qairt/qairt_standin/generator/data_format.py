"""The JSON file of `--data_format_config` (row N9)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from .backend_options import read_json, refused

MX = "QNN_TENSOR_DATA_FORMAT_MX"
_FORMATS = (MX, "QNN_TENSOR_DATA_FORMAT_FLAT_BUFFER")


def mx_tensors(path: Path, graphs: Collection[str], tensors: Collection[str]) -> frozenset[str]:
    """Names of the tensors in MX format.

    Raises:
        ToolError: an unknown graph, tensor, key or format; graphs that are missing or differ.
    """
    document = read_json(path)
    entries = document.get("graphs")
    if set(document) != {"graphs"} or not isinstance(entries, list):
        raise refused(f"{path}: needs the list graphs and nothing else")
    found: dict[str, frozenset[str]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != {"graph_name", "tensors"}:
            raise refused(f"{path}: every graph needs graph_name and tensors")
        if entry["graph_name"] not in graphs or entry["graph_name"] in found:
            raise refused(f"{path}: unknown or repeated graph {entry['graph_name']!r}; known: {', '.join(graphs)}")
        found[entry["graph_name"]] = frozenset(_tensor(item, tensors, path) for item in entry["tensors"])
    if set(found) != set(graphs) or len(set(found.values())) != 1:
        raise refused(f"{path}: every graph needs an entry, with the same tensors")
    return next(iter(found.values()))


def _tensor(item: object, known: Collection[str], path: Path) -> str:
    if not isinstance(item, dict) or set(item) != {"tensor_name", "dataFormat"}:
        raise refused(f"{path}: every tensor needs tensor_name and dataFormat, got {item!r}")
    if item["tensor_name"] not in known:
        raise refused(f"{path}: unknown tensor {item['tensor_name']!r}")
    if item["dataFormat"] not in _FORMATS:
        raise refused(f"{path}: unknown dataFormat {item['dataFormat']!r}")
    if item["dataFormat"] != MX:
        raise refused(f"{path}: the stand-in models {MX} only")
    return str(item["tensor_name"])
