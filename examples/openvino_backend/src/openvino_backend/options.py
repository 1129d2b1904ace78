"""What users can choose."""

from __future__ import annotations

from dataclasses import dataclass

from qeff_framework.plugin_api import CompileOptions, RuntimeOptions, option


@dataclass(frozen=True, kw_only=True)
class OpenVinoOptions(CompileOptions):
    """Options of `compile`."""

    precision: str = option(
        "f32", "numbers that the program computes in; bf16 is faster where the CPU has it", choices=("f32", "bf16")
    )
    compile_timeout_minutes: float = option(
        60.0, "when to stop a compilation that does not end", minimum=0.01, changes_program=False
    )


@dataclass(frozen=True, kw_only=True)
class OpenVinoRuntimeOptions(RuntimeOptions):
    """Options of `load` and `load_compiled`."""

    num_threads: int | None = option(
        None, "threads that compute; by default num_cores of the compiled model, at most the CPUs", minimum=1
    )
