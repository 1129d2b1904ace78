"""Partition files: how a program is spread over several devices.

Tensor slicing needs devices only. A pipeline lists for each stage the nodes that it runs, by the names that the compiler sees.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qaic_backend.devices import MAX_CORES, MAX_DEVICES
from qeff_framework.plugin_api import OptionError, StateSpec

#: The first number among the parts of a name is the layer: ``model.layers.3.mlp.experts.5.w1``, ``transformer.h.0.ln_1.weight``.
_LAYER = re.compile(r"\.(?:layer_)?(\d+)(?:\.|$)")


def stages(layers: int, count: int) -> list[int]:
    """Layers of each stage. The last stage, which has the output layer as well, never takes one of the remainder.

    The remainder goes to the middle stages from the centre outwards, then to the first. Raises `ValueError` when there are more
    stages than layers.
    """
    if count > layers:
        raise ValueError(f"{count} stages for {layers} layers")
    base, remainder = divmod(layers, count)
    sizes = [base] * count
    centre = (count - 1) / 2
    middle = sorted(range(1, count - 1), key=lambda stage: (abs(stage - centre), stage))
    # The remainder is less than the number of stages, so that each takes one at most.
    for stage in [*middle, 0][:remainder]:
        sizes[stage] += 1
    return sizes


def name_nodes(model: ir.Model) -> None:
    """Gives every node of the main graph a name of its own; nodes of the lowering have none."""
    taken = {node.name for node in model.graph if node.name}
    for number, node in enumerate(model.graph):
        if not node.name:
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)


def stage_nodes(model: ir.Model, states: Sequence[StateSpec], count: int) -> list[list[str]]:
    """Names of the nodes of each stage, in the order of the graph.

    A node belongs to the layer of the last weight or state that it depends on: what comes before the first layer is in the first
    stage, what follows the last layer in the last. Raises `OptionError` when the model has fewer layers than stages.
    """
    layers = _layers(model, states)
    known = sorted({layer for layer in layers.values() if layer >= 0})
    try:
        sizes = stages(len(known), count)
    except ValueError:
        raise OptionError(
            f"backend 'qaic': mdp_num_partitions={count} is more than the {len(known)} layers of the model"
        ) from None
    stage_of = {}
    first = 0
    for stage, size in enumerate(sizes):
        stage_of.update(dict.fromkeys(known[first : first + size], stage))
        first += size
    result: list[list[str]] = [[] for _ in range(count)]
    for node in model.graph:
        names = [str(node.name), *_copies(model, node)]
        result[stage_of.get(layers[node], 0)].extend(names)
    return result


def _copies(model: ir.Model, call: ir.Node) -> list[str]:
    """Names of what the compiler inlines for a call; names that it does not know are ignored."""
    function = model.functions.get(call.op_identifier())
    return [f"{call.name}/{node.name}" for node in function] if function is not None else []


def _layers(model: ir.Model, states: Sequence[StateSpec]) -> dict[ir.Node, int]:
    """The layer of each node, -1 before the first one."""
    state_names = {state.input for state in states}
    of_value: dict[ir.Value, int] = {}
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        name = str(value.name)
        is_source = value.is_initializer() or name in state_names
        found = _LAYER.search(name) if is_source else None
        of_value[value] = int(found[1]) if found else -1
    result = {}
    for node in model.graph:
        layer = max((of_value.get(value, -1) for value in node.inputs if value is not None), default=-1)
        result[node] = layer
        of_value.update(dict.fromkeys(node.outputs, layer))
    return result


def pipeline(nodes: Sequence[Sequence[str]], num_devices: int, num_cores: int) -> str:
    """The text of a partition file with one partition for each list of nodes."""
    share = num_devices // len(nodes)
    partitions = []
    for stage, names in enumerate(nodes):
        ids = range(stage * share, (stage + 1) * share)
        devices = [{"deviceId": number, "numCores": num_cores} for number in ids]
        partitions.append({"name": f"Partition{stage}", "devices": devices, "nodeList": list(names)})
    document = {"connections": [{"devices": list(range(num_devices)), "type": "p2p"}], "partitions": partitions}
    return json.dumps(document, indent=4, sort_keys=True, separators=(",", ":")) + "\n"


def read_user_file(path: Path, num_devices: int) -> str:
    """The text of a user's partition file. Raises `OptionError` for what the compiler would refuse after the export."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = json.loads(text)
    except (OSError, ValueError) as error:
        raise OptionError(f"backend 'qaic': mdp_load_partition_config {path} cannot be read: {error}") from error
    problem = _problem(document, num_devices)
    if problem:
        raise OptionError(f"backend 'qaic': mdp_load_partition_config {path.name}: {problem}")
    return text


def check_listed_nodes(text: str, model: ir.Model, file: str) -> None:
    """Raises `OptionError` for a partition of a user's file that lists nodes, none of which the model has.

    A list may also have names that the compiler gives, those of inlined functions for instance; it ignores others.
    """
    known = {str(node.name) for node in model.graph.all_nodes()}
    known |= {name for node in model.graph for name in _copies(model, node)}
    for partition in json.loads(text)["partitions"]:
        listed = partition.get("nodeList")
        if listed and known.isdisjoint(listed):
            near = difflib.get_close_matches(str(listed[0]), known, n=1)
            raise OptionError(
                f"backend 'qaic': mdp_load_partition_config {file}: no node of {partition.get('name', 'a partition')} is one of "
                f"the program ({listed[0]} first{f'; did you mean {near[0]}?' if near else ''})"
            )


def _problem(document: Any, num_devices: int) -> str | None:
    partitions = document.get("partitions") if isinstance(document, Mapping) else None
    if not isinstance(partitions, list) or not partitions or not all(isinstance(item, Mapping) for item in partitions):
        return "it needs a list 'partitions' with at least one entry"
    if not all(isinstance(item.get("devices"), list) and item["devices"] for item in partitions):
        return "each partition needs a list 'devices' with at least one entry"
    devices = [device for item in partitions for device in item["devices"]]
    if not all(isinstance(device, Mapping) and isinstance(device.get("deviceId"), int) for device in devices):
        return "each device needs a number 'deviceId'"
    ids = sorted(device["deviceId"] for device in devices)
    if ids != list(range(len(ids))):
        return f"the deviceIds are {ids}; they are logical numbers, each once, from 0 to {len(ids) - 1}"
    if len(ids) != num_devices:
        return f"it has {len(ids)} devices, and num_devices is {num_devices}; they must be equal"
    cores = [device.get("numCores", 1) for device in devices]
    if not all(isinstance(count, int) and 1 <= count <= MAX_CORES for count in cores):
        return f"numCores must be 1 to {MAX_CORES}"
    return _connection_problem(document.get("connections", []), set(ids))


def _connection_problem(connections: Any, known: set[int]) -> str | None:
    if not isinstance(connections, list):
        return "'connections' must be a list"
    for connection in connections:
        named = connection.get("devices", []) if isinstance(connection, Mapping) else []
        if not isinstance(named, list) or not named or not set(named) <= known:
            return f"a connection names the devices {named}, known are {sorted(known)}"
        if connection.get("type") not in ("p2p", "host"):
            return f"the type of a connection is p2p or host, not {connection.get('type')!r}"
        if connection["type"] == "p2p" and len(named) > MAX_DEVICES:
            return f"at most {MAX_DEVICES} devices exchange data peer to peer"
    return None
