"""The hook implementations of ``qaic``."""

from __future__ import annotations

from qeff_framework.plugin_api import (
    CompiledModel,
    CompileRequest,
    ExecuteRequest,
    ExecutionSession,
    Transform,
    TransformRequest,
    hookimpl,
)


class QaicHooks:
    """Each hook imports what it needs: running a compiled model loads neither onnx nor the lowering."""

    @hookimpl
    def transform(self, request: TransformRequest) -> list[Transform]:
        """The lowering passes; the torch module is taken as it is, so the export is shared with other backends."""
        if request.stage != "onnx":
            return []
        from qaic_backend.lowering import passes

        options = request.options
        return passes(
            request.specializations,
            convert_to_fp16=options.convert_to_fp16,
            sub_functions=options.sub_functions,
            num_kv_blocks=options.num_kv_blocks,
            replicate_kv_heads=options.replicate_kv_heads,
        )

    @hookimpl
    def compile(self, request: CompileRequest) -> CompiledModel:
        """Writes the compiler's input files and, unless it is a dry run, drives the compiler."""
        from qaic_backend.compiler import compile_model

        return compile_model(request)

    @hookimpl
    def execute(self, request: ExecuteRequest) -> ExecutionSession:
        """Loads and activates the program on its devices."""
        from qaic_backend.runtime import open_session

        return open_session(request.compiled, request.options)
