"""What the builders of all tasks take and return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import StateSpec

if TYPE_CHECKING:
    import onnx_ir

    from qeff_framework.export.pooling import Pooling


@dataclass(frozen=True, kw_only=True)
class GraphRequest:
    """What is asked of a graph beside its task."""

    #: Encoders: makes an embedding of the last hidden state, see `contracts.ExportRequest.pooling`.
    pooling: Pooling | None = None
    #: Causal LMs: inputs between tokens and states, see `contracts.EXTRA_INPUTS` and `contracts.SAMPLER_INPUTS`.
    extra_inputs: tuple[str, ...] = ()
    #: Causal LMs that end in a sampler: see `contracts.ExportRequest`.
    extra_outputs: tuple[str, ...] = ()
    #: Models of several programs: which one, and what it is made for, see `contracts.ExportRequest`.
    program: str = ""
    program_inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PortableGraph:
    """A portable graph in memory, over the weights of the module that it was made of."""

    model: onnx_ir.Model
    states: tuple[StateSpec, ...] = ()
    #: Facts that only this task's programs have, for `contracts.ExportedModel.metadata`.
    metadata: Mapping[str, Any] = field(default_factory=dict)
