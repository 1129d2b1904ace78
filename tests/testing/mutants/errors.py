"""Errors whose type or text helps nobody."""

from __future__ import annotations

from typing import Any

import numpy as np

from qeff_framework.plugin_api import (
    BackendUnavailableError,
    CompiledModel,
    CompileError,
    CompileRequest,
    ExecuteRequest,
    ExecutionError,
    InputError,
    Probe,
    hookimpl,
)
from qeff_framework.sessions import BaseSession
from tests.testing.mutants import mutant
from tests.testing.toy_backend import ToyBackend
from tests.testing.toy_hooks import ToyHooks, ToySession


@mutant("errors", "refused_graph")
class ReasonIsLost(ToyHooks):
    """The compiler's reason is not passed on."""

    def build(self, request: CompileRequest) -> CompiledModel:
        try:
            return super().build(request)
        except CompileError as error:
            raise CompileError("the compilation failed") from error


@mutant("errors", "refused_graph")
class CompilerCrashesThrough(ToyHooks):
    """The exception of the compiler's library comes through."""

    def build(self, request: CompileRequest) -> CompiledModel:
        try:
            return super().build(request)
        except CompileError as error:
            raise RuntimeError(str(error)) from error


@mutant("errors", "refused_graph")
class TracebackInTheMessage(ToyHooks):
    """The message holds the traceback of the compiler."""

    def build(self, request: CompileRequest) -> CompiledModel:
        try:
            return super().build(request)
        except CompileError as error:
            raise CompileError(f"{error}\nTraceback (most recent call last):\n  File ...") from error


@mutant("errors", "refused_graph")
class WholeLogInTheMessage(ToyHooks):
    """The message holds all that the compiler has printed."""

    def build(self, request: CompileRequest) -> CompiledModel:
        try:
            return super().build(request)
        except CompileError as error:
            raise CompileError(f"{error}; " + "line of the log; " * 500) from error


class Absent(ToyHooks):
    def build(self, request: CompileRequest) -> CompiledModel:
        raise BackendUnavailableError("no SDK")


@mutant("errors", "unavailable", hooks=Absent)
class UnavailableWithoutARemedy(ToyBackend):
    """Says neither what is missing nor what to do."""

    def probe(self) -> Probe:
        return Probe(can_compile=False, can_execute=False, hardware=True, rank=0)


@mutant("errors", "refused_step_names_the_sizes")
class RefusesWithoutSizes(ToySession):
    """The refusal of a step names no size."""

    def run(self, inputs: Any) -> Any:
        try:
            return super().run(inputs)
        except InputError as error:
            raise InputError("wrong shapes") from error


@mutant("errors", "missing_file")
class ForgetsToLook(ToyHooks):
    """A missing file ends in a `FileNotFoundError`."""

    @hookimpl
    def execute(self, request: ExecuteRequest) -> Any:
        request.compiled.path(request.compiled.program["file"]).read_bytes()
        return super().execute(request)


class Zeros(BaseSession):
    def __init__(self, compiled: CompiledModel) -> None:
        super().__init__(compiled)
        self.info = {"device": "CPU", "simulator": "yes"}

    def run_step(self, specialization: Any, inputs: Any) -> Any:
        return {"logits": np.zeros((2, 4, specialization.dims["seq_len"], 4), np.float32)}


@mutant("errors", "missing_file", "damaged_file")
class RunsSomethingElse(ToyHooks):
    """A program that cannot be loaded is replaced by one that returns zeros."""

    @hookimpl
    def execute(self, request: ExecuteRequest) -> Any:
        try:
            return super().execute(request)
        except ExecutionError:
            return Zeros(request.compiled)


@mutant("errors", "damaged_file")
class DamageTakesTheProcessDown(ToyHooks):
    """The vendor's loader aborts on a file that it does not understand."""

    @hookimpl
    def execute(self, request: ExecuteRequest) -> Any:
        file = request.compiled.path(request.compiled.program["file"])
        if file.is_file() and file.read_bytes().startswith(b"this"):
            import os

            os._exit(134)
        return super().execute(request)
