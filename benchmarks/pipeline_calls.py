"""Forms in which a pipeline is called, each held against the pixels that diffusers itself makes.

Run it as ``python -m benchmarks.pipeline_calls [BACKEND]``. It prints a row for each form, and exits with 1 where a pixel differs
by more than 1e-3. The pipelines are the tiny ones of the coverage.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler, UniPCMultistepScheduler

from qeff_framework import QEFFDiffusionPipeline
from qeff_framework.coverage.pipelines import PIXEL_TOLERANCE
from qeff_framework.coverage.tiny_pipelines import TinyPipeline, tiny_pipeline

STEPS = 4
_TWO = ["a lighthouse", "a tower by night"]


def _seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1 + number) for number in range(count)]


def _difference(run: Any, tiny: TinyPipeline, **call: Any) -> float:
    rows = len(call["prompt"]) if isinstance(call.get("prompt"), list) else 1
    # Diffusers wants a generator for each picture.
    rows *= call.get("num_images_per_prompt", 1)
    given = {"prompt": "a lighthouse", "num_inference_steps": STEPS, "output_type": "np", **tiny.arguments, **call}
    pictures = [np.asarray(each(**given, generator=_seeds(rows))[0]) for each in (tiny.pipeline, run)]
    return float(np.abs(pictures[0] - pictures[1]).max())


def forms(backend: str) -> Iterator[tuple[str, float]]:
    """The largest difference of a pixel for each form of a call, one after the other."""
    tiny = tiny_pipeline("stable-diffusion")
    tiny.pipeline.set_progress_bar_config(disable=True)
    model = QEFFDiffusionPipeline(tiny.pipeline)
    sizes: dict[str, Any] = {"height": 64, "width": 64}

    model.compile(backend, height=[64, 96], width=[64, 128])
    yield "two sizes in one compile, the first", _difference(model, tiny, **sizes)
    yield "two sizes in one compile, the second", _difference(model, tiny, height=96, width=128)
    own = tiny.pipeline.scheduler
    for kind in (EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, LCMScheduler):
        model.scheduler = kind.from_config(own.config)
        yield f"then {kind.__name__}", _difference(model, tiny, **sizes)
    model.scheduler = own
    guided = {**sizes, "negative_prompt": "fog", "guidance_scale": 9.0}
    yield "negative prompt and guidance as one batch of two", _difference(model, tiny, **guided)
    model.compile(backend, guidance_runs=2, **sizes)
    yield "the same as two runs", _difference(model, tiny, **guided)
    model.compile(backend, guidance=False, **sizes)
    yield "no guidance", _difference(model, tiny, guidance_scale=1.0, **sizes)
    model.compile(backend, batch_size=2, **sizes)
    of_two = {**guided, "negative_prompt": ["fog", "rain"]}
    yield "two prompts at a time, a seed for each", _difference(model, tiny, prompt=_TWO, **of_two)
    tiny.pipeline.vae.tile_sample_min_size, tiny.pipeline.vae.tile_latent_min_size = 32, 4
    tiny.pipeline.vae.enable_tiling()
    model = QEFFDiffusionPipeline(tiny.pipeline)
    model.compile(backend, **sizes)
    yield "tiles of the autoencoder", _difference(model, tiny, **sizes)

    for name in ("stable-diffusion/image-to-image", "stable-diffusion/inpainting", "stable-diffusion-controlnet"):
        other = tiny_pipeline(name)
        model = QEFFDiffusionPipeline(other.pipeline)
        model.compile(backend, batch_size=2, call=_doubled(other), **other.sizes)
        doubled = TinyPipeline(pipeline=other.pipeline, sizes=other.sizes, arguments=_doubled(other))
        yield f"{name}, two prompts at a time", _difference(model, doubled, prompt=_TWO)
    model.compile(backend, call={"num_images_per_prompt": 2, "guess_mode": True}, **other.sizes)
    more = {"num_images_per_prompt": 2, "guess_mode": True}
    yield "ControlNet that guesses, two pictures of a prompt", _difference(model, other, **more)
    parts = {**other.pipeline.components, "controlnet": [other.pipeline.controlnet] * 2}
    both = type(other.pipeline)(**parts, requires_safety_checker=False)
    model = QEFFDiffusionPipeline(both)
    model.compile(backend, **other.sizes)
    pictures = {"image": [other.arguments["image"], other.arguments["image"].rotate(90)]}
    yield "two ControlNets", _difference(model, TinyPipeline(pipeline=both, sizes=other.sizes, arguments=pictures))


def _doubled(tiny: TinyPipeline) -> dict[str, Any]:
    return {name: [value, value] if hasattr(value, "size") else value for name, value in tiny.arguments.items()}


def main() -> int:
    """Prints the table."""
    print("| Call | Largest difference of a pixel |\n|---|---|")
    largest = 0.0
    for name, difference in forms(sys.argv[1] if len(sys.argv) > 1 else "ort_sim"):
        print(f"| {name} | {difference:.1e} |", flush=True)
        largest = max(largest, difference)
    return int(largest > PIXEL_TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
