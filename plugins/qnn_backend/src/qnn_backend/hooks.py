"""The hook implementations of ``qnn``: the target decides who answers."""

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
from qnn_backend import targets


class QnnHooks:
    """Each hook imports what it needs: running a compiled model loads neither onnx nor the lowering."""

    @hookimpl
    def transform(self, request: TransformRequest) -> list[Transform]:
        """The lowering passes; the torch module is taken as it is, so the export is shared with other backends."""
        if request.stage != "onnx":
            return []
        if request.options.is_aic:
            from qnn_backend.aic.lowering import passes as aic_passes

            return aic_passes(request)
        from qnn_backend.htp.lowering import passes as htp_passes

        return htp_passes(request)

    @hookimpl
    def compile(self, request: CompileRequest) -> CompiledModel:
        """Drives the target's compiler."""
        if request.options.is_aic:
            from qnn_backend.aic.compiler import compile_model as compile_for_aic

            return compile_for_aic(request)
        from qnn_backend.htp.compiler import compile_model as compile_for_htp

        return compile_for_htp(request)

    @hookimpl
    def execute(self, request: ExecuteRequest) -> ExecutionSession:
        """Loads the program on its device or in the simulator."""
        target = request.compiled.options["target"]
        if targets.is_aic(target):
            from qnn_backend.aic.runtime import open_session as open_on_aic

            return open_on_aic(request.compiled, request.options)
        from qnn_backend.htp.session import HtpSession

        return HtpSession(request.compiled, request.options)
