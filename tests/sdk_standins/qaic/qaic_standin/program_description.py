"""What the compiler tells the runtime about a program; stored as JSON inside the QPC."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

# How the elements of a binding are represented at the host. "native" is the graph's own non-float type.
FLOAT = "float"
FLOAT16 = "float16"
BFLOAT16 = "bfloat16"
INT8 = "int8"
MXINT8 = "mxint8"
NATIVE = "native"


@dataclass(frozen=True, kw_only=True)
class Binding:
    """One input or output buffer.

    `io_type` is the IO descriptor's type number, `graph_type` the numpy name of the reference graph's type.
    `retained_with` names the other half of a retained pair, or is empty.
    """

    name: str
    is_input: bool
    io_type: int
    element_size: int
    precision: str
    graph_type: str
    graph_rank: int
    channels_last: bool = False
    scale: float = 1.0
    offset: int = 0
    retained_with: str = ""

    @property
    def is_retained(self) -> bool:
        return bool(self.retained_with)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One specialization: the host-side dims of every binding, inputs then outputs."""

    name: str
    dims: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ProgramDescription:
    """Everything the runtime needs besides the reference graph.

    `cores_per_device` has one number per logical device. `node_precision` keeps the node-precision file's lists; the
    stand-in's execution does not use them.
    """

    profile: str
    target: str
    cores_per_device: tuple[int, ...]
    convert_to_fp16: bool
    is_encrypted: bool
    bindings: tuple[Binding, ...]
    entries: tuple[Entry, ...]
    node_precision: dict[str, list[str]]

    @property
    def device_count(self) -> int:
        return len(self.cores_per_device)

    @property
    def retained_pairs(self) -> tuple[tuple[str, str], ...]:
        """(input, output) names of the state that stays on the device."""
        return tuple((b.name, b.retained_with) for b in self.bindings if b.is_input and b.is_retained)

    def largest_dims(self, index: int) -> tuple[int, ...]:
        """Dims of a binding in the entry in which that binding is largest."""
        return max((entry.dims[index] for entry in self.entries), key=math.prod)

    def is_specialised(self, index: int) -> bool:
        """Whether the dims of a binding differ between entries."""
        return len({entry.dims[index] for entry in self.entries}) > 1

    def is_partial_allowed(self, index: int) -> bool:
        """Whether a buffer smaller than the descriptor's size may be given."""
        return self.bindings[index].is_retained or self.is_specialised(index)

    def to_json(self) -> bytes:
        """Canonical JSON, so that equal programs give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> ProgramDescription:
        """Inverse of `to_json`."""
        raw: dict[str, Any] = json.loads(data)
        raw["bindings"] = tuple(Binding(**binding) for binding in raw["bindings"])
        raw["entries"] = tuple(
            Entry(name=entry["name"], dims=tuple(tuple(dims) for dims in entry["dims"])) for entry in raw["entries"]
        )
        raw["cores_per_device"] = tuple(raw["cores_per_device"])
        return cls(**raw)
