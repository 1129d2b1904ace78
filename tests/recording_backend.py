"""A backend whose passes, options and fingerprint a test sets, and which compiles to an empty file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from qeff_framework.plugin_api import (
    Backend,
    Capabilities,
    CompiledModel,
    CompileOptions,
    CompileRequest,
    Probe,
    Transform,
    TransformRequest,
    hookimpl,
    option,
)


@dataclass(frozen=True, kw_only=True)
class RecordingOptions(CompileOptions):
    side_file: Path | None = option(None, "a file that the compiler would read")


class Pass:
    """A transform that calls a function of the test."""

    def __init__(self, name: str, version: str = "1", change: Callable[[Any], bool] = lambda subject: False) -> None:
        self.name, self.version, self._change = name, version, change

    def __call__(self, subject: Any) -> bool:
        return self._change(subject)


class RecordingHooks:
    #: Stage -> passes. Set by the test.
    passes: ClassVar[dict[str, list[Transform]]] = {}
    compiled: ClassVar[int] = 0

    @hookimpl
    def transform(self, request: TransformRequest) -> list[Transform]:
        return self.passes.get(request.stage, [])

    @hookimpl
    def compile(self, request: CompileRequest) -> CompiledModel:
        type(self).compiled += 1
        (request.output_dir / "program").touch()
        return request.result(backend="recording", program={})


class RecordingBackend(Backend):
    name = "recording"
    options = RecordingOptions
    capabilities = Capabilities(tasks=frozenset({"causal-lm"}))
    implementation = "tests.recording_backend:RecordingHooks"
    versions: ClassVar[dict[str, str]] = {"sdk": "1"}

    def probe(self) -> Probe:
        return Probe(can_compile=True, can_execute=False, hardware=False, rank=0)

    def fingerprint(self) -> dict[str, str]:
        return self.versions
