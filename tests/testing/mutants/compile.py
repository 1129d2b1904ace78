"""Compile hooks that break one promise each."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir

from qeff_framework.lowering import GraphPass
from qeff_framework.plugin_api import CompiledModel, CompileError, CompileRequest, ExecuteRequest, hookimpl, option
from tests.testing.mutants import cases, mutant
from tests.testing.toy_backend import ToyBackend, ToyOptions
from tests.testing.toy_hooks import ToyHooks

SIZES = ("none", "missing dimension", "chunk longer than the context")


@mutant("compile", "deterministic")
class TimeInTheProgram(ToyHooks):
    """The time of the compilation stands in the program."""

    def build(self, request: CompileRequest) -> CompiledModel:
        (request.output_dir / "built.txt").write_text(str(time.time_ns()))
        return super().build(request)


@mutant("compile", "found_again")
class KeyThatChanges(ToyBackend):
    """A program is never found again."""

    calls: ClassVar[list[int]] = []

    def fingerprint(self) -> Mapping[str, str]:
        self.calls.append(1)
        return {**super().fingerprint(), "calls": str(len(self.calls))}


class StaleKeyHooks(ToyHooks):
    def build(self, request: CompileRequest) -> CompiledModel:
        (request.output_dir / "comment.txt").write_text(request.options.comment or "none")
        return super().build(request)


@mutant("compile", "options_outside_of_the_key")
class StaleCacheKey(StaleKeyHooks):
    """An option that is not in the key changes the program: that of another value is found."""


@mutant("compile", "two_at_once")
class OneCompilationAtATime(ToyHooks):
    """What is compiled lies in a variable of the module."""

    common: ClassVar[list[Any]] = []

    def build(self, request: CompileRequest) -> CompiledModel:
        self.common[:] = [request]
        time.sleep(0.05 if threading.current_thread() is not threading.main_thread() else 0)
        return super().build(self.common[0])


@mutant("compile", "no_absolute_path")
class PathInTheProgram(ToyHooks):
    """A file names the place of the export."""

    def build(self, request: CompileRequest) -> CompiledModel:
        (request.output_dir / "notes.txt").write_text(f"from {request.exported.model_path}")
        return super().build(request)


class LinkedHooks(ToyHooks):
    @hookimpl
    def execute(self, request: ExecuteRequest) -> Any:
        # What was compiled is remembered by its digest, in this process.
        place = Path(self.places[request.compiled.program["number"]])
        if not place.is_file():
            raise FileNotFoundError(f"{place.name} is gone")
        return super().execute(request)

    places: ClassVar[dict[int, str]] = {}


@mutant("compile", "can_be_moved", "deterministic")
class NeedsItsExport(LinkedHooks):
    """The program runs only as long as its export is there."""

    def build(self, request: CompileRequest) -> CompiledModel:
        number = len(self.places)
        self.places[number] = str(request.exported.model_path)
        compiled = super().build(request)
        return request.result(program={**compiled.program, "number": number})


@mutant("compile", "writes_nowhere_else", "failure_leaves_nothing")
class LeakedFile(ToyHooks):
    """A temporary file of the compiler stays."""

    def build(self, request: CompileRequest) -> CompiledModel:
        handle, _ = tempfile.mkstemp(prefix="toy-compiler-")
        os.close(handle)
        return super().build(request)


@mutant("compile", "writes_nowhere_else", "failure_leaves_nothing")
class LogInTheWorkingDirectory(ToyHooks):
    """The compiler's log lies where the user works."""

    def build(self, request: CompileRequest) -> CompiledModel:
        Path("compile.log").write_text("well")
        return super().build(request)


@mutant("compile", "writes_nowhere_else")
class WritesIntoTheExport(ToyHooks):
    """Keeps something beside the export, which other backends share."""

    def build(self, request: CompileRequest) -> CompiledModel:
        with (request.exported.directory / f"{request.backend}.cache").open("ab") as file:
            file.write(b"more")
        return super().build(request)


@mutant("compile", "failure_leaves_nothing")
class LeakedFileOfAFailure(ToyHooks):
    """Only a compiler that fails leaves its temporary file."""

    def build(self, request: CompileRequest) -> CompiledModel:
        try:
            return super().build(request)
        except CompileError:
            Path(tempfile.gettempdir(), "toy-core-dump").write_bytes(b"dump")
            raise


@mutant("compile", "failure_leaves_nothing", "writes_nowhere_else")
class LeakedProcess(ToyHooks):
    """A helper process is not ended."""

    def build(self, request: CompileRequest) -> CompiledModel:
        os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(3)"])
        return super().build(request)


@mutant("compile", "failure_leaves_nothing")
class SilentFallback(ToyHooks):
    """A graph that cannot be compiled is replaced by one that can."""

    def build(self, request: CompileRequest) -> CompiledModel:
        try:
            return super().build(request)
        except CompileError:
            if "QeffNoSuchOp" not in [node.op_type for node in request.model.graph]:
                raise
            (request.output_dir / "program.onnx").write_bytes(b"nothing")
            return request.result(program={"file": "program.onnx", "level": "none"})


@mutant("compile", *cases("refused_sizes", SIZES))
class TakesAnySizes(ToyHooks):
    """Sizes that cannot work are compiled."""

    def check(self, request: CompileRequest) -> None:
        pass


@mutant("compile", "choice[level=basic]", "option_takes_effect[level]")
class ChoiceThatCrashes(ToyHooks):
    """One of its own choices is not implemented."""

    def build(self, request: CompileRequest) -> CompiledModel:
        if request.options.level == "basic":
            raise CompileError("level basic is not implemented")
        return super().build(request)


@mutant("compile", "option_takes_effect[mode]")
@dataclass(frozen=True, kw_only=True)
class OptionIgnored(ToyOptions):
    """Takes an option and does nothing with it."""

    mode: str = option("fast", "how the program is laid out", choices=("fast", "small"))


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(ToyOptions):
    precision: str = option("fp32", "format of the weights", choices=("fp32", "w4"))


class Rounded(GraphPass):
    name, version = "Rounded", "1"

    def __init__(self, change: Any) -> None:
        self._change = change

    def run(self, model: onnx_ir.Model) -> bool:
        for value in model.graph.initializers.values():
            if value.const_value is not None and value.name in ("first", "second"):
                value.const_value = onnx_ir.tensor(
                    self._change(value.const_value.numpy()).astype(np.float32), name=value.name
                )
        return True


class RoundedHooks(ToyHooks):
    def passes(self, request: Any) -> list[Any]:
        return [Rounded(self.change)] if request.options.precision == "w4" else []

    def change(self, weights: Any) -> Any:
        return weights


@mutant("compile", "choice[precision=w4]", options=PrecisionOptions)
class WrongScale(RoundedHooks):
    """Weights of four bits are multiplied with the scale of other weights."""

    def change(self, weights: Any) -> Any:
        return np.round(weights * 20) / 20 * 1.7


@mutant("compile", "choice[precision=w4]", options=PrecisionOptions)
class TransposedWeights(RoundedHooks):
    """Weights of four bits are read in the wrong order."""

    def change(self, weights: Any) -> Any:
        return weights.T.reshape(weights.shape)


@mutant("compile", "choice[precision=w4]", options=PrecisionOptions)
class Overflow(RoundedHooks):
    """A scale does not fit its format."""

    def change(self, weights: Any) -> Any:
        return weights.astype(np.float64) * 1e39
