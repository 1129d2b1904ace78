"""Writes graphs as .dlc files for the QAIRT tools. Part of the child process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qeff_framework.plugin_api import CompileError
from qnn_backend.htp.provider import library_folder, reason, session_options

_LIBRARIES = ("libQnnIr.so", "QnnIr.dll")


def write_dlc(graphs: Mapping[str, str], output: str, soc_id: int) -> dict[str, Any]:
    """Writes ``<graph>.dlc`` for each ONNX file.

    The provider writes one when it loads a model; the session that it makes thereby cannot run, and is dropped.

    Raises:
        CompileError: no file was written.
    """
    import onnxruntime as ort

    library = next((path for name in _LIBRARIES if (path := library_folder() / name).is_file()), None)
    if library is None:
        raise CompileError(f"dlc: {library_folder()} has no {' or '.join(_LIBRARIES)}; reinstall onnxruntime-qnn")
    files = {}
    for name, source in graphs.items():
        folder = Path(source).parent / f"dlc_{name}"
        folder.mkdir()
        dumping = {"dump_qnn_ir_dlc": "1", "dump_qnn_ir_dlc_dir": str(folder), "qnn_ir_backend_path": str(library)}
        try:
            ort.InferenceSession(source, session_options(soc_id, dumping, {}, log_warnings=True), enable_fallback=0)
        except Exception as error:
            raise CompileError(f"dlc: {name} cannot be written: {reason(error)}") from error
        written = sorted(folder.glob("*.dlc"))
        if len(written) != 1:
            raise CompileError(f"dlc: {name} gave {len(written)} files instead of one")
        written[0].rename(Path(output) / f"{name}.dlc")
        files[name] = f"{name}.dlc"
    return files
