"""Options of the targets with a Hexagon NPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qeff_framework.plugin_api import MicroscalingOptions, RuntimeOptions, option
from qnn_backend.htp.pass_names import SWITCHABLE

_BITS = {"fp16": 16, "a16w8": 8, "w8": 8, "w4": 4}


@dataclass(frozen=True, kw_only=True)
class HtpOptions(MicroscalingOptions):
    """Options of `compile` for a chip with an NPU."""

    precision: str = option(
        "fp16",
        "fp16: everything in float16; a16w8: 16-bit activations and 8-bit weights, calibrated; w8, w4: weights of the matrix "
        "products in blocks of 8 or 4 bits, the rest in float16",
        choices=tuple(_BITS),
    )
    calibration_prompts: Path | None = option(
        None, "text file with one prompt a line: what a16w8 and the residual scaling are measured on; own data is best"
    )
    calibration_samples: int = option(16, "how many calibration prompts are used at most", minimum=1)
    allow_partial: bool = option(
        False, "let nodes that the NPU cannot run stay on the CPU; they are reported one by one"
    )
    verify: bool = option(True, "run golden inputs in the simulator and compare them with float32 on the CPU")
    verify_min_cosine: float | None = option(
        None, "least cosine that the verification accepts; by default it goes by the precision", minimum=0.0
    )
    disable_passes: tuple[str, ...] = option(
        (), f"lowering passes to leave out, for debugging: {', '.join(SWITCHABLE)}"
    )
    optimization_mode: int = option(3, "how much the compiler optimises: 0 to 3", choices=(0, 1, 2, 3))
    vtcm_mb: int | None = option(None, "tightly coupled memory that the program may use, in MB", minimum=1)
    weight_sharing: bool = option(
        False,
        "also make one binary in which prefill and decode share weights; for the device, the simulator cannot load it",
    )
    host_embedding_mb: int | None = option(
        16,
        "embedding tables of at least this size, in MB of float32, are looked up on the host instead of lying in every program; "
        "None leaves all of them in the programs",
        minimum=0,
    )
    dlc: bool = option(False, "also write each graph as a .dlc file for the QAIRT tools")
    compile_timeout_minutes: float = option(
        60.0, "when to stop a compiler or a simulation that does not end", minimum=0.01, changes_program=False
    )

    def htp_problems(self) -> list[str]:
        """Combinations of options that cannot work."""
        found = []
        if self.num_devices != 1:
            found.append(f"num_devices={self.num_devices}: a chip has one NPU")
        if self.mxfp6_matmul:
            found.append(
                "mxfp6_matmul: the NPU has no such format, precision='w4' or 'w8' stores weights in fewer bits"
            )
        if self.mxint8_kv_cache:
            found.append("mxint8_kv_cache: the NPU has no such format")
        unknown = [name for name in self.disable_passes if name not in SWITCHABLE]
        if unknown:
            found.append(f"disable_passes: no pass is called {', '.join(unknown)}; there are {', '.join(SWITCHABLE)}")
        return found

    @property
    def weight_bits(self) -> int:
        """Bits of a weight of a matrix product."""
        return _BITS[self.precision]


@dataclass(frozen=True, kw_only=True)
class HtpRuntimeOptions(RuntimeOptions):
    """Options of `execute` for a chip with an NPU."""

    target: str | int | None = option(
        None, "the chip of this machine: a program that was compiled for another one is refused"
    )
    performance_mode: str = option(
        "default",
        "clocks and sleep states of the NPU; the simulator ignores it",
        choices=("default", "burst", "balanced", "high_performance", "sustained_high_performance", "power_saver"),
    )
