"""The hook implementations of ``ort_sim``."""

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


class OrtSimHooks:
    """Each hook imports what it needs: running a compiled model loads neither onnx nor the lowering."""

    @hookimpl
    def transform(self, request: TransformRequest) -> list[Transform]:
        """The lowering passes; the torch module is taken as it is, so the export is shared with other backends."""
        if request.stage != "onnx":
            return []
        options = request.options
        if options.simulate is not None:
            from ort_sim_backend.lowering.ai100 import ai100_passes

            return ai100_passes(
                request.specializations,
                mxfp6_matmul=options.mxfp6_matmul,
                mxint8_kv_cache=options.mxint8_kv_cache,
                fp32_nodes=options.fp32_nodes,
                num_kv_blocks=options.num_kv_blocks,
                replicate_kv_heads=options.replicate_kv_heads,
            )
        from ort_sim_backend.lowering import passes

        # Drafts that are refused are taken back, and what a finished prompt has left is shared up to some token.
        is_cut = request.sizes("num_logits_to_keep") or request.sizes("full_batch_size")
        lengths = () if is_cut else request.sizes("ctx_len")
        return list(
            passes(
                options.precision,
                one_row=request.sizes("batch_size") == (1,),
                ctx_len=lengths[0] if len(lengths) == 1 else None,
            )
        )

    @hookimpl
    def compile(self, request: CompileRequest) -> CompiledModel:
        """Lets ONNX Runtime optimise the lowered graph and keeps the result."""
        from ort_sim_backend.compiler import compile_model

        return compile_model(request)

    @hookimpl
    def execute(self, request: ExecuteRequest) -> ExecutionSession:
        """Loads the optimised graph."""
        from ort_sim_backend.session import OrtSession

        return OrtSession(request.compiled, request.options)
