"""``qeff compare``: how far a program's results are from Transformers in float32, and whether that is near enough."""

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
from qeff_framework.cli.generate_input import lines_of_prompts
from qeff_framework.cli.tables import facts, table
from qeff_framework.errors import InputError, OptionError
from qeff_framework.textfiles import read_input

if TYPE_CHECKING:
    from qeff_framework.cli.progress import ProgressHandler
    from qeff_framework.compare import Comparison, Figures, Passage
    from qeff_framework.contracts import CompiledModel

logger = logging.getLogger(__name__)

_TASK = "causal-lm"
_CTX_LEN = 256


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "compare",
        run,
        summary="compare a program's results with Transformers in float32",
        description="Compiles a causal language model and lets the program and Transformers (float32) read the same "
        "tokens: prompts with Transformers' own greedy continuations, and a text. Tells the share of equal best tokens, errors "
        "of the logits, KL divergence, perplexity, and how the error of the stored keys and values grows from layer to layer. "
        "With --max-kl or --min-agreement the exit code is 1 when the program is not near enough.",
        examples=[
            "qeff compare gpt2 --backend ort_sim -O simulate=ai100 -O mxfp6_matmul=true",
            "qeff compare gpt2 --backend ort_sim -O precision=w8 --text book.txt --max-kl 0.01 --min-agreement 0.95",
        ],
    )
    add_model(parser)
    texts = parser.add_argument_group("texts")
    texts.add_argument(
        "--prompt", metavar="TEXT", nargs="+", action="extend", default=[], help="prompts (default: a built-in set)"
    )
    texts.add_argument("--prompts-file", metavar="FILE", help="a prompt per line (UTF-8); - reads standard input")
    texts.add_argument(
        "--new-tokens",
        metavar="N",
        type=int,
        default=32,
        help="tokens of Transformers' continuation of each prompt (default 32)",
    )
    texts.add_argument("--text", metavar="FILE", help="a text for perplexity (UTF-8; default: a built-in one)")
    texts.add_argument(
        "--text-tokens", metavar="N", type=int, default=512, help="tokens of the text at most (default 512)"
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--plot", metavar="FILE.svg", type=Path, help="write charts of the errors by layer and by token"
    )
    results.add_argument(
        "--max-kl", metavar="NATS", type=float, help="fail if the mean KL divergence over all tokens is larger"
    )
    results.add_argument(
        "--min-agreement",
        metavar="SHARE",
        type=float,
        help="fail if a smaller share (0 to 1) of the prompts' tokens agrees",
    )
    add_runtime_options(results)
    add_compile_options(parser)


def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:  # noqa: ARG001 - every subcommand has this signature
    """Compiles, compares, tells."""
    from qeff_framework.cli.compile import compile_model
    from qeff_framework.cli.models import open_model
    from qeff_framework.cli.text_options import typed_options
    from qeff_framework.compare import compare
    from qeff_framework.compare.program import ForcedReading
    from qeff_framework.compare.reference import Reference
    from qeff_framework.registry import registry
    from qeff_framework.runtime import load_compiled
    from qeff_framework.runtime.loading import backend_of

    _check(args)
    prompts, text = _given_texts(args)
    _complete_sizes(args)
    from qeff_framework.model import GivenInput

    # The program reads the prompts with Transformers' continuations, token by token: no beams, whatever the checkpoint asks for.
    settings = {"max_new_tokens": args.new_tokens, "num_beams": 1}
    given = GivenInput(texts=True, prompts=prompts, settings=settings)
    compiled = compile_model(args, check_task=_check_task, given=given, prefer=_TASK)
    runtime_texts = texts_by_name(args.runtime_options)
    runtime = (
        typed_options(runtime_texts, [registry.descriptor(backend_of(compiled)).runtime_options])
        if runtime_texts
        else {}
    )
    with load_compiled(compiled.directory, extensions=args.extension, **runtime) as runner:
        reading = ForcedReading(runner.session)
        tokenizer = runner.tokenizer
        if tokenizer is None:
            raise InputError(runner.no_tokenizer)
        openings, text_passages = _tokenized(args, prompts, text, tokenizer, reading.ctx_len)
        # The reference computes in float32 also where the program keeps the checkpoint's quantised weights.
        reference = Reference(
            open_model(argparse.Namespace(**{**vars(args), "keep_quantized": False}), prefer=_TASK).module
        )
        continued = _continued(openings, prompts, reference, args.new_tokens)
        found = compare(reading, reference, [*continued, *text_passages], tell=lambda told: logger.info("%s", told))
    if args.plot is not None:
        _write_plot(args.plot, found)
    return CommandResult(
        document=_document(args, compiled, found), text=_text(compiled, found), failure="; ".join(_misses(args, found))
    )


