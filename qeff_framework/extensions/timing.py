"""Wall-clock time of each stage: ``QEFF_EXTENSIONS=timing`` logs it, `TimingExtension.records` keeps it.

It is an ordinary plugin of the extension group and uses nothing that other authors do not have.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

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

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Wall-clock duration of one hook call."""

    stage: str
    seconds: float
    #: Class name of the exception that ended the stage, or an empty string.
    failed_with: str = ""


class TimingExtension:
    """Measures every stage that a relay runs."""

    #: It only looks on: what is built with it and without it is the same, and is found again.
    changes_program: ClassVar[bool] = False

    def __init__(self) -> None:
        self.records: list[StageTime] = []

    @hookimpl(wrapper=True)
    def transform(
        self, request: TransformRequest
    ) -> Generator[None, list[Sequence[Transform]], list[Sequence[Transform]]]:
        """Times the naming of transforms; applying them belongs to the stage that follows."""
        return (yield from self._timed(f"transform ({request.stage})"))

    @hookimpl(wrapper=True)
    def export(self, request: ExportRequest) -> Generator[None, ExportedModel, ExportedModel]:
        """Times the export."""
        return (yield from self._timed("export"))

    @hookimpl(wrapper=True)
    def compile(self, request: CompileRequest) -> Generator[None, CompiledModel, CompiledModel]:
        """Times the compilation."""
        return (yield from self._timed("compile"))

    @hookimpl(wrapper=True)
    def execute(self, request: ExecuteRequest) -> Generator[None, ExecutionSession, ExecutionSession]:
        """Times the loading of the program, not its steps."""
        return (yield from self._timed("execute"))

    def _timed(self, stage: str) -> Generator[None, T, T]:
        start = time.perf_counter()
        failed_with = ""
        try:
            return (yield)
        except BaseException as error:
            failed_with = type(error).__name__
            raise
        finally:
            record = StageTime(stage=stage, seconds=time.perf_counter() - start, failed_with=failed_with)
            self.records.append(record)
            logger.info(
                "%s took %.3f s%s", stage, record.seconds, f", failed with {failed_with}" if failed_with else ""
            )
