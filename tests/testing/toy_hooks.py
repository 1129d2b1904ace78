"""A working backend of a page: it runs the portable graph as it is, the bodies of the dialect ops included, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from qeff_framework.plugin_api import (
    CompiledModel,
    CompileError,
    CompileRequest,
    ExecuteRequest,
    ExecutionError,
    Specialization,
    Transform,
    TransformRequest,
    hookimpl,
)
from qeff_framework.sessions import BaseSession, check_specializations
from tests.testing.toy_backend import ToyRuntimeOptions


class ToyHooks:
    session: ClassVar[Any] = None

    @hookimpl
    def transform(self, request: TransformRequest) -> list[Transform]:
        return self.passes(request) if request.stage == "onnx" else []

    def passes(self, request: TransformRequest) -> list[Transform]:
        return []

    @hookimpl
    def compile(self, request: CompileRequest) -> CompiledModel:
        return self.build(request)

    def check(self, request: CompileRequest) -> None:
        check_specializations(request.exported, request.specializations, backend=request.backend)

    def build(self, request: CompileRequest) -> CompiledModel:
        import onnx_ir

        self.check(request)
        target = request.output_dir / "program.onnx"
        onnx_ir.save(request.model, target, external_data="program.onnx.data", size_threshold_bytes=256)
        level = request.options.level
        try:
            load(target, level=level)
        except Exception as error:
            raise CompileError(f"ONNX Runtime refuses the graph: {str(error).splitlines()[0]}") from error
        return request.result(program={"file": target.name, "level": level})

    @hookimpl
    def execute(self, request: ExecuteRequest) -> Any:
        return (self.session or ToySession)(request.compiled, request.options)


def load(path: Any, *, level: str, threads: int = 1) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = {"none": levels.ORT_DISABLE_ALL, "basic": levels.ORT_ENABLE_BASIC}[level]
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class ToySession(BaseSession):
    def __init__(self, compiled: CompiledModel, options: ToyRuntimeOptions) -> None:
        super().__init__(compiled)
        self.info = {"device": "CPU", "simulator": "yes"}
        try:
            self._program = load(
                compiled.path(compiled.program["file"]), level=compiled.program["level"], threads=options.num_threads
            )
        except Exception as error:
            raise ExecutionError(
                f"{compiled.program['file']} cannot be loaded: {str(error).splitlines()[0]}"
            ) from error

    def run_step(self, specialization: Specialization, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        outputs = self.compute({**inputs, **self.states})
        for state in self.compiled.states:
            self.states[state.input] = outputs.pop(state.output)
        return outputs

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        names = [spec.name for spec in self.compiled.outputs]
        return dict(zip(names, self._program.run(names, feeds), strict=True))
