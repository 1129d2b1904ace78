"""``qeff bench``: first token, decode rate, throughput, load time and memory of a program."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import (
    add_compile_options,
    add_model,
    add_runtime_options,
    add_subcommand,
    compile_texts,
    texts_by_name,
)
from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.tables import table
from qeff_framework.errors import InputError, OptionError
from qeff_framework.tasks import task_spec

if TYPE_CHECKING:
    from qeff_framework.bench import Case, Contender, Failed, Measured
    from qeff_framework.cli.progress import ProgressHandler
    from qeff_framework.contracts import CompiledModel

logger = logging.getLogger(__name__)

_TRANSFORMERS = "transformers"
#: Tasks whose programs generate from tokens alone.
_TASKS = ("causal-lm", "seq2seq-lm")


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "bench",
        run,
        summary="measure how fast a model or a compiled artifact runs",
        description="Measures text generation: time to the first token, tokens per second of the steps after it and of all, "
        "time to load, and memory. Each round starts every contender in a process of its own, one after the other, warms it up "
        "and runs all cases. Figures are medians over the rounds, with the lowest and the highest. A MODEL is compiled first, "
        "for a context that the longest case fills unless --ctx-len is given.",
        examples=[
            "qeff bench gpt2 --backend ort_sim --prompt-len 128,512 --new-tokens 64 --against transformers",
            "qeff bench gpt2-compiled --prompt-len 32 --rounds 5 --json",
        ],
    )
    add_model(parser, metavar="MODEL|ARTIFACT")
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--prompt-len",
        metavar="N[,N]",
        type=_counts,
        default=(32,),
        help="tokens of a prompt; a case for each (default 32)",
    )
    group.add_argument(
        "--new-tokens", metavar="N", type=_count, default=32, help="new tokens of each prompt (default 32)"
    )
    group.add_argument("--rounds", metavar="N", type=_count, default=3, help="rounds (default 3)")
    group.add_argument(
        "--warmups", metavar="N", type=int, default=1, help="short runs before a case is measured (default 1)"
    )
    group.add_argument(
        "--against",
        choices=(_TRANSFORMERS,),
        help="run Transformers in float32 (eager PyTorch) in turn with the program",
    )
    group.add_argument(
        "--time-limit",
        metavar="SECONDS",
        type=float,
        default=1800.0,
        help="for one contender in one round (default 1800)",
    )
    add_runtime_options(group)
    add_compile_options(parser)


def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:  # noqa: ARG001 - every subcommand has this signature
    """Compiles if needed, measures, tells."""
    from qeff_framework.bench import Measured, measure
    from qeff_framework.generation import ProgramShape

    compiled = _program(args)
    shape = ProgramShape.of(compiled)
    rows = _rows(args.rows, shape)
    cases = _cases(args, shape, rows)
    vocab_size = shape.source_vocab_size if shape.has_encoder else shape.vocab_size
    if vocab_size is None:
        raise InputError(f"{compiled.directory} does not say how many tokens its model knows; compile the model anew")
    results = measure(
        _contenders(args, compiled),
        cases,
        vocab_size=vocab_size,
        rounds=args.rounds,
        warmups=args.warmups,
        time_limit=args.time_limit,
        tell=lambda text: logger.info("%s", text),
    )
    measured = [each for each in results if isinstance(each, Measured)]
    failed = [each for each in results if not isinstance(each, Measured)]
    return CommandResult(
        document=_document(args, compiled, cases, measured, failed),
        text=_text(args, cases, measured),
        failure="; ".join(f"{each.name} could not be measured: {each.reason}" for each in failed),
    )


def _program(args: argparse.Namespace) -> CompiledModel:
    """The program to measure; `args.rows` holds the rows that were asked for, or `None`."""
    from qeff_framework.cli.compile import checked_runtime_options, compile_model
    from qeff_framework.cli.programs import artifact_at, given_artifact
    from qeff_framework.registry import registry
    from qeff_framework.runtime.loading import backend_of

    if args.warmups < 0 or not 0 < args.time_limit < math.inf:
        raise OptionError("--warmups must be 0 or more, and --time-limit a number of seconds above 0")
    args.rows, asked = None, args.batch_size
    if artifact_at(Path(args.model)) is not None:
        args.batch_size = None  # rows of a case, not a size to compile for
        artifact = given_artifact(args)
        if args.against is not None:
            raise OptionError(
                f"--against {args.against} needs the model's weights; give the model instead of an artifact"
            )
        if artifact is not None:
            _check_task(artifact.task, args)
            checked_runtime_options(texts_by_name(args.runtime_options), registry.descriptor(backend_of(artifact)))
            args.rows = asked
            return artifact
    texts = compile_texts(args)
    if "ctx_len" not in texts:
        args.ctx_len = str(max(args.prompt_len) + args.new_tokens)

    def check(task: str) -> None:
        _check_task(task, args)
        if (size := texts.get("ctx_len", "")).isdecimal():
            _check_room(args, int(size), has_encoder=task_spec(task).is_encoder_decoder)

    return compile_model(args, check_task=check, prefer="causal-lm")


def _check_task(task: str, args: argparse.Namespace) -> None:
    """Raises `OptionError` before anything is compiled for a task that is not measured."""
    if task not in _TASKS:
        raise OptionError(f"bench measures text generation ({' or '.join(_TASKS)}); this model is for {task}")
    if args.against is not None and task_spec(task).is_encoder_decoder:
        raise OptionError(
            f"--against {args.against} measures decoders alone, and this model has an encoder; leave it out"
        )


def _rows(asked: str | None, shape: Any) -> int:
    """Rows of each case: as many as `asked`, by default those that decode together."""
    most: int = shape.batch_size
    if asked is None:
        return most
    try:
        rows = _count(asked)
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"--batch-size: {error}") from None
    if rows > most and shape.slots is None:
        held = "one row" if most == 1 else f"1 to {most} rows together"
        raise InputError(f"--batch-size {rows}: the program runs {held}")
    return rows


def _cases(args: argparse.Namespace, shape: Any, rows: int) -> list[Case]:
    from qeff_framework.bench import Case

    limit = max(shape.prefill.sources) if shape.has_encoder else shape.longest_prompt
    for length in args.prompt_len:
        if length > limit:
            raise InputError(f"--prompt-len {length}: the program reads prompts of up to {limit} tokens")
    _check_room(args, shape.ctx_len, has_encoder=shape.has_encoder)
    return [Case(prompt_len=length, new_tokens=args.new_tokens, batch_size=rows) for length in args.prompt_len]


def _check_room(args: argparse.Namespace, ctx_len: int, *, has_encoder: bool) -> None:
    """Raises `InputError` for a case that a context of this length does not hold."""
    for length in args.prompt_len:
        if args.new_tokens + (1 if has_encoder else length) > ctx_len:
            raise InputError(
                f"--prompt-len {length} and --new-tokens {args.new_tokens} do not fit into ctx_len={ctx_len}; shorten one, or "
                "compile for a longer context"
            )


def _contenders(args: argparse.Namespace, compiled: CompiledModel) -> list[Contender]:
    from qeff_framework.bench import Contender
    from qeff_framework.cli.text_options import typed_options
    from qeff_framework.registry import registry
    from qeff_framework.runtime.loading import backend_of

    texts = texts_by_name(args.runtime_options)
    options = typed_options(texts, [registry.descriptor(backend_of(compiled)).runtime_options]) if texts else {}
    described = {
        "kind": "program",
        "directory": str(compiled.directory),
        "runtime_options": {name: str(value) if isinstance(value, Path) else value for name, value in options.items()},
        "extensions": args.extension,
    }
    found = [Contender(name=compiled.backend, described=described)]
    if args.against is not None:
        names = ("gguf_file", "revision", "trust_remote_code", "adapter")
        arguments = {"model": args.model, **{name: getattr(args, name) for name in names if getattr(args, name)}}
        found.append(Contender(name=_TRANSFORMERS, described={"kind": _TRANSFORMERS, "arguments": arguments}))
    return found


def _document(
    args: argparse.Namespace,
    compiled: CompiledModel,
    cases: Sequence[Case],
    measured: Sequence[Measured],
    failed: Sequence[Failed],
) -> dict[str, Any]:
    import os
    import platform

    return {
        "model": compiled.metadata.get("model_name", ""),
        "backend": compiled.backend,
        "directory": str(compiled.directory),
        "options": compiled.options,
        "specializations": [{"name": item.name, "dims": dict(item.dims)} for item in compiled.specializations],
        "machine": {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "rounds": args.rounds,
        "contenders": [
            {
                "name": each.name,
                "info": dict(each.info),
                "load_seconds": each.load,
                "peak_bytes": each.peak_bytes,
                "cases": [
                    {
                        "prompt_len": case.prompt_len,
                        "new_tokens": case.new_tokens,
                        "batch_size": case.batch_size,
                        "first_token_seconds": each.first_token[number],
                        "decode_tokens_per_second": each.decode[number],
                        "tokens_per_second": each.throughput[number],
                    }
                    for number, case in enumerate(cases)
                ],
            }
            for each in measured
        ],
        "failed": [{"name": each.name, "reason": each.reason} for each in failed],
    }


def _text(args: argparse.Namespace, cases: Sequence[Case], measured: Sequence[Measured]) -> str:
    from qeff_framework.bench import ratio

    if not measured:
        return ""
    header = ["", "prompt", "rows", "first token, ms", "decode, tok/s", "all, tok/s", "load, s", "peak, MB"]
    lines = [
        [
            each.name,
            case.prompt_len,
            case.batch_size,
            _spread(each.first_token[number], 1000),
            _spread(each.decode[number]),
            _spread(each.throughput[number]),
            _spread(each.load),
            _spread(each.peak_bytes, 1e-6),
        ]
        for number, case in enumerate(cases)
        for each in measured
    ]
    parts = [
        table(header, lines),
        f"median of {args.rounds} rounds (lowest - highest), {args.new_tokens} new tokens a row",
    ]
    against = next((each for each in measured if each.name == args.against), None)
    for each in measured:
        if against is None or each is against:
            continue
        rows = [
            [
                f"{each.name} / {against.name}",
                case.prompt_len,
                case.batch_size,
                *(
                    _told(ratio(figures[number], others[number]) if figures[number] else None)
                    for figures, others in (
                        (each.first_token, against.first_token),
                        (each.decode, against.decode),
                        (each.throughput, against.throughput),
                    )
                ),
                _told(ratio(each.load, against.load)),
                _told(ratio(each.peak_bytes, against.peak_bytes)),
            ]
            for number, case in enumerate(cases)
        ]
        names = ["ratio, round by round", "prompt", "rows", "first token", "decode", "all", "load", "peak"]
        parts += ["", table(names, rows)]
    return "\n".join(parts)


def _spread(numbers: Sequence[float], scale: float = 1.0) -> str:
    from qeff_framework.bench import Spread

    return _told(Spread.of([number * scale for number in numbers]) if numbers else None)


def _told(spread: Any) -> str:
    """Three significant digits, and the range where there is one."""
    if spread is None:
        return "-"
    median, lowest, highest = (_digits(number) for number in (spread.median, spread.lowest, spread.highest))
    return median if lowest == highest else f"{median} ({lowest} - {highest})"


def _digits(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))
