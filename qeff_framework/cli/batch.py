"""``qeff batch``: answers to the rows of a file."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import add_grammar, add_runtime_options, add_subcommand, add_verify, given_grammar
from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.programs import artifact_at, load_program, runtime_options
from qeff_framework.errors import OptionError

if TYPE_CHECKING:
    from qeff_framework.cli.progress import ProgressHandler
    from qeff_framework.contracts import CompiledModel
    from qeff_framework.serving.batch import BatchProgress


#: Seconds between two lines about the progress.
_REPORT_SECONDS = 1.0


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "batch",
        run,
        summary="answer every row of a file",
        description='Generates text for every row of INPUT, a JSON object on each line, {"prompt": "..."} or {"messages": [...]}'
        ", with settings of the generation as further fields, or a Parquet file with such columns. Each row gets one line of "
        "OUTPUT, when its answer is complete: the row's number, and its text or its error. Interrupted and started again, the "
        "command goes on where it was.",
        examples=[
            "qeff batch questions.jsonl answers.jsonl --artifact gpt2-compiled --max-new-tokens 64",
            "qeff batch questions.parquet answers.jsonl --artifact gpt2-compiled --engine ray --replicas 4",
        ],
    )
    parser.add_argument(
        "input",
        metavar="INPUT",
        type=Path,
        help="a JSON object on each line (UTF-8), or a file that ends in .parquet (extra: pip install 'qeff-framework[parquet]')",
    )
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="where a line for each row is appended")
    parser.add_argument(
        "--artifact", metavar="DIR", type=Path, required=True, help="a program that `qeff compile` has written"
    )
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=int, help="new tokens per row at most, where the row does not say it"
    )
    parser.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="compute in this process, or by replicas that Ray keeps on this machine or, with RAY_ADDRESS, on a cluster "
        "(extra: pip install 'qeff-framework[ray]'; default local)",
    )
    parser.add_argument("--replicas", metavar="N", type=int, help="processes, with --engine ray (default 1)")
    parser.add_argument(
        "--batch-size", metavar="N", type=int, help="rows that a replica gets at a time, with --engine ray (default 64)"
    )
    parser.add_argument(
        "--extension",
        metavar="NAME",
        action="append",
        help="wrap the hooks with this extension; may be repeated (default: QEFF_EXTENSIONS)",
    )
    add_grammar(parser)
    add_runtime_options(parser)
    add_verify(parser)


def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:
    """Loads the program and answers the rows."""
    from qeff_framework.generation import resolve_settings
    from qeff_framework.generation.grammar import check_grammar
    from qeff_framework.progress import report

    if not args.input.is_file():
        raise OptionError(f"INPUT {args.input}: there is no such file")
    if args.output.is_dir() or not args.output.absolute().parent.is_dir():
        raise OptionError(f"OUTPUT {args.output}: it must be a file in a directory that exists")
    written = args.output if args.output.exists() else args.output.absolute().parent
    if not os.access(written, os.W_OK):
        raise OptionError(f"OUTPUT {args.output}: {written} cannot be written; give another file")
    if args.output.exists() and args.output.samefile(args.input):
        raise OptionError(f"OUTPUT {args.output}: it is INPUT itself; give another file")
    for name in ("replicas", "batch_size"):
        value = getattr(args, name)
        option = f"--{name.replace('_', '-')}"
        if value is not None and args.engine == "local":
            raise OptionError(f"{option} is for --engine ray")
        if value is not None and value < 1:
            raise OptionError(f"{option}={value} must be at least 1")
    compiled = artifact_at(args.artifact)
    if compiled is None:
        raise OptionError(f"--artifact {args.artifact}: it is no compiled artifact; make one with `qeff compile`")
    settings = given_grammar(args)
    if args.max_new_tokens is not None:
        settings["max_new_tokens"] = args.max_new_tokens
    # Once, and not as the error of every row.
    check_grammar(resolve_settings({}, None, **settings))

    told = 0.0

    def show(state: BatchProgress) -> None:
        nonlocal told
        if time.monotonic() - told < _REPORT_SECONDS:
            return
        told = time.monotonic()
        left = "" if state.seconds_left is None else f", {state.seconds_left:.0f} s left"
        report(f"{state.done} of {state.rows} rows, {state.rate:.2f} rows/s{left}")

    answer = _answer_on_ray if args.engine == "ray" else _answer_here
    state = answer(args, compiled, settings, show)
    progress.clear()
    return CommandResult(
        document={"rows": state.rows, "failed": state.failed, "rows_per_second": state.rate, "output": args.output},
        summary=f"{state.rows} rows in {args.output}, {state.rate:.2f} rows/s",
        failure=f"{state.failed} of {state.rows} rows failed; their lines in {args.output} say why"
        if state.failed
        else "",
    )


def _answer_here(
    args: argparse.Namespace,
    compiled: CompiledModel,
    settings: Mapping[str, Any],
    show: Callable[[BatchProgress], None],
) -> BatchProgress:
    from qeff_framework.serving import Engine
    from qeff_framework.serving.batch import run_batch

    engine = Engine(load_program(args, compiled))  # type: ignore[arg-type] # it refuses programs of other tasks
    try:
        return run_batch(engine, args.input, args.output, settings=settings, on_progress=show)
    finally:
        engine.close()


def _answer_on_ray(
    args: argparse.Namespace,
    compiled: CompiledModel,
    settings: Mapping[str, Any],
    show: Callable[[BatchProgress], None],
) -> BatchProgress:
    from qeff_framework.scale.batch import run_batch_on_ray

    return run_batch_on_ray(
        compiled.directory,
        args.input,
        args.output,
        replicas=args.replicas or 1,
        batch_size=args.batch_size or 64,
        settings=settings,
        on_progress=show,
        verify=args.verify,
        extensions=args.extension,
        **runtime_options(args, compiled),
    )
