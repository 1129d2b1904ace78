"""What the arguments of a pipeline's call mean for its programs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from qeff_framework.contracts import BASE_ADAPTER
from qeff_framework.errors import OptionError

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


def scales_of(names: Any, weights: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """The scale of each adapter that is chosen, by name. Names and weights are those of diffusers' ``set_adapters``.

    ``"base"`` is the pipeline alone. A scale may be one for each component by its name: ``{"unet": 0.5}``.

    Raises:
        OptionError: there is no such adapter, or there are fewer or more numbers than names.
    """
    chosen = [names] if isinstance(names, str) else list(names)
    if chosen == [BASE_ADAPTER]:
        return {}
    unknown = [name for name in chosen if name not in known]
    if unknown:
        held = ", ".join(known) or "none"
        raise OptionError(f"there is no adapter {unknown[0]!r}; there are: {held}")
    given = list(weights) if isinstance(weights, (list, tuple)) else [weights] * len(chosen)
    if len(given) != len(chosen):
        raise OptionError(f"adapter_weights has {len(given)} numbers for {len(chosen)} adapters; give one for each")
    for weight in given:
        if not isinstance(weight, (int, float, Mapping, type(None))) or (
            isinstance(weight, Mapping) and not all(isinstance(each, (int, float)) for each in weight.values())
        ):
            raise OptionError(
                f"adapter_weights={weight!r}: give a number, or one for each component by its name; those for single blocks "
                "cannot be switched"
            )
    return dict(zip(chosen, (1.0 if weight is None else weight for weight in given), strict=True))