def _check(args: argparse.Namespace) -> None:
    if args.new_tokens < 1 or args.text_tokens < 2:
        raise OptionError("--new-tokens must be at least 1, and --text-tokens at least 2")
    if args.max_kl is not None and not args.max_kl >= 0:
        raise OptionError(f"--max-kl {args.max_kl} must be 0 or more")
    if args.min_agreement is not None and not 0 <= args.min_agreement <= 1:
        raise OptionError(f"--min-agreement {args.min_agreement} is a share from 0 to 1")
    if args.plot is not None and not args.plot.absolute().parent.is_dir():
        raise OptionError(f"--plot {args.plot}: there is no folder {args.plot.absolute().parent}")
    if args.plot is not None and args.plot.is_dir():
        raise OptionError(f"--plot {args.plot} is a folder; name a file in it")
    if args.plot is not None and args.plot.suffix.lower() != ".svg":
        raise OptionError(f"--plot {args.plot}: the charts are SVG; give a file that ends in .svg")


def _check_task(task: str) -> None:
    if task != _TASK:
        raise OptionError(f"compare is for models of task {_TASK}; this one is for {task}")


def _given_texts(args: argparse.Namespace) -> tuple[list[str], str]:
    from qeff_framework.compare import BUILT_IN_PROMPTS, BUILT_IN_TEXT

    prompts = [*args.prompt]
    if args.prompts_file is not None:
        prompts += lines_of_prompts(args.prompts_file)
    text = BUILT_IN_TEXT if args.text is None else _read(args.text, "text")
    if not text.strip():
        raise InputError(f"{args.text} has no text")
    return prompts or [*BUILT_IN_PROMPTS], text


def _read(file: str, what: str) -> str:
    try:
        return read_input(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the {what} in {file} cannot be read: {error}; give a UTF-8 text file") from error


def _complete_sizes(args: argparse.Namespace) -> None:
    """A context for the passages, and logits behind each token of a chunk where the backend can."""
    from qeff_framework.registry import registry

    texts = compile_texts(args)
    if texts.get("include_sampler", "").lower() in ("true", "1"):
        raise OptionError(
            "a program that chooses its tokens itself returns no logits to compare; leave include_sampler out"
        )
    if "ctx_len" not in texts:
        args.ctx_len = str(_CTX_LEN)
    # Set for the compilation as well: the choice probes every backend, and is told.
    args.backend = registry.choose() if args.backend is None else args.backend
    backend = registry.descriptor(args.backend)
    set_already = {"num_speculative_tokens", "include_sampler", "full_batch_size", "batch_size"} & set(texts)
    length = texts.get("prefill_seq_len", "32")
    if set_already or not backend.capabilities.speculative_decoding or not length.isdecimal() or int(length) < 2:
        return
    # A step that checks drafts returns the logits of all its tokens: those of a chunk, when it is as long.
    context = args.ctx_len
    chunk = min(int(length), int(context)) if context.isdecimal() else int(length)
    args.options = [*args.options, ("num_speculative_tokens", str(chunk - 1))]


def _tokenized(
    args: argparse.Namespace, prompts: Sequence[str], text: str, tokenizer: Any, ctx_len: int
) -> tuple[list[list[int]], list[Passage]]:
    """The prompts' tokens, and the passages of the text. Raises `InputError` for what cannot be compared."""
    from qeff_framework.compare.passages import windows

    openings = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt)
        if not ids:
            raise InputError(f"the prompt {prompt!r} has no tokens")
        if len(ids) + args.new_tokens > ctx_len:
            raise InputError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens: with --new-tokens {args.new_tokens} more than "
                f"ctx_len={ctx_len}; give a larger --ctx-len"
            )
        openings.append(ids)
    ids, plain = tokenizer.encode(text), tokenizer.encode(text, add_special_tokens=False)
    start = [ids[0]] if plain and ids[: len(plain)] != plain and ids[0] == tokenizer.bos_token_id else []
    passages = [*windows(plain[: args.text_tokens], ctx_len, start)]
    if not passages:
        where = "the built-in text" if args.text is None else args.text
        raise InputError(
            f"{where} has {len(plain)} tokens, of which none can be predicted from another one; give a longer --text"
        )
    return openings, passages


def _continued(
    openings: Sequence[Sequence[int]], prompts: Sequence[str], reference: Any, new_tokens: int
) -> list[Passage]:
    """The prompts with what the reference makes of them."""
    from qeff_framework.compare import Passage

    found = []
    for ids, prompt in zip(openings, prompts, strict=True):
        logger.info("Transformers continues %r", prompt[:40])
        found.append(Passage(kind="prompt", tokens=[*ids, *reference.continuation(ids, new_tokens)], scored=len(ids)))
    return found


