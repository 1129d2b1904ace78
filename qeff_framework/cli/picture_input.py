"""What ``qeff generate`` makes pictures of beside prompts: a picture to begin with, and the mask of what is painted anew.

Also what of a call's arguments no program could take, told before one is compiled or loaded.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.generate_input import opened_image
from qeff_framework.errors import OptionError

if TYPE_CHECKING:
    from qeff_framework.auto.diffusion_pipeline import QEFFDiffusionPipeline
    from qeff_framework.contracts import CompiledModel


@dataclass(frozen=True, kw_only=True)
class PictureInput:
    """The pictures of the prompts, one for all or one for each, and their masks."""

    prompts: int
    images: Sequence[Any]
    masks: Sequence[Any]
    strength: float | None
    cache_threshold: float | None = None

    def check_programs(self, batch_size: int, *, has_cache: bool) -> None:
        """Raises `OptionError` where programs of this batch, with or without a cache of the first block, do not fit."""
        if self.prompts % batch_size:
            raise OptionError(
                f"{self.prompts} prompts were given, and the program makes {batch_size} pictures at a time; give a multiple of "
                f"{batch_size} prompts"
            )
        if self.cache_threshold is not None and not has_cache:
            raise OptionError(
                "--cache-threshold needs programs with a cache: compile with -O enable_first_block_cache=true"
            )

    def check(self) -> None:
        """Raises `OptionError` where the pictures are not for the prompts, or not of one size."""
        for name, found in (("--image", self.images), ("--mask", self.masks)):
            if len(found) not in (0, 1, self.prompts):
                raise OptionError(
                    f"{self.prompts} prompts and {len(found)} files of {name} were given; give one for all, or one for each "
                    "prompt"
                )
        sizes = {each.size for each in (*self.images, *self.masks)}
        if len(sizes) > 1:
            told = ", ".join(f"{height} x {width}" for width, height in sorted(sizes))
            raise OptionError(
                f"pictures and masks are of one size; these have {told} pixels (height x width): resize them"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of all."""
        width, height = self.images[0].size
        return height, width

    def arguments(self, kind: type[Any], first: int, count: int) -> dict[str, Any]:
        """Of a call of the pipeline for `count` prompts from number `first` on."""

        def of_prompts(pictures: Sequence[Any]) -> Any:
            found = [pictures[0] if len(pictures) == 1 else pictures[first + number] for number in range(count)]
            return found[0] if count == 1 else found

        given: dict[str, Any] = {} if self.strength is None else {"strength": self.strength}
        if self.images:
            given[_argument_of_pictures(kind)] = of_prompts(self.images)
        if self.masks:
            given["mask_image"] = of_prompts(self.masks)
        return given


def given_pictures(args: argparse.Namespace, prompts: int, images: Sequence[Sequence[Any]]) -> PictureInput:
    """What ``--image``, ``--mask`` and ``--strength`` say together, before a model is opened for it."""
    if args.mask and not args.image:
        raise OptionError("--mask says what is painted anew in a picture; give the picture with --image FILE")
    if args.strength is not None and not args.image:
        raise OptionError("--strength is how much of a picture is changed; give the picture with --image FILE")
    if args.strength is not None and not 0 < args.strength <= 1:
        raise OptionError(f"--strength {args.strength} is out of range: it is above 0, and 1 at most")
    threshold = args.cache_threshold
    if threshold is not None and not (math.isfinite(threshold) and threshold >= 0):
        raise OptionError(f"--cache-threshold {threshold} is out of range: it is a number, at least 0")
    return PictureInput(
        prompts=prompts,
        images=[file for of_prompt in images for file in of_prompt],
        masks=[opened_image(file).convert("L") for file in args.mask],
        strength=args.strength,
        cache_threshold=threshold,
    )


