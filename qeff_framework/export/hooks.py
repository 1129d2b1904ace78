"""The core's own hook implementations: what a backend gets without writing anything."""

from __future__ import annotations

from qeff_framework.contracts import ExportedModel, ExportRequest
from qeff_framework.hookspecs import hookimpl


class CoreHooks:
    """Answers for every backend that does not export by itself."""

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
            progress=request.progress,
        )
