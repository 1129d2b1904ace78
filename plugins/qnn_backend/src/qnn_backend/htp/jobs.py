"""What is done in a child process. Arguments and results are JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qnn_backend.htp.compiling import compile_graphs
from qnn_backend.htp.dlc import write_dlc
from qnn_backend.htp.measuring import measure
from qnn_backend.htp.quantising import quantise
from qnn_backend.htp.verification import verify_graphs

JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "compile": compile_graphs,
    "measure": measure,
    "quantise": quantise,
    "share": compile_graphs,
    "dlc": write_dlc,
    "verify": verify_graphs,
}
