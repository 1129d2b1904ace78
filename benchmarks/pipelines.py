"""Seconds of a step beside diffusers on the same processor, for denoisers of a few million weights, in interleaved rounds.

python -m benchmarks.pipelines [--rounds N] [STRUCTURE ...]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from qeff_framework import QEFFDiffusionPipeline, load_compiled
from qeff_framework.coverage import tiny_components
from qeff_framework.coverage import tiny_pipelines as tiny

STEPS = 4


def unet() -> tuple[Any, dict[str, Any]]:
    """Stable Diffusion 1 with channels of 128 and 256 over latents of 32 x 32."""
    pipeline = tiny.tiny_pipeline("stable-diffusion").pipeline
    denoiser = tiny_components.unet(
        block_out_channels=(128, 256, 256), norm_num_groups=32, sample_size=32, attention_head_dim=8, layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    pipeline.register_modules(unet=denoiser.eval())
    return pipeline, {"height": 256, "width": 256}


def transformer() -> tuple[Any, dict[str, Any]]:
    """Stable Diffusion 3 with six blocks of 512 numbers over 1024 patches."""
    from diffusers import SD3Transformer2DModel

    pipeline = tiny.tiny_pipeline("stable-diffusion-3").pipeline
    denoiser = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=16, out_channels=16, num_layers=6, attention_head_dim=64,
        num_attention_heads=8, caption_projection_dim=512, joint_attention_dim=32, pooled_projection_dim=32,
    )  # fmt: skip
    pipeline.register_modules(transformer=denoiser.eval())
    return pipeline, {"height": 32, "width": 32, "max_sequence_length": 16}


def flux() -> tuple[Any, dict[str, Any]]:
    """Flux with two double and four single blocks of 512 numbers over 1024 patches."""
    from diffusers import FluxTransformer2DModel

    pipeline = tiny.tiny_pipeline("flux").pipeline
    denoiser = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=4, attention_head_dim=64, num_attention_heads=8,
        joint_attention_dim=32, pooled_projection_dim=tiny_components.TEXT, axes_dims_rope=(16, 24, 24), guidance_embeds=True,
    )  # fmt: skip
    pipeline.register_modules(transformer=denoiser.eval())
    return pipeline, {"height": 64, "width": 64, "max_sequence_length": 16, "guidance": False}


STRUCTURES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    each.__name__: each for each in (unet, transformer, flux)
}


def step_seconds(run: Any, sizes: dict[str, Any]) -> float:
    """The median of the times between the ends of two steps of one picture."""
    ends: list[float] = []

    def on_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        del pipeline, step, timestep
        ends.append(time.perf_counter())
        return tensors

    run(
        prompt="a lighthouse", num_inference_steps=STEPS, callback_on_step_end=on_step, output_type="latent",
        generator=torch.Generator().manual_seed(1), **sizes,
    )  # fmt: skip
    return statistics.median(after - before for before, after in itertools.pairwise(ends))


def measure(name: str, rounds: int) -> str:
    """One line of the table."""
    pipeline, sizes = STRUCTURES[name]()
    pipeline.set_progress_bar_config(disable=True)
    weights = sum(each.numel() for each in (pipeline.components.get("unet") or pipeline.transformer).parameters())
    with tempfile.TemporaryDirectory() as directory:
        model = QEFFDiffusionPipeline(pipeline)
        compiled = model.compile("ort_sim", compile_dir=f"{directory}/{name}", **sizes)
        with load_compiled(compiled.directory, num_threads=torch.get_num_threads()) as runner:
            runner.pipeline.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
            for run in (pipeline, runner):
                step_seconds(run, sizes)
            pairs = [(step_seconds(runner, sizes), step_seconds(pipeline, sizes)) for _ in range(rounds)]
    ours, theirs = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratios = sorted(mine / other for mine, other in pairs)
    return (
        f"{name} ({weights / 1e6:.1f} M weights): {ours * 1e3:.1f} ms a step, diffusers {theirs * 1e3:.1f} ms; ratio "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) in {rounds} rounds"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("structures", nargs="*", choices=[*STRUCTURES, []], metavar="STRUCTURE")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for structure in options.structures or STRUCTURES:
        print(measure(structure, options.rounds), flush=True)
