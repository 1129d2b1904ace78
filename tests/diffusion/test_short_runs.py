"""The short runs in which a pipeline shows what it calls."""

from __future__ import annotations

import torch

from qeff_framework.coverage.tiny_pipelines import tiny_pipeline
from qeff_framework.diffusion.short_runs import short_runs
from qeff_framework.shapes import PipelineShapes


def test_pictures_of_several_prompts_are_encoded_together_and_one_by_one() -> None:
    # With a generator for each picture diffusers calls the encoder for each.
    tiny = tiny_pipeline("stable-diffusion/image-to-image")
    shapes = PipelineShapes(height=64, width=64, batch_size=2)
    # Seeded for the picture that is made after compile.
    before = torch.manual_seed(1).get_state()
    runs = short_runs(tiny.pipeline, shapes, {})
    assert torch.equal(torch.random.get_rng_state(), before)
    found = [call.arguments["x"]["tensor"]["shape"][0] for call, _ in runs.calls if call.method == "encode"]
    assert sorted(found) == [1, 2]
    assert {number for _, number in runs.calls} == {0}
