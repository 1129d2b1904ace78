"""Which states the layers of a model keep between steps, and their shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Role = Literal["key", "value", "index_key", "compressed_key", "key_cross", "value_cross", "conv", "recurrent"]

#: Roles whose third axis are the slots of the context, written at the positions of the step.
SLOTTED: tuple[Role, ...] = ("key", "value", "index_key", "compressed_key")
#: The same of cross-attention: slots of the encoder's context, written at the positions of the encoder's tokens.
CROSS: tuple[Role, ...] = ("key_cross", "value_cross")


@dataclass(frozen=True, kw_only=True)
class StateId:
    """Which state: a layer may keep several, also several of one role."""

    layer: int
    role: Role
    number: int = 0

    @property
    def name(self) -> str:
        """Name of the graph input."""
        return f"past_{self.role}.{self.layer}" + (f".{self.number}" if self.number else "")

    @property
    def kind(self) -> str:
        """See `qeff_framework.contracts.StateSpec.kind`."""
        if self.role in CROSS:
            return "cross"
        return "kv" if self.role in SLOTTED else self.role


@dataclass(frozen=True, kw_only=True)
class StateShape:
    """A state and its sizes behind the batch axis; the second of a slotted one is the context's. Layers may differ."""

    id: StateId
    sizes: tuple[int, ...]

    def zeros(self, rows: int, ctx_len: int) -> torch.Tensor:
        """An empty state with `ctx_len` slots, if it has slots."""
        if self.id.role in (*SLOTTED, *CROSS):
            return torch.zeros((rows, self.sizes[0], ctx_len, self.sizes[2]))
        return torch.zeros((rows, *self.sizes))
