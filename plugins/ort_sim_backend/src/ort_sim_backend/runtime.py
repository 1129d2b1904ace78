"""Making ONNX Runtime sessions that do what was asked."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort

PROVIDER = "CPUExecutionProvider"

#: Names of the levels in the compile options.
OPTIMIZATION_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    # Not for users: it depends on the CPU, so a session asks for it when it loads a program.
    "layout": ort.GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
}
#: Rewrites of ONNX Runtime that make a step slower. The kernels for a sum and its norm in one go through the numbers one by one:
#: 2030 instead of 258 microseconds for 1024 tokens of 384 numbers (layer norm), 94 instead of 36 for 128 of 640 (RMS norm).
_SLOWER_FUSIONS = ("SkipLayerNormFusion",)

_ERRORS_ONLY = 3


def session_options(*, optimization_level: str, threads: int, pack_weights: bool) -> ort.SessionOptions:
    """Options that both stages share. Packed weights are copies in the layout that the kernels like best."""
    options = ort.SessionOptions()
    options.graph_optimization_level = OPTIMIZATION_LEVELS[optimization_level]
    options.intra_op_num_threads = threads
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.disable_prepacking", "0" if pack_weights else "1")
    return options


def save_program(options: ort.SessionOptions, target: Path, *, weights_file: str, inline_bytes: int) -> None:
    """Makes a session write its graph to `target`, and initializers from `inline_bytes` bytes on to `weights_file` beside it."""
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights_file)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(inline_bytes)
    )


def open_session(model: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session on the CPU provider. ONNX Runtime replaces providers that it cannot load without an error, so this is checked."""
    session = ort.InferenceSession(str(model), options, providers=[PROVIDER], disabled_optimizers=[*_SLOWER_FUSIONS])
    session.disable_fallback()
    providers = session.get_providers()
    if providers != [PROVIDER]:
        raise RuntimeError(f"asked ONNX Runtime for {PROVIDER} and got {', '.join(providers)}")
    return session


def is_exact(probe: Path) -> bool:
    """Whether this CPU's products of 8-bit numbers hold the largest sums, see `token_scales`: about a millisecond."""
    session = open_session(probe, session_options(optimization_level="none", threads=1, pack_weights=True))
    (levels,) = session.get_inputs()
    largest = np.full(levels.shape, 255, np.uint8)
    (sums,) = session.run(None, {levels.name: largest})
    return bool((sums == 255 * 127 * largest.shape[1]).all())


def reason(error: Exception) -> str:
    """ONNX Runtime's own words, without the prefix that names its error class."""
    text = str(error).strip()
    return text.partition(" : ")[2].partition(" : ")[2] or text if text.startswith("[ONNXRuntimeError]") else text


def available_cpus() -> int:
    """CPUs that this process may use; less than the machine has under `taskset` or in a container with a CPU set."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