def for_pictures(
    model: QEFFDiffusionPipeline, given: PictureInput, sizes: dict[str, Any]
) -> tuple[QEFFDiffusionPipeline, dict[str, Any]]:
    """The pipeline in the form that takes what was given, and the options of its sizes: by default those of the picture."""
    given.check()
    if given.images and _argument_of_pictures(model.pipeline_class) is None:
        model = model.in_form("inpainting" if given.masks else "image-to-image")
    elif given.masks and "mask_image" not in _parameters(model.pipeline_class):
        model = model.in_form("inpainting")
    _check_class(model.pipeline_class, given)
    batch_size = sizes.get("batch_size", 1)
    if isinstance(batch_size, int) and batch_size > 0:  # what is none is refused with the other options
        given.check_programs(batch_size, has_cache=sizes.get("enable_first_block_cache") is True)
    if not given.images:
        return model, sizes
    height, width = given.size
    asked = (sizes.get("height", height), sizes.get("width", width))
    _check_size(given, {asked} if all(isinstance(each, int) for each in asked) else set())
    return model, {**sizes, "height": asked[0], "width": asked[1]}


def check_artifact(compiled: CompiledModel, given: PictureInput) -> None:
    """Raises `OptionError` where the programs take no such pictures, before they are loaded."""
    given.check()
    kind = class_of_artifact(compiled)
    if kind is None:
        return
    _check_class(kind, given)
    parts = compiled.parts().values()
    dims = [item.dims for part in parts for item in part.specializations]
    has_cache = any(part.metadata["call"].get("part") for part in parts)
    given.check_programs(dims[0]["batch_size"], has_cache=has_cache)
    known = {(each["height"], each["width"]) for each in dims if "height" in each and "width" in each}
    if given.images:
        _check_size(given, known)


def class_of_artifact(compiled: CompiledModel) -> type[Any] | None:
    """The class of the pipeline that an artifact carries; `None` where that cannot be told without loading it."""
    from qeff_framework.sources.diffusers_library import require_diffusers

    require_diffusers()
    from qeff_framework.diffusion.calls import library_class
    from qeff_framework.diffusion.folder import INDEX

    try:
        index = json.loads((compiled.directory / "pipeline" / INDEX).read_text(encoding="utf-8"))
        kind: type[Any] = library_class(index["class"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        return None  # loading it says what is wrong
    return kind


def _parameters(kind: type[Any]) -> set[str]:
    return set(inspect.signature(kind.__call__).parameters)


def _argument_of_pictures(kind: type[Any]) -> Any:
    """The argument that ``--image`` is; `None` where there is none."""
    return next((name for name in ("image", "control_image") if name in _parameters(kind)), None)


def _check_class(kind: type[Any], given: PictureInput) -> None:
    taken, name = _parameters(kind), kind.__name__
    if "num_frames" in taken:
        raise OptionError(f"{name} makes videos, which are no PNG files; use load_compiled() in Python")
    if given.images and _argument_of_pictures(kind) is None:
        raise OptionError(f"{name} makes pictures of texts alone; leave --image out")
    if {"image", "control_image"} <= taken and "ControlNet" in name:
        raise OptionError(f"{name} takes a picture and one for its ControlNet; call it in Python, with load_compiled()")
    if given.masks and "mask_image" not in taken:
        raise OptionError(f"{name} takes no mask; leave --mask out")
    if given.strength is not None and "strength" not in taken:
        raise OptionError(f"{name} takes no strength; leave --strength out")
    if not given.images and _needs_a_picture(kind):
        raise OptionError(f"{name} begins with a picture; give it with --image FILE")
    if "mask_image" in taken and not given.masks:
        raise OptionError(
            f"{name} paints a part of a picture anew; say which with --mask FILE, where that part is white"
        )


def _needs_a_picture(kind: type[Any]) -> bool:
    from diffusers.pipelines import auto_pipeline

    def listed(name: str) -> set[Any]:
        return set(getattr(auto_pipeline, f"AUTO_{name}_PIPELINES_MAPPING").values())

    from_texts = listed("TEXT2IMAGE") | listed("TEXT2VIDEO")
    reading = listed("IMAGE2IMAGE") | listed("INPAINT") | listed("IMAGE2VIDEO")
    return kind in reading - from_texts or "ControlNet" in kind.__name__ or "mask_image" in _parameters(kind)


def _check_size(given: PictureInput, known: set[tuple[int, int]]) -> None:
    if known and given.size not in known:
        programs = ", ".join(f"{height} x {width}" for height, width in sorted(known))
        height, width = given.size
        raise OptionError(
            f"the picture has {height} x {width} pixels (height x width), and the programs are for {programs}: resize it, or "
            f"compile with -O height={height} -O width={width}"
        )
