"""What an export and a compilation are about to do, with their keys: made first, so that what can be refused is refused early."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import Specialization, Transform
from qeff_framework.plugin_api import Backend

if TYPE_CHECKING:
    from qeff_framework.relay import Relay


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """What will be exported, and the key under which it is found."""

    relay: Relay
    #: Of the backend that it is exported for; `None` without one.
    options: Any = None
    transforms: Sequence[Transform]
    extra_inputs: tuple[str, ...]
    extra_outputs: tuple[str, ...]
    #: Of a model of several programs, see `ExportRequest.program`.
    program: str
    program_inputs: Mapping[str, Any]
    use_onnx_subfunctions: bool
    #: Of the source, see `ModelSource.identity`.
    identity: Any
    #: Why the artifact carries no tokenizer.
    tokenizer_problem: str | None
    #: The backend has a part in it: a transform of the module, or a hook of its own.
    takes_part: bool
    parts: Mapping[str, Any]
    key: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One program of an artifact that will be compiled."""

    #: "" for the only program of an artifact.
    name: str
    plan: ExportPlan
    specializations: tuple[Specialization, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompilationPlan:
    """What `QEFFBaseModel.compile` is about to do, checked as far as that goes without an export."""

    backend: str | Backend | type[Backend] | None
    relay: Relay
    #: The keywords, as they were given.
    given: Mapping[str, Any]
    options: Any
    #: Layers of each program of a model that is cut; `None` for whole models.
    layers: int | None
    programs: Sequence[Program]
    transforms: Mapping[str, Sequence[Transform]]
    #: What `key` is the hash of.
    parts: Mapping[str, object]
    label: str
    key: str
    destination: Path | None
    dry_run: bool
    rebuild: bool
