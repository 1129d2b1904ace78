"""``qeff compile``: a model as a program for one backend."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import (
    add_compile_options,
    add_model,
    add_output,
    add_parallel,
    add_subcommand,
    compile_texts,
    texts_by_name,
)
from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.tables import facts
from qeff_framework.errors import OptionError
from qeff_framework.tasks import task_specs

if TYPE_CHECKING:
    from qeff_framework.cli.picture_input import PictureInput
    from qeff_framework.cli.progress import ProgressHandler
    from qeff_framework.contracts import CompiledModel, Specialization, Task
    from qeff_framework.model import GivenInput
    from qeff_framework.plugin_api import Backend
    from qeff_framework.relay import Relay


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "compile",
        run,
        summary="compile a model for a backend",
        description="Compiles a model for a backend, exporting it first if needed, or finds the program that exists.",
        examples=[
            "qeff compile gpt2 --backend ort_sim --prefill-seq-len 32 --ctx-len 128",
            "qeff compile gpt2 --backend qaic -O mxfp6_matmul=true --dry-run -o gpt2-qaic",
        ],
    )
    add_model(parser)
    add_output(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write every input file of the compiler, run nothing; for backends that can",
    )
    parser.add_argument("--rebuild", action="store_true", help="compile even if the program exists, and replace it")
    parser.add_argument(
        "--form",
        choices=("text-to-image", "image-to-image", "inpainting"),
        help="of a pipeline of diffusers: what its pictures begin with (default: as it is); needs -O height= and width=",
    )
    add_parallel(parser)
    add_compile_options(parser)


def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:  # noqa: ARG001 - every subcommand has this signature
    """Compiles."""
    compiled = compile_model(args, output=args.output, dry_run=args.dry_run, rebuild=args.rebuild)
    specializations = [{"name": name, "dims": dict(item.dims)} for name, item in named_specializations(compiled)]
    document = {
        "backend": compiled.backend,
        "task": compiled.task,
        "model": compiled.metadata.get("model_name", ""),
        "dry_run": args.dry_run,
        "specializations": specializations,
        "options": compiled.options,
        "directory": str(compiled.directory),
        **notes_of(compiled.metadata),
    }
    shown = {
        "backend": compiled.backend,
        "task": compiled.task,
        "model": document["model"],
        "programs": specialization_lines(compiled),
        "directory": str(compiled.directory),
        "note": "a dry run: the compiler's inputs, nothing that can be run" if args.dry_run else "",
        "warning": "\n".join(notes_of(compiled.metadata).get("warnings", ())),
    }
    return CommandResult(document=document, text=facts(shown))


def compile_model(
    args: argparse.Namespace,
    *,
    output: Path | None = None,
    dry_run: bool = False,
    rebuild: bool = False,
    check_task: Callable[[str], None] = lambda task: None,
    prefer: Task | None = None,
    given: GivenInput | None = None,
    pictures: PictureInput | None = None,
) -> CompiledModel:
    """The program that the arguments of `add_model` and `add_compile_options` describe.

    Backend and options are read before the model is opened: a mistake there must not cost the time that a model takes. What
    `check_task` raises for the model's task comes before the compilation too, and so does what the programs would refuse of the
    `given` input. `pictures` decide about the form of a pipeline of diffusers. A checkpoint that is for several tasks is opened
    for `prefer`.
    """
    from qeff_framework.auto.diffusion_pipeline import QEFFDiffusionPipeline
    from qeff_framework.cli.models import open_model
    from qeff_framework.cli.text_options import typed_options
    from qeff_framework.registry import registry

    texts = compile_texts(args)
    backend = registry.choose() if args.backend is None else args.backend
    descriptor = registry.descriptor(backend)
    # A program that is run afterwards must not be compiled for a backend that cannot be loaded to run it.
    relay = registry.get(backend, extensions=(), stage=None if hasattr(args, "runtime_options") else "compile")
    _check_options(texts, texts_by_name(getattr(args, "runtime_options", [])), relay, args.task)
    model = open_model(args, prefer=prefer)
    check_task(model.task)
    options = typed_options(texts, [model.shapes, descriptor.options])
    if given is not None:
        model.require_input(given, options)
    form = getattr(args, "form", None)
    if form is not None:
        if not isinstance(model, QEFFDiffusionPipeline):
            raise OptionError(f"--form {form} is for pipelines of diffusers, and {model.name} is none; leave it out")
        model = model.in_form(form)
    if pictures is not None and isinstance(model, QEFFDiffusionPipeline):
        from qeff_framework.cli.picture_input import for_pictures

        model, options = for_pictures(model, pictures, options)
    if getattr(args, "parallel", False):
        if not isinstance(model, QEFFDiffusionPipeline):
            raise OptionError(f"--parallel is for pipelines of diffusers, and {model.name} is none; leave it out")
        options["parallel"] = True
    return model.compile(
        backend, compile_dir=output, dry_run=dry_run, rebuild=rebuild, extensions=args.extension, **options
    )


def notes_of(metadata: Mapping[str, Any]) -> dict[str, list[str]]:
    """What an artifact's metadata warns about, as ``warnings``; empty where it does not."""
    problem = metadata.get("tokenizer_problem")
    warnings = [*metadata.get("notes", ()), *([f"there is no tokenizer in it: {problem}"] if problem else [])]
    return {"warnings": warnings} if warnings else {}


