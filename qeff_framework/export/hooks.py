"""The core's own hook implementations: what a backend gets without writing anything."""

from __future__ import annotations

from collections.abc import Sequence

from qeff_framework.contracts import ExportedModel, ExportRequest, Transform, TransformRequest
from qeff_framework.hookspecs import hookimpl


class CoreHooks:
    """Answers for every backend that does not export by itself, and prepares its graph for the sizes of a program."""

    @hookimpl(trylast=True)
    def transform(self, request: TransformRequest) -> Sequence[Transform]:
        """See `qeff_framework.export.short_texts`."""
        lengths = [item.dims["ctx_len"] for item in request.specializations if "ctx_len" in item.dims]
        if request.stage != "onnx" or not lengths:
            return []
        from qeff_framework.export.short_texts import ShortTexts

        return [ShortTexts(max(lengths))]

    @hookimpl(trylast=True)
    def export(self, request: ExportRequest) -> ExportedModel:
        """See `qeff_framework.export.portable.export_portable`."""
        from qeff_framework.export.portable import export_portable

        return export_portable(
            request.module,
            task=request.task,
            output_dir=request.output_dir,
            pooling=request.pooling,
            extra_inputs=request.extra_inputs,
            extra_outputs=request.extra_outputs,
            unloaded=request.unloaded,
            program=request.program,
            program_inputs=request.program_inputs,
            use_onnx_subfunctions=request.use_onnx_subfunctions,
            packed_matrices=request.packed_matrices,
            adapters=request.adapters,
            adapter_room=request.adapter_room,
            progress=request.progress,
        )
