"""The short runs in which a pipeline shows what it calls: their arguments, and the calls that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qeff_framework.diffusion.arguments import PICTURES, call_parameters, guidance_argument
from qeff_framework.diffusion.calls import Call
from qeff_framework.diffusion.folder import networks_of
from qeff_framework.diffusion.recording import recorded
from qeff_framework.errors import OptionError, UnsupportedModelError
from qeff_framework.shapes import PipelineShapes

#: Guidance of the runs: above 1 a pipeline computes with and without the prompt.
_GUIDED, _UNGUIDED = 5.0, 1.0


@dataclass(frozen=True, kw_only=True)
class ShortRuns:
    """One run for each size of pictures."""

    #: Arguments of each run.
    arguments: list[dict[str, Any]]
    #: Each kind of call once, and the number of the first run that makes it.
    calls: list[tuple[Call, int]]
    #: Numbers of weights that the pipeline's own code computes with, by component and name.
    host_weights: Mapping[str, Mapping[str, torch.Tensor]]


def short_runs(pipeline: Any, shapes: PipelineShapes, given: Mapping[str, Any]) -> ShortRuns:
    """Runs `pipeline`, of diffusers, on components that compute nothing.

    A pipeline that refuses to run without a picture runs with one.

    Args:
        pipeline: stays as it is.
        shapes: sizes of the pictures, their number, and whether there is guidance.
        given: arguments of the calls of users.

    Raises:
        OptionError: it does not take what was given, or needs what was not given.
        UnsupportedModelError: it cannot be recorded.
    """
    plain = [_arguments(pipeline, shapes, given, *size) for size in shapes.image_sizes]
    missing = [name for name in PICTURES if name in call_parameters(pipeline) and name not in given]
    try:
        return _recorded(pipeline, plain, shapes, given)
    except (OptionError, UnsupportedModelError) as error:
        if not missing:
            raise
        if shapes.height is None:
            raise OptionError(
                f"{type(pipeline).__name__} does not run without a picture ({error}); give the height and width of "
                f"the pictures, or a picture: call={{'{missing[0]}': ...}}"
            ) from error
        without = error
    drawn = [_arguments(pipeline, shapes, given, *size, pictures=True) for size in shapes.image_sizes]
    try:
        return _recorded(pipeline, drawn, shapes, given)
    except (OptionError, UnsupportedModelError) as error:
        raise _clearer(without, error) from error


def _recorded(pipeline: Any, runs: list[dict[str, Any]], shapes: PipelineShapes, given: Mapping[str, Any]) -> ShortRuns:
    several = _with_a_generator_for_each(pipeline, runs, shapes.batch_size, given)
    recording = recorded(pipeline, [*runs, *several])
    calls = [(call, number % len(runs)) for call, number in recording.calls]
    return ShortRuns(arguments=runs, calls=calls, host_weights=recording.host_weights)


def _with_a_generator_for_each(
    pipeline: Any, runs: list[dict[str, Any]], rows: int, given: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The runs once more: with a generator for each picture diffusers encodes the pictures that it is given one by one."""
    taken = call_parameters(pipeline)
    if rows == 1 or "generator" not in taken or "generator" in given or not set(PICTURES) & set(taken):
        return []
    return [{**run, "generator": [torch.Generator() for _ in range(rows)]} for run in runs]


def _arguments(
    pipeline: Any,
    shapes: PipelineShapes,
    call: Mapping[str, Any],
    height: int | None,
    width: int | None,
    *,
    pictures: bool = False,
) -> dict[str, Any]:
    """Arguments of a run of these sizes; `call` are those of the calls of users."""
    taken = call_parameters(pipeline)
    kind = type(pipeline).__name__
    if "prompt" not in taken:
        raise UnsupportedModelError(f"{kind} takes no prompt")
    asked = {
        "height": height,
        "width": width,
        "num_frames": shapes.num_frames,
        "max_sequence_length": shapes.max_sequence_length,
    }
    reads_pictures = any(name in taken for name in PICTURES)
    given = {name: value for name, value in asked.items() if value is not None}
    unknown = [name for name in {**given, **call} if name not in taken]
    unknown = [name for name in unknown if not (reads_pictures and name in ("height", "width"))]
    if unknown:
        raise OptionError(f"{kind} takes no {' and no '.join(unknown)}; leave it out")
    guidance = guidance_argument(taken)
    fixed: dict[str, Any] = {
        "prompt": ["a"] * shapes.batch_size,
        "negative_prompt": [""] * shapes.batch_size if shapes.guidance else None,
        # Of a part of the steps only, so that a picture's own latents are computed as well.
        "strength": 0.75,
        "num_inference_steps": 4,
        "output_type": "np",
    }
    if guidance is not None:
        fixed[guidance] = _GUIDED if shapes.guidance else _UNGUIDED
    if pictures and height is not None and width is not None:
        fixed |= _example_pictures(pipeline, height, width, shapes.batch_size)
    return {name: value for name, value in {**given, **fixed, **call}.items() if name in taken}


def _example_pictures(pipeline: Any, height: int, width: int, batch_size: int) -> dict[str, Any]:
    from PIL import Image

    picture = Image.new("RGB", (width, height), "grey")
    # White is what an inpainting pipeline paints.
    mask = Image.new("L", (width, height), "white")
    made: dict[str, Any] = {name: mask if "mask" in name else picture for name in PICTURES}
    made = {name: each if batch_size == 1 else [each] * batch_size for name, each in made.items()}
    several = networks_of(getattr(pipeline, "controlnet", None))
    if several:
        # Each of several ControlNets reads a picture.
        read = "control_image" if "control_image" in call_parameters(pipeline) else "image"
        made[read] = [made[read]] * len(several)
    return made


def _clearer(
    without: OptionError | UnsupportedModelError, error: OptionError | UnsupportedModelError
) -> OptionError | UnsupportedModelError:
    """Of the errors of a run without a picture and of one with it the one that somebody wrote for this; else both."""
    # What code of diffusers stumbles over has a cause.
    told = [each for each in (error, without) if each.__cause__ is None]
    return told[0] if told else type(error)(f"{without}; and with a picture: {error}")
