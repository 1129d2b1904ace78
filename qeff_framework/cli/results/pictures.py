"""Pictures from prompts, written to PNG files that say how they were made."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.results.common import backend_line, where
from qeff_framework.cli.tables import facts
from qeff_framework.errors import InputError, OptionError

if TYPE_CHECKING:
    from qeff_framework.cli.results.request import ResultsRequest
    from qeff_framework.runtime.pipeline import CompiledDiffusionPipeline

#: Steps where none are asked for.
STEPS = 20
#: Seeds are drawn below it.
_SEEDS = 2**32


def check_output(output: Path | None) -> Path:
    """The file to write, before anything is compiled for it. Raises `OptionError`."""
    if output is None:
        raise OptionError("the program makes pictures; say where they go with --output FILE.png")
    if output.suffix.lower() != ".png":
        raise OptionError(f"--output {output} is no PNG file, which is what is written; give FILE.png")
    if not output.absolute().parent.is_dir():
        raise OptionError(f"--output {output} cannot be written: there is no folder {output.absolute().parent}")
    return output


def generate_pictures(runner: CompiledDiffusionPipeline, request: ResultsRequest) -> CommandResult:
    """One picture for each prompt; the files appear when all of them are made."""
    args, prompts = request.args, request.texts
    output = check_output(args.output)
    seed = args.seed if args.seed is not None else secrets.randbelow(_SEEDS)
    batch = runner.batch_size
    pictures: list[Any] = []
    for first in range(0, len(prompts), batch):
        given = request.pictures.arguments(type(runner.pipeline), first, batch)
        pictures += _made(runner, prompts[first : first + batch], first, seed, args, given)
    settings = _settings(runner, args)
    described = [
        {"prompt": prompt, "seed": seed + number, **settings, "height": picture.height, "width": picture.width}
        for number, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True))
    ]
    files = _written(pictures, described, output)
    results = [{**facts_of, "file": str(file)} for facts_of, file in zip(described, files, strict=True)]
    lines = [f"{result['file']}  seed {result['seed']}" for result in results]
    return CommandResult(
        document={**where(runner), "results": results},
        text="\n".join(lines),
        summary=facts({"backend": backend_line(runner), "steps": settings["steps"]}),
    )


def _made(
    runner: CompiledDiffusionPipeline,
    prompts: Sequence[str],
    first: int,
    seed: int,
    args: Any,
    of_pictures: Mapping[str, Any],
) -> Sequence[Any]:
    import torch

    from qeff_framework.progress import report

    given: dict[str, Any] = {**of_pictures}
    if args.guidance_scale is not None:
        given["guidance_scale"] = args.guidance_scale
    if args.cache_threshold is not None:
        given["cache_threshold"] = args.cache_threshold
    if args.negative_prompt is not None:
        given["negative_prompt"] = [args.negative_prompt] * len(prompts)
    steps = args.steps or STEPS

    def on_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        del timestep
        # Of a picture that is changed a part of the steps are taken.
        report(f"step {step + 1} of {getattr(pipeline, 'num_timesteps', steps)}")
        return tensors

    report(f"picture {first + 1}")
    runner.pipeline.set_progress_bar_config(disable=True)
    result = runner(
        prompt=list(prompts),
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed + first + number) for number in range(len(prompts))],
        callback_on_step_end=on_step,
        output_type="pil",
        **given,
    )
    if not hasattr(result, "images"):
        raise InputError(
            "the pipeline makes no pictures, and nothing else becomes a PNG file; use load_compiled() in Python"
        )
    images: Sequence[Any] = result.images
    return images


def _settings(runner: CompiledDiffusionPipeline, args: Any) -> dict[str, Any]:
    told = {
        "steps": args.steps or STEPS,
        "negative_prompt": args.negative_prompt,
        "guidance_scale": args.guidance_scale,
        "cache_threshold": args.cache_threshold,
        # An id of the hub stays whole.
        "adapter": _names([args.adapter]) if args.adapter and Path(args.adapter).exists() else args.adapter,
        "image": _names([file for files in args.image for file in files]),
        "mask": _names(args.mask),
        "strength": args.strength,
        "model": runner.compiled.metadata.get("model_name", ""),
        "backend": _backends(runner),
        **runner.sizes,
    }
    return {name: value for name, value in told.items() if value is not None}


def _names(files: Sequence[str]) -> str | None:
    """Without their folders, which are no matter of who gets the picture."""
    return ", ".join(Path(file).name for file in files) or None


def _backends(runner: CompiledDiffusionPipeline) -> str:
    """That of all programs, or each program's own."""
    backends = {program: part.backend for program, part in runner.compiled.parts().items()}
    if len(set(backends.values())) < 2:
        return runner.compiled.backend
    return ", ".join(f"{program} {backend}" for program, backend in backends.items())


def _written(pictures: Sequence[Any], described: Sequence[Mapping[str, Any]], output: Path) -> list[Path]:
    """Writes all beside their places first, so that a failure leaves none."""
    from PIL.PngImagePlugin import PngInfo

    many = len(pictures) > 1
    files = [
        output.with_name(f"{output.stem}-{number}{output.suffix}") if many else output
        for number in range(1, len(pictures) + 1)
    ]
    unfinished = [file.with_name(f".{file.name}.unfinished") for file in files]
    try:
        for picture, settings, place in zip(pictures, described, unfinished, strict=True):
            info = PngInfo()
            for name, value in settings.items():
                info.add_itxt(name, str(value))
            picture.save(place, format="PNG", pnginfo=info)
        for place, file in zip(unfinished, files, strict=True):
            place.replace(file)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error}") from error
    finally:
        for place in unfinished:
            place.unlink(missing_ok=True)
    return files
