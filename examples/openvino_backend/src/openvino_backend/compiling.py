"""Compiling: what runs in this process. OpenVINO itself runs in a child process, see `compiler`."""

from __future__ import annotations

import onnx_ir

from qeff_framework.plugin_api import (
    CompiledModel,
    CompileError,
    CompileRequest,
    OptionError,
    Transform,
    TransformRequest,
    hookimpl,
)
from qeff_framework.sessions import check_specializations
from qeff_framework.toolchains import ProbeError, Toolchain, ask_python

MODEL, PROGRAM = "model.onnx", "program.blob"
_ASK = "import json, openvino; print(json.dumps({'can': openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')}))"


def check_bfloat16() -> None:
    """Raises `OptionError` on a CPU without bfloat16: OpenVINO would compute in float32 there without a word."""
    try:
        can = ask_python(_ASK, subject="asking openvino for the CPU's number formats")["can"]
    except ProbeError as error:
        raise CompileError(str(error)) from error
    if "BF16" not in can:
        raise OptionError(
            f"backend 'openvino': precision='bf16' needs a CPU with bfloat16; this one has {', '.join(can)}; "
            "compile with precision='f32'"
        )


class OpenVinoCompiler:
    """The hooks for compiling."""

    @hookimpl
    def transform(self, request: TransformRequest) -> list[Transform]:
        """The lowering passes."""
        from openvino_backend.lowering import passes

        return passes(request) if request.stage == "onnx" else []

    @hookimpl
    def compile(self, request: CompileRequest) -> CompiledModel:
        """Writes the lowered model, lets OpenVINO compile it, and keeps the program only."""
        exported, specializations = request.exported, request.specializations
        if request.options.precision == "bf16":
            check_bfloat16()
        check_specializations(exported, specializations, backend="openvino")
        request.progress("writing the lowered model")
        model = request.output_dir / MODEL
        onnx_ir.save(request.model, model, external_data=f"{MODEL}.data", size_threshold_bytes=1024)
        bound = {name: size for name, size in specializations[0].dims.items() if request.sizes(name) == (size,)}
        toolchain = Toolchain(
            request,
            name="openvino",
            time_limit_minutes=request.options.compile_timeout_minutes,
            limit_option="compile_timeout_minutes",
        )
        request.progress("compiling with OpenVINO")
        # Names, no paths: the child runs in the directory, and what it logs stays in the artifact.
        toolchain.run_job(
            "openvino_backend.compiler:compile_file",
            {
                "source": MODEL,
                "target": PROGRAM,
                "shapes": {
                    spec.name: [bound.get(dim, -1) if isinstance(dim, str) else dim for dim in spec.shape]
                    for spec in exported.inputs
                },
                "states": {state.input: state.output for state in exported.states},
                "precision": request.options.precision,
            },
            subject="OpenVINO's compiler",
        )
        model.unlink()
        model.with_name(f"{MODEL}.data").unlink(missing_ok=True)
        return CompiledModel.from_request(request, program={"blob": PROGRAM})
