"""The small files that the compiler reads beside the model. Each function returns the text of one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from qeff_framework.plugin_api import Specialization, StateSpec

_KINDS = {"prefill": "Prefill", "decode": "Decode", "encode": "Embedding", "encoder": "Encoder"}


def flat_specializations(specializations: Sequence[Specialization]) -> str:
    """The form that every SDK up to 1.21 reads. Values are decimal strings."""
    return _json({"specializations": [_symbols(item) for item in specializations]})


def named_specializations(specializations: Sequence[Specialization]) -> str:
    """The form of SDK 1.22 and newer: each entry is a graph with a name."""
    titles = _titles(specializations)
    entries = zip(titles, specializations, strict=True)
    return _json({"specializations": [{"name": title, "symbols": _symbols(item)} for title, item in entries]})


def _symbols(specialization: Specialization) -> dict[str, str]:
    return {symbol: str(value) for symbol, value in specialization.dims.items()}


def _titles(specializations: Sequence[Specialization]) -> list[str]:
    """Names as this platform has them: ``Prefill``, ``Decode``, ``Encoder``, ``Embedding``; several of a kind count from 0."""
    kinds = [_KINDS.get(item.name.partition("_")[0], item.name) for item in specializations]
    return [
        kind if kinds.count(kind) == 1 else f"{kind}_{kinds[:number].count(kind)}" for number, kind in enumerate(kinds)
    ]


def custom_io(states: Iterable[StateSpec], precision: str) -> str:
    """YAML that stores each retained state of numbers, input and output, in `precision` (``float16`` or ``mxint8``)."""
    # What a sampler keeps is bool and has no other form; what the host writes has none as MXINT8.
    names = [
        (name, "float16" if state.kind == "adapter" else precision)
        for state in states
        if state.kind != "sampler"
        for name in (state.input, state.output)
    ]
    # A name in JSON's quotes is YAML whatever characters it has.
    return "\n".join(f" - IOName: {json.dumps(name)}\n   Precision: {form}\n" for name, form in names)


def tensor_slicing(num_devices: int, num_cores: int) -> str:
    """One partition over all devices, which exchange data peer to peer. Ids are logical: QIDs are chosen at run time."""
    ids = list(range(num_devices))
    devices = [{"deviceId": number, "numCores": num_cores} for number in ids]
    return _json(
        {
            "connections": [{"devices": ids, "type": "p2p"}],
            "partitions": [{"name": "Partition0", "devices": devices}],
        }
    )


def node_precision(fp32_nodes: Iterable[str]) -> str:
    """YAML with the nodes, named by their first output, that stay in FP32."""
    return "FP32NodeInstanceNames:\n" + "".join(f"  - {json.dumps(name)}\n" for name in fp32_nodes)


def _json(content: object) -> str:
    return json.dumps(content, indent=4, sort_keys=True, separators=(",", ":")) + "\n"