def _check_options(texts: Mapping[str, str], runtime_texts: Mapping[str, str], relay: Relay, task: str) -> None:
    """Raises one `OptionError` with every problem of the options of both stages, and of the two together."""
    checks: tuple[Callable[[], Any], ...] = (
        lambda: _checked_backend_options(texts, relay.backend, task),
        lambda: checked_runtime_options(runtime_texts, relay.backend),
    )
    parsed: list[Any] = []
    problems: list[str] = []
    for check in checks:
        try:
            parsed.append(check())
        except OptionError as error:
            problems.append(str(error))
    if problems:
        raise OptionError("; ".join(problems))
    options, runtime_options = parsed
    relay.check_runtime(runtime_options, dataclasses.asdict(options))


def _checked_backend_options(texts: Mapping[str, str], descriptor: Backend, task: str) -> Any:
    """Raises `OptionError` for what is wrong whatever the model is; `compile` checks the rest, with the task's sizes."""
    from qeff_framework.cli.text_options import typed_options
    from qeff_framework.options import OF_THE_RUNTIME, misplaced_options, parse_options
    from qeff_framework.registry import registry

    schemas = [spec.model_class.shapes for spec in task_specs() if task in (spec.name, "auto")]
    sizes = {field.name for schema in schemas for field in dataclasses.fields(schema)}
    others = {name: text for name, text in texts.items() if name not in sizes}
    values = typed_options(others, [descriptor.options])
    owner = f"backend '{descriptor.name}'"
    misplaced = misplaced_options(descriptor.runtime_options, OF_THE_RUNTIME)
    try:
        return parse_options(descriptor.options, values, owner=owner, also_known=sizes, misplaced=misplaced)
    except OptionError:
        # Other backends are looked at only when there is a message to improve.
        elsewhere = registry.options_elsewhere(descriptor.name)
        return parse_options(
            descriptor.options, values, owner=owner, also_known=sizes, elsewhere=elsewhere, misplaced=misplaced
        )


def checked_runtime_options(texts: Mapping[str, str], descriptor: Backend) -> Any:
    """Raises `OptionError` for a runtime option that loading would refuse, which is after the compilation."""
    from qeff_framework.cli.text_options import typed_options
    from qeff_framework.options import OF_THE_COMPILATION, misplaced_options, parse_options

    return parse_options(
        descriptor.runtime_options,
        typed_options(texts, [descriptor.runtime_options]),
        owner=f"runtime of backend '{descriptor.name}'",
        misplaced=misplaced_options(descriptor.options, OF_THE_COMPILATION),
    )


def named_specializations(compiled: CompiledModel) -> list[tuple[str, Specialization]]:
    """The specializations of all programs; where there are several, with the program's name in front."""
    return [
        (f"{program}/{item.name}" if program else item.name, item)
        for program, part in compiled.parts().items()
        for item in part.specializations
    ]


def specialization_lines(compiled: CompiledModel) -> str:
    """One line for each specialization."""
    return "\n".join(
        f"{name}: {', '.join(f'{dim}={value}' for dim, value in item.dims.items())}"
        for name, item in named_specializations(compiled)
    )
