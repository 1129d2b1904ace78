"""Backends that work in the process that made them, and in no other."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, ClassVar

from qeff_framework.plugin_api import (
    CompiledModel,
    CompileError,
    CompileRequest,
    ExecuteRequest,
    ExecutionError,
    Probe,
    hookimpl,
)
from tests.testing.mutants import cases, mutant
from tests.testing.toy_backend import ToyBackend, ToyOptions
from tests.testing.toy_hooks import ToyHooks


@mutant("processes", *cases("pickles", ("descriptor",)))
class DescriptorWithAHandle(ToyBackend):
    """The descriptor holds a function that has no name."""

    def __init__(self) -> None:
        self.ask = lambda: 1


@mutant("processes", *cases("pickles", ("options",)))
@dataclass(frozen=True, kw_only=True)
class OptionsWithAHandle(ToyOptions):
    """The options hold a function that has no name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ask", lambda: 1)


@mutant("processes", *cases("pickles", ("probe",)))
class ProbeWithAHandle(ToyBackend):
    """The answer of the probe is of a class that no other process finds."""

    def probe(self) -> Probe:
        class Local(Probe):
            pass

        found = super().probe()
        return Local(**{each.name: getattr(found, each.name) for each in dataclasses.fields(found)})


class TwoPartError(CompileError):
    def __init__(self, reason: str, code: int) -> None:
        super().__init__(f"{reason} ({code})")


@mutant("processes", *cases("pickles", ("error",)))
class ErrorOfTwoArguments(ToyHooks):
    """Its errors cannot be made again from their message."""

    def build(self, request: CompileRequest) -> CompiledModel:
        try:
            return super().build(request)
        except CompileError as error:
            raise TwoPartError(str(error), 7) from error


@mutant("processes", "fresh_process_runs")
class RemembersInTheProcess(ToyHooks):
    """What the program needs lies in a variable of the process that has compiled it."""

    known: ClassVar[set[str]] = set()

    def build(self, request: CompileRequest) -> CompiledModel:
        self.known.add(request.exported.model_file)
        return super().build(request)

    @hookimpl
    def execute(self, request: ExecuteRequest) -> Any:
        if "model.onnx" not in self.known:
            raise ExecutionError("the program was not compiled by this process")
        return super().execute(request)


@mutant("processes", "fresh_process_runs")
class OnlyTheOwnerMayRun(ToyHooks):
    """The program is bound to the process that has compiled it."""

    def build(self, request: CompileRequest) -> CompiledModel:
        os.environ["TOY_OWNER"] = str(os.getpid())
        return super().build(request)

    @hookimpl
    def execute(self, request: ExecuteRequest) -> Any:
        session = super().execute(request)
        if os.environ.get("TOY_OWNER") != str(os.getpid()):
            session.compute = lambda feeds: {
                name: value * 0 for name, value in type(session).compute(session, feeds).items()
            }
        return session


@mutant("processes", "fresh_process_compiles_the_same")
class OrderOfASet(ToyHooks):
    """The order of names in a set of texts goes into the program."""

    def build(self, request: CompileRequest) -> CompiledModel:
        names = {value.name for value in request.model.graph.inputs} | {f"input_{number}" for number in range(20)}
        (request.output_dir / "order.txt").write_text("\n".join(names))
        return super().build(request)


@mutant("processes", "fresh_process_compiles_the_same")
class ProcessInTheProgram(ToyHooks):
    """The id of the process goes into the program."""

    def build(self, request: CompileRequest) -> CompiledModel:
        (request.output_dir / "built_by.txt").write_text(str(os.getpid()))
        return super().build(request)
