"""Each stage of qeff_framework as an OpenTelemetry span."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from opentelemetry import trace

from qeff_framework.plugin_api import (
    CompiledModel,
    CompileRequest,
    ExecuteRequest,
    ExecutionSession,
    ExportedModel,
    ExportRequest,
    Transform,
    TransformRequest,
    hookimpl,
)

#: Names a file that gets one line of JSON for each span.
FILE_VARIABLE = "QEFF_TRACE_FILE"

T = TypeVar("T")


class OpenTelemetryExtension:
    """Wraps every stage in a span."""

    #: It only looks on: what is built with it and without it is the same, and is found again.
    changes_program: ClassVar[bool] = False

    def __init__(self) -> None:
        file = os.environ.get(FILE_VARIABLE)
        provider = _file_provider(Path(file)) if file else trace.get_tracer_provider()
        self._tracer = provider.get_tracer("qeff_framework")

    @hookimpl(wrapper=True)
    def transform(
        self, request: TransformRequest
    ) -> Generator[None, list[Sequence[Transform]], list[Sequence[Transform]]]:
        """The naming of the transforms; applying them belongs to the stage that follows."""
        return (yield from self._recorded("transform", {"stage": request.stage, "task": request.task}))

    @hookimpl(wrapper=True)
    def export(self, request: ExportRequest) -> Generator[None, ExportedModel, ExportedModel]:
        """The export."""
        return (yield from self._recorded("export", {"task": request.task, "key": request.key}))

    @hookimpl(wrapper=True)
    def compile(self, request: CompileRequest) -> Generator[None, CompiledModel, CompiledModel]:
        """The compilation."""
        facts = {
            "backend": request.backend,
            "task": request.exported.task,
            "model": str(request.exported.metadata.get("model_name", "")),
            "specializations": [item.name for item in request.specializations],
            "key": request.key,
        }
        return (yield from self._recorded("compile", facts))

    @hookimpl(wrapper=True)
    def execute(self, request: ExecuteRequest) -> Generator[None, ExecutionSession, ExecutionSession]:
        """The loading of a program, not its steps."""
        facts = {"backend": request.compiled.backend, "directory": str(request.compiled.directory)}
        return (yield from self._recorded("execute", facts))

    def _recorded(self, stage: str, facts: Mapping[str, Any]) -> Generator[None, T, T]:
        attributes = {f"qeff.{name}": value for name, value in facts.items()}
        # An exception that passes is recorded by the span, which is then marked as failed.
        with self._tracer.start_as_current_span(f"qeff.{stage}", attributes=attributes):
            return (yield)


def _file_provider(file: Path) -> trace.TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    # Line by line, so that a process that is killed has written the spans that have ended.
    stream = file.open("a", encoding="utf-8", buffering=1)
    exporter = ConsoleSpanExporter(out=stream, formatter=lambda span: f"{span.to_json(indent=None)}\n")
    provider = TracerProvider(resource=Resource({"service.name": "qeff"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider
