"""Loading the program that MODEL|ARTIFACT names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import compile_texts, texts_by_name
from qeff_framework.errors import ArtifactCorruptError, ArtifactError, OptionError

if TYPE_CHECKING:
    from qeff_framework.contracts import CompiledModel
    from qeff_framework.runtime import CompiledRunner


def artifact_at(directory: Path) -> CompiledModel | None:
    """The compiled artifact in a directory, or `None` where there is none."""
    from qeff_framework.contracts import CompiledModel, ExportedModel

    if (directory / ExportedModel.FILE).is_file():
        raise ArtifactError(
            f"{directory} is an export, which no backend has compiled; give the model or a compiled artifact"
        )
    if (directory / CompiledModel.FILE).is_file():
        return CompiledModel.load(directory)
    _check_complete(directory)
    return None


def _check_complete(directory: Path) -> None:
    """Raises `ArtifactCorruptError` for an artifact whose copy lacks the file that tells what it is: it is no checkpoint."""
    from qeff_framework.artifacts import Manifest
    from qeff_framework.contracts import CompiledModel, ExportedModel

    try:
        listed = Manifest.load(directory).files
    except ArtifactError:
        return
    for name in (CompiledModel.FILE, ExportedModel.FILE):
        if name in listed:
            raise ArtifactCorruptError(
                f"{directory} cannot be used as an artifact: its {Manifest.FILE} lists {name}, which is not there; copy the "
                "whole directory again, or build the artifact again"
            )


def given_artifact(args: argparse.Namespace) -> CompiledModel | None:
    """The compiled artifact that MODEL|ARTIFACT names, or `None` when it names a model."""
    if not args.model.strip():
        raise OptionError(
            "the name of the model is empty; give a checkpoint folder, a .gguf file, a hub id or an artifact"
        )
    directory = Path(args.model)
    compiled = artifact_at(directory)
    if compiled is None:
        return None
    if args.backend is not None:
        from qeff_framework.registry import normalize

        if normalize(args.backend.rpartition(":")[2]) != normalize(compiled.backend):
            raise OptionError(
                f"{directory} was compiled for backend '{compiled.backend}', not for '{args.backend}'; leave --backend out, "
                "or give the model instead of the artifact"
            )
    if getattr(args, "task", "auto") not in ("auto", compiled.task):
        raise OptionError(
            f"{directory} was compiled for the task {compiled.task}, not for {args.task}; leave --task out, or give the model "
            "instead of the artifact"
        )
    of_the_model = (
        "gguf_file",
        "revision",
        "pooling",
        "trust_remote_code",
        "keep_quantized",
        "adapter",
        "no_safety_checker",
        "parallel",
    )
    # Not every command has all of them.
    given = [name for name in of_the_model if getattr(args, name, False)]
    fixed = [*compile_texts(args), *given, *(["kv_offload"] if args.kv_offload is not None else [])]
    if fixed:
        raise OptionError(
            f"{', '.join(fixed)} cannot be given for {directory}: it is compiled already; give the model instead, or, for an "
            "option of the runtime, use -R"
        )
    return compiled


def load_program(args: argparse.Namespace, compiled: CompiledModel) -> CompiledRunner:
    """The loaded program, with the runtime options of the command line."""
    from qeff_framework.runtime import load_compiled

    options = runtime_options(args, compiled)
    return load_compiled(
        compiled.directory, backend=_exact(args), verify=args.verify, extensions=args.extension, **options
    )


def runtime_options(args: argparse.Namespace, compiled: CompiledModel) -> dict[str, Any]:
    """The runtime options of the command line, by the types that the backend gives them."""
    from qeff_framework.cli.text_options import typed_options
    from qeff_framework.registry import registry
    from qeff_framework.runtime.loading import backend_of

    texts = texts_by_name(args.runtime_options)
    if "verify" in texts:
        raise OptionError("'verify' is not an option of a backend's runtime; use --verify")
    if not texts:
        return {}
    return typed_options(texts, [registry.descriptor(_exact(args) or backend_of(compiled)).runtime_options])


def _exact(args: argparse.Namespace) -> str | None:
    """A backend that is named with its package is meant exactly. Commands for artifacts alone have no such argument."""
    name: str | None = getattr(args, "backend", None)
    return name if name and ":" in name else None
