"""What users can choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qeff_framework.plugin_api import AttentionOptions, LayerWindowOptions, MicroscalingOptions, RuntimeOptions, option

#: Bits of a weight by value of `precision`, where weights are compressed.
COMPRESSED_BITS: Final[Mapping[str, int]] = {"w8": 8, "w4": 4}
#: Weights with one scale.
BLOCK_SIZE: Final = 32
#: The same for a product that ranks the tokens of a vocabulary. The kernel keeps a scale and a sum of each block, 8 bytes: half
#: of what its 4-bit levels take in blocks of 32. Layers in larger blocks lose accuracy, as their inputs are cut in the same way:
#: with 8 bits in blocks of 64 Gemma 3 270M has 1.018 times the perplexity of float32 instead of 1.002.
RANKING_BLOCK_SIZE: Final = 128
#: Weights of the products of a model that is calibrated unless told otherwise. Time and memory grow faster than the model: more
#: than seven minutes for a Llama of 1.1 billion on two cores, and hours for one of 8 billion.
CALIBRATED_WEIGHTS: Final = 5 * 10**8
#: Compute cores of one Cloud AI 100 device.
AI100_CORES: Final = 16


@dataclass(frozen=True, kw_only=True)
class OrtSimOptions(MicroscalingOptions, AttentionOptions, LayerWindowOptions):
    """Options of `compile`."""

    # ONNX Runtime's "all" also picks a data layout for the CPU at hand; a saved program would then be tied to that CPU.
    optimization_level: str = option(
        "extended", "how much ONNX Runtime rewrites the graph at compile time", choices=("none", "basic", "extended")
    )
    simulate: str | None = option(
        None,
        "ai100: compute in the number formats of Cloud AI 100 and under its limits, to see what they do to accuracy: FP16, with "
        "mxfp6_matmul and mxint8_kv_cache also those; slower than without",
        choices=(None, "ai100"),
    )
    fp32_nodes: tuple[str, ...] = option(
        (), "with simulate: first output names of the nodes of the lowered graph that stay in FP32"
    )
    precision: str = option(
        "fp32",
        "fp32: everything in float32; w8, w4: weights of the matrix products in blocks of 8 bits, or of 4 bits where the model "
        "bears it, multiplied with 8-bit activations; less memory and faster steps, other logits",
        choices=("fp32", *COMPRESSED_BITS),
    )
    calibrate: bool | None = option(
        None,
        "with precision=w8 or w4: fit weights to the inputs that they have on texts, for which the model is run some times; "
        "without it w4 rounds to the nearest level, w8 has slower products, and the output layer keeps 8 bits; by default models "
        f"are calibrated in which at most {CALIBRATED_WEIGHTS:,} weights are rounded to 4 bits",
    )
    calibration_prompts: Path | None = option(
        None,
        "with precision=w8 or w4: text file with one prompt a line, what weights are calibrated on; own data is best",
    )
    eight_bit_share: float = option(
        0.8,
        "with precision=w4: share of the layers' weights that keep 8 bits, those where 4 bits change the results most",
        minimum=0.0,
    )
    store_packed_weights: bool = option(
        False,
        "with precision=fp32: write the weights of products also in the layout that this CPU's kernels multiply: processes share "
        "them and load faster; the artifact takes up to twice the disk, and a CPU with another layout packs as without it",
    )

    def __post_init__(self) -> None:
        """Refuses what a simulated device has not, and what the CPU has not."""
        if self.calibration_prompts is not None and self.precision not in COMPRESSED_BITS:
            raise ValueError(
                f"calibration_prompts needs precision='w8' or 'w4': nothing is calibrated for '{self.precision}'"
            )
        if self.calibration_prompts is not None and self.calibrate is False:
            raise ValueError("calibration_prompts and calibrate=False contradict each other")
        if self.calibrate is not None and self.precision not in COMPRESSED_BITS:
            raise ValueError(
                f"calibrate={self.calibrate} needs precision='w8' or 'w4': nothing is calibrated for '{self.precision}'"
            )
        if self.store_packed_weights and self.precision in COMPRESSED_BITS:
            raise ValueError(
                f"store_packed_weights=True does not go with precision='{self.precision}', whose weights are packed when they "
                "are loaded: leave one of them out"
            )
        if self.eight_bit_share > 1:
            raise ValueError(f"eight_bit_share={self.eight_bit_share} is out of range: a share is at most 1")
        whole = {"fp32_nodes": bool(self.fp32_nodes), "precision": self.precision != "fp32"}
        for name in (name for name, is_set in whole.items() if is_set and self.num_layers_per_program is not None):
            raise ValueError(
                f"num_layers_per_program={self.num_layers_per_program} does not go with {name}={getattr(self, name)!r}, which is "
                "about the whole model: leave one of them out"
            )
        if self.simulate is None:
            formats = [name for name in ("mxfp6_matmul", "mxint8_kv_cache") if getattr(self, name)]
            if formats:
                raise ValueError(
                    f"{' and '.join(f'{name}=True' for name in formats)}: the CPU does not have this format; leave it out, or "
                    "simulate a device that has it with simulate='ai100'"
                )
            forms = [name for name in ("num_kv_blocks", "replicate_kv_heads") if getattr(self, name) != 1]
            if forms:
                raise ValueError(
                    f"{' and '.join(f'{name}={getattr(self, name)}' for name in forms)}: the CPU's kernels for attention have no "
                    "such form; leave it out, or simulate a device that has it with simulate='ai100'"
                )
            if self.fp32_nodes:
                raise ValueError("fp32_nodes needs simulate='ai100': without it every node is FP32")
            return
        if self.precision != "fp32":
            raise ValueError(
                f"precision='{self.precision}' does not go with simulate='{self.simulate}', which has the device's formats: "
                "leave precision out; mxfp6_matmul=True compresses the weights as the device does"
            )
        if self.num_cores > AI100_CORES:
            raise ValueError(
                f"num_cores={self.num_cores} is out of range for simulate='{self.simulate}': a device has at most "
                f"{AI100_CORES} cores"
            )


@dataclass(frozen=True, kw_only=True)
class OrtSimRuntimeOptions(RuntimeOptions):
    """Options of `execute`."""

    num_threads: int | None = option(
        None,
        "threads that compute; by default num_cores of the compiled model, at most the CPUs this process may use",
        minimum=1,
    )
    # Measured on Gemma 3 270M in float32, CPU time: 141 instead of 201 ms for a chunk of 32 tokens. Loading takes 0.4 instead of
    # 0.05 s, and private memory instead of pages of the file that processes share.
    pack_weights: bool = option(
        True,
        "rearrange weights for faster products when loading; off: load at once and share memory between processes (for fast "
        "products too: store_packed_weights of compile)",
    )