def _misses(args: argparse.Namespace, found: Comparison) -> list[str]:
    """Which thresholds the program misses."""
    missed = []
    if args.max_kl is not None and not found.mean_kl <= args.max_kl:
        missed.append(f"the mean KL divergence is {found.mean_kl:.3g} nats, more than --max-kl {args.max_kl:g}")
    if args.min_agreement is not None and not found.prompts.agreement >= args.min_agreement:
        missed.append(
            f"{found.prompts.agreement:.1%} of the prompts' tokens agree, less than --min-agreement {args.min_agreement:g}"
        )
    return missed


def _document(args: argparse.Namespace, compiled: CompiledModel, found: Comparison) -> dict[str, Any]:
    from qeff_framework.compare.figures import entering_layer

    entering = entering_layer(found.layers)
    return {
        "model": compiled.metadata.get("model_name", ""),
        "backend": compiled.backend,
        "directory": str(compiled.directory),
        "options": compiled.options,
        "prompts": {**_figures(found.prompts), "common_prefixes": found.common, "new_tokens": args.new_tokens},
        "text": {
            **_figures(found.text),
            "reference_perplexity": _number(found.text.reference_perplexity),
            "perplexity": _number(found.text.program_perplexity),
        },
        "mean_kl": _number(found.mean_kl),
        "layers": [
            {"layer": each.layer, "keys": _number(each["keys"]), "values": _number(each["values"])}
            for each in found.layers
        ],
        "entering_layer": None if entering is None else entering.layer,
        "missed": _misses(args, found),
    }


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        "tokens": figures.tokens,
        "agreeing": figures.agreeing,
        "max_logit_error": _number(figures.max_error),
        "mean_logit_error": _number(figures.mean_error),
        "mean_kl": _number(figures.mean_kl),
        "max_kl": _number(figures.max_kl),
    }


def _number(value: float | None) -> float | None:
    """JSON has no infinities; `None` stands for them."""
    return value if value is not None and math.isfinite(value) else None


def _text(compiled: CompiledModel, found: Comparison) -> str:
    from qeff_framework.compare.figures import entering_layer

    told = {
        "model": compiled.metadata.get("model_name", ""),
        "backend": compiled.backend,
        "reference": "Transformers, float32",
    }
    rows = [_row("prompts", found.prompts), _row("text", found.text)]
    header = ["", "tokens", "best token equal", "logit error, mean", "largest", "KL, mean", "largest"]
    text = found.text
    change = text.program_perplexity / text.reference_perplexity - 1
    parts = [facts(told), "", table(header, rows), ""]
    parts.append(
        f"perplexity of the text {text.program_perplexity:.2f}, of Transformers {text.reference_perplexity:.2f} ({change:+.2%})"
    )
    equal = sum(length == found.prompts.tokens // max(1, len(found.common)) for length in found.common)
    parts.append(
        f"greedy texts equal to the end: {equal} of {len(found.common)}; equal tokens at the beginning: "
        f"{', '.join(map(str, found.common))}"
    )
    if not found.layers:
        return "\n".join(
            [*parts, "errors by layer: not known, the keys and values of this program cannot be read here"]
        )
    entering = entering_layer(found.layers)
    layers = [
        [each.layer, _share(each["keys"]), _share(each["values"]), "<- grows most" if each is entering else ""]
        for each in found.layers
    ]
    return "\n".join([*parts, "", table(["layer", "error of keys", "of values", ""], layers)])


def _row(name: str, figures: Figures) -> list[object]:
    return [
        name,
        figures.tokens,
        f"{figures.agreeing} ({figures.agreement:.1%})",
        f"{figures.mean_error:.3g}",
        f"{figures.max_error:.3g}",
        f"{figures.mean_kl:.3g}",
        f"{figures.max_kl:.3g}",
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else "no numbers" if math.isinf(value) else f"{value:.2e}"


def _write_plot(file: Path, found: Comparison) -> None:
    from qeff_framework.charts import lines, page

    layers = {what: [each[what] or 0.0 for each in found.layers] for what in ("keys", "values")}
    divergences = {"prompts": found.prompts.divergences, "text": found.text.divergences}
    charts = [
        lines("Relative error of stored keys and values", "layer", layers, logarithmic=True),
        lines("KL divergence by token, in nats", "token", divergences, logarithmic=True),
    ]
    try:
        file.write_text(page(charts), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the plot {file} cannot be written: {error}") from error
