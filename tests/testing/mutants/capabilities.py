"""Capabilities that are claimed falsely, or denied and granted."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir

from qeff_framework.lowering import GraphPass
from qeff_framework.plugin_api import (
    BackendUnavailableError,
    Capabilities,
    CompiledModel,
    CompileError,
    CompileOptions,
    CompileRequest,
    MicroscalingOptions,
    TransformRequest,
)
from tests.testing.mutants import mutant
from tests.testing.toy_backend import ToyBackend, ToyOptions
from tests.testing.toy_hooks import ToyHooks


@dataclasses.dataclass(frozen=True, kw_only=True)
class MxOptions(ToyOptions, MicroscalingOptions):
    """The toy's options and those of MX formats."""


def claiming(**flags: bool) -> Capabilities:
    return dataclasses.replace(ToyBackend.capabilities, **flags)


@mutant("capabilities", "denied[mxfp6_matmul]", "compressed[mxfp6_matmul]", options=MxOptions)
class GrantsWhatItDenies(ToyBackend):
    """Denies MXFP6 where it is listed, and grants it when it is asked for."""

    def capabilities_for(self, options: CompileOptions) -> Capabilities:
        return dataclasses.replace(self.capabilities, mxfp6_matmul=True)


@mutant(
    "capabilities",
    "denied[task seq2seq-lm]",
    capabilities=dataclasses.replace(ToyBackend.capabilities, tasks=frozenset({"causal-lm", "encoder"})),
)
class GrantsATaskThatItDenies(ToyBackend):
    """Lists two tasks, and takes a third one."""

    def capabilities_for(self, options: CompileOptions) -> Capabilities:
        return dataclasses.replace(self.capabilities, tasks=self.capabilities.tasks | {"seq2seq-lm"})


@mutant("capabilities", "compressed[mxfp6_matmul]", capabilities=claiming(mxfp6_matmul=True), options=MxOptions)
class IgnoresMxfp6(ToyHooks):
    """Claims MXFP6 and stores float32."""


@mutant("capabilities", "compressed[mxint8_kv_cache]", capabilities=claiming(mxint8_kv_cache=True), options=MxOptions)
class IgnoresMxint8(ToyHooks):
    """Claims MXINT8 and keeps a cache of float32."""


@mutant("capabilities", "compressed[mxfp6_matmul]", capabilities=claiming(mxfp6_matmul=True), options=MxOptions)
class RefusesMxfp6(ToyHooks):
    """Claims MXFP6 and cannot compile it."""

    def build(self, request: CompileRequest) -> CompiledModel:
        if request.options.mxfp6_matmul:
            raise CompileError("mxfp6 is not implemented")
        return super().build(request)


class Coarse(GraphPass):
    name, version = "Coarse", "1"
    step: ClassVar[float] = 2.0

    def run(self, model: onnx_ir.Model) -> bool:
        for name in ("first", "second"):
            value = model.graph.initializers.get(name)
            if value is not None and value.const_value is not None:
                rounded = np.round(value.const_value.numpy() / self.step) * self.step
                value.const_value = onnx_ir.tensor(rounded.astype(np.float32), name=name)
        return True


@mutant("capabilities", "compressed[mxfp6_matmul]", capabilities=claiming(mxfp6_matmul=True), options=MxOptions)
class RoundsToNothing(ToyHooks):
    """MXFP6 with a scale that leaves nothing of the weights."""

    def passes(self, request: TransformRequest) -> list[Any]:
        return [Coarse()] if request.options.mxfp6_matmul else []


@mutant("capabilities", "multi_device", capabilities=claiming(multi_device=True))
class OneDeviceOnly(ToyHooks):
    """Claims several devices and cannot divide a program."""

    def build(self, request: CompileRequest) -> CompiledModel:
        if request.options.num_devices > 1:
            raise CompileError("a program cannot be divided")
        return super().build(request)


@mutant("capabilities", "continuous_batching")
class OnePrefillOfAllRows(ToyHooks):
    """Claims continuous batching and compiles programs of equal batches only."""

    def build(self, request: CompileRequest) -> CompiledModel:
        if len({item.dims["batch_size"] for item in request.specializations}) > 1:
            raise CompileError("all programs must have the same batch_size")
        return super().build(request)


@mutant("capabilities", "dry_run", "dry_run_is_no_program", capabilities=claiming(dry_run=True))
class DryRunThatAsksForTheSdk(ToyHooks):
    """A dry run needs the compiler."""

    def build(self, request: CompileRequest) -> CompiledModel:
        if request.dry_run:
            raise BackendUnavailableError("the toy SDK is not installed")
        return super().build(request)


@mutant("capabilities", "dry_run", capabilities=claiming(dry_run=True))
class DryRunThatDiffers(ToyHooks):
    """The inputs of the compiler differ from run to run."""

    calls: ClassVar[list[int]] = []

    def build(self, request: CompileRequest) -> CompiledModel:
        self.calls.append(1)
        (request.output_dir / "run.txt").write_text(str(len(self.calls)))
        return super().build(request)
