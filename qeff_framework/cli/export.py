"""``qeff export``: a model as portable ONNX."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import add_extension, add_model, add_output, add_subcommand
from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.compile import notes_of
from qeff_framework.cli.tables import facts
from qeff_framework.rare_collections import rare_collections

if TYPE_CHECKING:
    from qeff_framework.cli.progress import ProgressHandler


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "export",
        run,
        summary="export a model to portable ONNX",
        description="Exports a model to portable ONNX, which every backend compiles from, or finds the export that exists.",
        examples=["qeff export gpt2 -o gpt2-onnx"],
    )
    add_model(parser)
    add_output(parser)
    add_extension(parser)
    parser.add_argument(
        "--use-onnx-subfunctions",
        action="store_true",
        help="write layers that are alike as calls of one ONNX function for each kind",
    )


@rare_collections()
def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:  # noqa: ARG001 - every subcommand has this signature
    """Exports."""
    from qeff_framework.cli.models import open_model

    exported = open_model(args).export(
        args.output, extensions=args.extension, use_onnx_subfunctions=args.use_onnx_subfunctions
    )
    shown = {
        "task": exported.task,
        "model": exported.metadata.get("model_name", ""),
        "architecture": exported.metadata.get("architecture", ""),
        "directory": str(exported.directory),
        "onnx": str(exported.model_path),
    }
    found = notes_of(exported.metadata)
    text = facts({**shown, "warning": "\n".join(found.get("warnings", ()))})
    return CommandResult(document={**shown, **found}, text=text)
