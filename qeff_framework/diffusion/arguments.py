"""What the arguments of a pipeline's call mean for its programs."""

from __future__ import annotations

import inspect
from typing import Any

#: Sizes of the programs.
SIZES = ("height", "width", "num_frames", "max_sequence_length")
#: Pictures of the size of the result.
PICTURES = ("image", "mask_image", "control_image", "control_mask")
#: Names of guidance. A pipeline that has both computes with and without the prompt because of the first; the second is then
#: a number that its denoiser takes.
_GUIDANCE = ("true_cfg_scale", "guidance_scale")


def call_parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    """The arguments that a pipeline is called with."""
    return dict(inspect.signature(pipeline.__call__).parameters)


def guidance_argument(taken: dict[str, inspect.Parameter]) -> str | None:
    """The argument that is above 1 where a pipeline computes with and without the prompt."""
    return next((name for name in _GUIDANCE if name in taken), None)


def takes_time_steps(component: Any) -> bool:
    """Whether a component is called in every step: it is told which one."""
    return any(name in inspect.signature(component.forward).parameters for name in ("timestep", "timesteps"))
