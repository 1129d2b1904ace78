"""Weights that lie in the artifact also in the layout that the kernels of this CPU multiply.

ONNX Runtime arranges the weights of products anew when a program is loaded, in memory of the process. It can write what it has
arranged behind the weights themselves; a program that is loaded then has it mapped, and processes share the pages. ONNX Runtime
arranges them again to compare: on a CPU with another layout it keeps its own, and content that is damaged is refused.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from ort_sim_backend.runtime import available_cpus, open_session, reason, save_program, session_options
from qeff_framework.plugin_api import CompileError, require_space


def store_packed_weights(model: Path, weights: Path, *, inline_bytes: int) -> None:
    """Writes the program `model` and its `weights`, which lie beside it, anew with what the kernels make of them.

    Args:
        model: optimised; nothing else about it changes.
        weights: the file with all its initializers of at least `inline_bytes` bytes.
        inline_bytes: smaller initializers lie in `model`.

    Raises:
        CompileError: ONNX Runtime refuses the program.
        ArtifactError: the disk has too little space, before anything is written.
    """
    if not weights.is_file():
        return  # All of them lie in the model, and nothing is worth a page of its own.
    require_space(model.parent, 2 * weights.stat().st_size, "writing weights in the layout of this CPU")
    with tempfile.TemporaryDirectory(dir=model.parent, prefix="packing-") as folder:
        options = session_options(optimization_level="none", threads=available_cpus(), pack_weights=True)
        save_program(options, Path(folder, model.name), weights_file=weights.name, inline_bytes=inline_bytes)
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        try:
            open_session(model, options)
        except Exception as error:
            raise CompileError(f"ONNX Runtime cannot pack the weights of {model.name}: {reason(error)}") from error
        for file in (weights, model):
            Path(folder, file.name).replace(file)
