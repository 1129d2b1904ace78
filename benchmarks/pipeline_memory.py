"""Peak memory of exporting the programs of a pipeline in a folder whose denoiser has a billion random weights or more.

python -m benchmarks.pipeline_memory [--layers N] [--limit-mib N]

Writes a folder of 4 bytes a weight into the directory of temporary files, and measures in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

#: Numbers that are drawn once and repeated.
_DRAWN = 2**22


def write_pipeline(folder: Path, layers: int) -> int:
    """Stable Diffusion 3 with a denoiser of so many blocks, 81 million weights each; returns how many weights it has."""
    import numpy as np
    import torch
    from diffusers import SD3Transformer2DModel

    from qeff_framework.coverage.tiny_pipelines import tiny_pipeline

    tiny_pipeline("stable-diffusion-3").pipeline.save_pretrained(folder)
    with torch.device("meta"):
        denoiser: Any = SD3Transformer2DModel(
            sample_size=32, patch_size=1, in_channels=16, out_channels=16, num_layers=layers, attention_head_dim=64,
            num_attention_heads=24, caption_projection_dim=1536, joint_attention_dim=32, pooled_projection_dim=32,
        )  # fmt: skip
    denoiser.save_config(folder / "transformer")
    header: dict[str, Any] = {}
    end = 0
    for name, value in denoiser.state_dict().items():
        start, end = end, end + 4 * value.numel()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    drawn = (0.02 * np.random.default_rng(0).standard_normal(_DRAWN)).astype("<f4")
    with (folder / "transformer" / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end // 4, _DRAWN):
            file.write(drawn[: end // 4 - start].tobytes())
    return end // 4


def peak_mib() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)


def export(folder: Path) -> dict[str, int]:
    """The peak after the imports and after each program."""
    from qeff_framework import QEFFDiffusionPipeline
    from qeff_framework.registry import registry
    from qeff_framework.shapes import PipelineShapes

    model = QEFFDiffusionPipeline.from_pretrained(folder)
    peaks = {"load": peak_mib()}
    shapes = PipelineShapes(height=32, width=32, max_sequence_length=16)
    for program in model._programs(registry.core(extensions=()), None, shapes):  # noqa: SLF001 - without a backend
        model._export(program.plan)  # noqa: SLF001
        peaks[program.name] = peak_mib()
    return peaks


def main() -> int:
    """Writes, measures, prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="of the denoiser; 12 make a billion weights")
    parser.add_argument("--limit-mib", type=int, default=1500, help="exit with status 1 when the peak is above this")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        print(json.dumps(export(arguments.folder)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pipeline"
        weights = write_pipeline(folder, arguments.layers)
        command = [sys.executable, "-m", "benchmarks.pipeline_memory", "--folder", str(folder)]
        environment = {**os.environ, "QEFF_HOME": f"{scratch}/store"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    peaks = json.loads(done.stdout.strip().splitlines()[-1])
    print(json.dumps({"denoiser_weights": weights, "peak_mib_after": peaks}))
    return int(max(peaks.values()) > arguments.limit_mib)


if __name__ == "__main__":
    sys.exit(main())
