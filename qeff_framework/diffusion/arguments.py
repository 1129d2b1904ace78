"""What the arguments of a pipeline's call mean for its programs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

from qeff_framework.contracts import BASE_ADAPTER
from qeff_framework.errors import OptionError

#: What denoisers are told the time step by.
TIME_STEPS = ("timestep", "timesteps")
#: Sizes of the programs.
SIZES = ("height", "width", "num_frames", "max_sequence_length")
#: Pictures of the size of the result.
PICTURES = ("image", "mask_image", "control_image", "control_mask")
#: How many pictures are made of each prompt.
PICTURES_OF_A_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt")
#: Names of guidance. A pipeline that has both computes with and without the prompt because of the first; the second is then
#: a number that its denoiser takes.
_GUIDANCE = ("true_cfg_scale", "guidance_scale")


def call_parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    """The arguments that a pipeline is called with."""
    return dict(inspect.signature(pipeline.__call__).parameters)


def guidance_argument(taken: dict[str, inspect.Parameter]) -> str | None:
    """The argument that is above 1 where a pipeline computes with and without the prompt."""
    return next((name for name in _GUIDANCE if name in taken), None)


def picture_sizes(given: Mapping[str, Any]) -> set[tuple[int, int]]:
    """Height and width of the pictures among the arguments of a call, as far as they can be told."""
    found: set[tuple[int, int]] = set()
    values = [value for name, value in given.items() if name in PICTURES]
    while values:
        value = values.pop()
        if isinstance(value, (list, tuple)):
            values += value
        elif size := _picture_size(value):
            found.add(size)
    return found


def _picture_size(value: Any) -> tuple[int, int] | None:
    if hasattr(value, "getbands"):
        return value.height, value.width
    shape = tuple(getattr(value, "shape", ()))
    if len(shape) < 3:
        return None
    # A tensor has its colours in front, an array at the end. What has other numbers of them is no picture.
    rows, columns, colours = (*shape[-2:], shape[-3]) if hasattr(value, "permute") else shape[-3:]
    return (int(rows), int(columns)) if colours in (1, 3) else None


def takes_time_steps(component: Any) -> bool:
    """Whether a component is called in every step: it is told which one."""
    return any(name in inspect.signature(component.forward).parameters for name in TIME_STEPS)


def scales_of(names: Any, weights: Any, known: Mapping[str, Any], components: Collection[str]) -> dict[str, Any]:
    """The scale of each adapter that is chosen, by name. Names and weights are those of diffusers' ``set_adapters``.

    ``"base"`` is the pipeline alone. A scale may be one for each of its `components` by name: ``{"unet": 0.5}``.

    Raises:
        OptionError: there is no such adapter, or there are fewer or more numbers than names.
    """
    chosen = [names] if isinstance(names, str) else list(names)
    if chosen == [BASE_ADAPTER]:
        return {}
    repeated = [name for number, name in enumerate(chosen) if name in chosen[:number]]
    if repeated:
        raise OptionError(f"the adapter {repeated[0]!r} is named twice; name each once, with the sum of its weights")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        held = ", ".join(known) or "none"
        raise OptionError(f"there is no adapter {unknown[0]!r}; there are: {held}")
    given = list(weights) if isinstance(weights, (list, tuple)) else [weights] * len(chosen)
    if len(given) != len(chosen):
        raise OptionError(f"adapter_weights has {len(given)} numbers for {len(chosen)} adapters; give one for each")
    for weight in given:
        numbers = [*weight.values()] if isinstance(weight, Mapping) else [1.0 if weight is None else weight]
        if not all(isinstance(each, (int, float)) and math.isfinite(each) for each in numbers):
            raise OptionError(
                f"adapter_weights={weight!r}: give a number, or one for each component by its name; those for single blocks "
                "cannot be switched"
            )
        strange = [each for each in weight if each not in components] if isinstance(weight, Mapping) else []
        if strange:
            raise OptionError(
                f"adapter_weights={weight!r}: there is no {strange[0]!r}; there are: {', '.join(components)}"
            )
    return dict(zip(chosen, (1.0 if weight is None else weight for weight in given), strict=True))
