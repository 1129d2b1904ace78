"""Tiny pipelines of diffusers, held against the pictures that diffusers itself makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.coverage.parity import stage
from qeff_framework.coverage.processes import CheckError
from qeff_framework.diffusion.arguments import SIZES, call_parameters, guidance_argument
from qeff_framework.errors import CompileError, InputError, UnsupportedModelError
from qeff_framework.runtime.pipeline import CompiledDiffusionPipeline

if TYPE_CHECKING:
    from qeff_framework.auto.diffusion_pipeline import QEFFDiffusionPipeline
    from qeff_framework.coverage.tiny_pipelines import TinyPipeline

#: Largest difference of a pixel between 0 and 1.
PIXEL_TOLERANCE: Final = 1e-3
#: Steps of a picture.
PICTURE_STEPS: Final = 4
#: What pictures are made of.
PROMPTS: Final[Mapping[str, str]] = {"prompt": "a lighthouse", "negative_prompt": "fog on the sea"}
#: Pixels of a picture that shows something differ at least by that much, as a standard deviation.
_CONTRAST: Final = 0.01


def check_reference(name: str) -> dict[str, Any]:
    """The facts of a reference. Raises `UnsupportedModelError` for one that any export would equal."""
    from qeff_framework.coverage.tiny_pipelines import tiny_pipeline

    tiny = tiny_pipeline(name)
    expected = make_picture(tiny.pipeline, tiny)
    _refuse_degenerate(expected)
    return {"class": type(tiny.pipeline).__name__, "contrast": float(expected.std())}


def check_pipeline(tiny: Any, backend: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Makes one picture, or one video, with guidance where the pipeline has it."""
    import numpy as np

    from qeff_framework.auto.diffusion_pipeline import QEFFDiffusionPipeline

    facts["class"] = type(tiny.pipeline).__name__
    expected = make_picture(tiny.pipeline, tiny)
    _refuse_degenerate(expected)
    model = QEFFDiffusionPipeline(tiny.pipeline)
    _compile(model, backend, tiny, facts)
    try:
        found = _through(model, tiny, facts)
    except InputError:
        # The pipeline pads texts to no fixed length: the programs are for those that it was recorded with.
        facts["prompt_lengths"] = "compiled for the prompts"
        _compile(model, backend, tiny, facts, **PROMPTS)
        with stage("execute", facts):
            found = _through(model, tiny, facts)
    facts["pixel_error"] = error = float(np.abs(found - expected).max())
    if not error <= PIXEL_TOLERANCE:
        facts["stage"] = "pixels"
        raise CheckError(f"a pixel differs by {error:.1e}", facts)
    return facts


def _compile(
    model: QEFFDiffusionPipeline, backend: str, tiny: TinyPipeline, facts: dict[str, Any], **call: Any
) -> None:
    taken = call_parameters(tiny.pipeline)
    given = {name: value for name, value in call.items() if name in taken}
    with stage("export", facts):
        try:
            model.compile(backend, call={**given, **tiny.arguments}, **tiny.sizes)
        except CompileError:
            with stage("compile", facts):
                raise


def _through(model: QEFFDiffusionPipeline, tiny: TinyPipeline, facts: dict[str, Any]) -> Any:
    with model.load() as runner:
        assert isinstance(runner, CompiledDiffusionPipeline)  # noqa: S101 - for the type checker
        runner.pipeline.set_progress_bar_config(disable=True)
        facts["programs"] = list(runner.compiled.programs)
        try:
            return make_picture(runner, tiny)
        except InputError:
            raise
        except Exception:
            with stage("execute", facts):
                raise


def make_picture(run: Any, tiny: TinyPipeline, steps: int = PICTURE_STEPS) -> Any:
    """Pixels between 0 and 1, of random numbers that are the same each time. `run`: the pipeline, or its programs."""
    import numpy as np
    import torch

    taken = call_parameters(tiny.pipeline)
    fixed: dict[str, Any] = {
        **PROMPTS,
        "num_inference_steps": steps,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(1),
        **{name: value for name, value in tiny.sizes.items() if name in SIZES},
    }
    guidance = guidance_argument(taken)
    guided = tiny.sizes.get("guidance", True)
    if guidance is not None:
        fixed[guidance] = 4.0 if guided else 1.0
    if not guided:
        del fixed["negative_prompt"]
    given = {name: value for name, value in fixed.items() if name in taken} | dict(tiny.arguments)
    # Some pipelines draw from torch's own generator what they draw beside the latents.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return np.asarray(run(**given)[0])


def _refuse_degenerate(expected: Any) -> None:
    if not float(expected.std()) > _CONTRAST:
        raise UnsupportedModelError(
            f"the tiny pipeline is degenerate: its pixels differ by {float(expected.std()):.1e}"
        )
