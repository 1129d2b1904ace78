"""The lowering of target ``aic``: that of the backend ``qaic``, and names that the QNN tools do not change."""

from __future__ import annotations

from qeff_framework.plugin_api import Transform, TransformRequest
from qnn_backend.aic.names import IdentifierNames
from qnn_backend.aic.qaic import shared


def passes(request: TransformRequest) -> list[Transform]:
    """The passes in the order in which they must run. Raises `BackendUnavailableError` without the qaic distribution."""
    options = request.options
    lowered: list[Transform] = shared().passes(
        request.specializations,
        convert_to_fp16=True,
        num_kv_blocks=options.num_kv_blocks,
        replicate_kv_heads=options.replicate_kv_heads,
    )
    return [*lowered, IdentifierNames()]
