"""The multi-device partition JSON file: its checks (row C18) and the dump of a partition (row C20)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from .errors import compile_failed
from .flat_nodes import FlatNode, flat_nodes

_MAX_CORES = 16
_MAX_P2P_DEVICES = 16
_CONNECTION_TYPES = ("p2p", "host")


def read_partitions(path: Path | None, model: onnx.ModelProto, cores: int) -> tuple[int, ...]:
    """Cores per logical device; one device with `cores` cores without a file.

    Raises:
        CompileError: the file breaks one of the rules of the contract.
    """
    if path is None:
        return (cores,)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise compile_failed(f"{path.name} is not JSON: {error}") from error
    _keys(document, {"partitions"}, {"connections"}, "partition file")
    partitions = _items(document["partitions"], "partitions")
    if not partitions:
        raise compile_failed("The partition file has no partitions")
    cores_of: dict[int, int] = {}
    for partition in partitions:
        _keys(partition, {"name", "devices"}, {"nodeList"}, "partition")
        for device, count in _partition_devices(partition):
            if device in cores_of:
                raise compile_failed(f"deviceId {device} appears twice")
            cores_of[device] = count
    if sorted(cores_of) != list(range(len(cores_of))):
        raise compile_failed(f"deviceIds must be contiguous from 0, got {sorted(cores_of)}")
    _check_names(partitions)
    _check_connections(_items(document.get("connections", []), "connections"), set(cores_of))
    _check_node_lists(partitions, model)
    return tuple(cores_of[device] for device in range(len(cores_of)))


def dump_partition(path: Path, model: onnx.ModelProto, cores: int) -> None:
    """Write one partition that lists every node of the compiled graph."""
    document = {
        "connections": [{"devices": [0], "type": "host"}],
        "partitions": [
            {
                "name": "Partition0",
                "devices": [{"deviceId": 0, "numCores": cores}],
                "nodeList": [node.name for node in flat_nodes(model)],
            }
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=4), encoding="utf-8")


def _keys(item: Any, required: set[str], optional: set[str], what: str) -> None:
    if not isinstance(item, dict) or not required <= set(item) <= required | optional:
        wanted = f"{', '.join(sorted(required))}" + (f" and optionally {', '.join(sorted(optional))}" * bool(optional))
        raise compile_failed(f"Every {what} needs the keys {wanted}, got {item!r}")


def _items(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise compile_failed(f"'{what}' must be a list")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _partition_devices(partition: Mapping[str, Any]) -> list[tuple[int, int]]:
    devices = _items(partition["devices"], "devices")
    if not devices:
        raise compile_failed(f"Partition {partition['name']!r} has no devices")
    for device in devices:
        _keys(device, {"deviceId", "numCores"}, set(), "device")
        if not _is_int(device["deviceId"]) or not _is_int(device["numCores"]):
            raise compile_failed(f"deviceId and numCores must be integers, got {device!r}")
        if not 1 <= device["numCores"] <= _MAX_CORES:
            raise compile_failed(f"numCores must be 1 to {_MAX_CORES}, got {device['numCores']}")
    return [(device["deviceId"], device["numCores"]) for device in devices]


def _check_names(partitions: Sequence[Mapping[str, Any]]) -> None:
    names = [partition["name"] for partition in partitions]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise compile_failed(f"Partition names must be unique texts, got {names}")


def _check_connections(connections: Sequence[Any], known: set[int]) -> None:
    for connection in connections:
        _keys(connection, {"devices", "type"}, set(), "connection")
        devices = _items(connection["devices"], "devices")
        if not all(_is_int(device) and device in known for device in devices):
            raise compile_failed(f"Connection between unknown devices: {devices}, known: {sorted(known)}")
        if len(set(devices)) != len(devices):
            raise compile_failed(f"Connection names a device twice: {devices}")
        if connection["type"] not in _CONNECTION_TYPES:
            raise compile_failed(f"Connection type must be p2p or host, got {connection['type']!r}")
        if connection["type"] == "p2p" and len(devices) > _MAX_P2P_DEVICES:
            raise compile_failed(f"At most {_MAX_P2P_DEVICES} devices can be connected by p2p, got {len(devices)}")


def _check_node_lists(partitions: Sequence[Mapping[str, Any]], model: onnx.ModelProto) -> None:
    if len(partitions) > 1 and not all("nodeList" in partition for partition in partitions):
        raise compile_failed("With several partitions each one needs a nodeList")
    nodes = flat_nodes(model)
    known = {node.name for node in nodes}
    place: dict[str, tuple[int, int]] = {}
    for index, partition in enumerate(partitions):
        listed = _items(partition.get("nodeList", []), "nodeList")
        if not all(isinstance(name, str) for name in listed):
            raise compile_failed(f"nodeList of {partition['name']} must be a list of texts")
        # Unknown names are legal: exporters list a superset.
        used = [name for name in listed if name in known]
        if len(partitions) > 1 and not used:
            raise compile_failed(f"Partition {partition['name']} has no node of the model")
        for position, name in enumerate(used):
            if name in place:
                raise compile_failed(f"Node '{name}' is in more than one place of the partition file")
            place[name] = (index, position)
    _check_topology(nodes, place)


def _check_topology(nodes: Sequence[FlatNode], place: Mapping[str, tuple[int, int]]) -> None:
    # The latest place among everything a value depends on; nodes that no partition lists pass it through.
    latest: dict[str, tuple[tuple[int, int], str]] = {}
    for node in nodes:
        before = max((latest[name] for name in node.inputs if name in latest), default=None)
        here = place.get(node.name)
        if before and here and before[0] > here:
            raise compile_failed(f"nodeList order: '{node.name}' comes before '{before[1]}', which it depends on")
        reached = (here, node.name) if here else before
        if reached:
            latest |= dict.fromkeys(node.outputs, reached)
