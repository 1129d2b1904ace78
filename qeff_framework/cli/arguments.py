"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qeff_framework.contracts import POOLINGS
from qeff_framework.errors import InputError, OptionError
from qeff_framework.options import CLOSE
from qeff_framework.tasks import task_names
from qeff_framework.textfiles import parse_json, read_input

if TYPE_CHECKING:
    from qeff_framework.cli.command_result import CommandResult
    from qeff_framework.cli.progress import ProgressHandler

    Run = Callable[[argparse.Namespace, ProgressHandler], CommandResult]

#: Options of the common tasks and of every backend that have a flag of their own, and what they say.
_SIZES = {
    "prefill_seq_len": (
        "N[,N]",
        "causal LM: prompt tokens per prefill step; several give one program each (default 32, or ctx_len where that is less)",
    ),
    "ctx_len": (
        "N",
        "causal LM: prompt and generated tokens together; encoder-decoder: start and generated tokens (default 128)",
    ),
    "encoder_seq_len": (
        "N[,N]",
        "encoder-decoder: tokens of the source; several lengths give one program each (default 128)",
    ),
    "batch_size": ("N", "inputs that are run together (default 1)"),
    "full_batch_size": ("N", "causal LM: slots of continuous batching"),
    "seq_len": (
        "N[,N]",
        "encoder or classifier: tokens per input; several lengths give one program each (default 128)",
    ),
    "num_cores": ("N", "compute cores used on each device"),
    "num_devices": ("N", "accelerators that one program is spread over"),
}

#: Parameters of `compile` and `load_compiled` that are no options; as ``-O name=...`` they would reach the wrong place.
_NO_OPTIONS = {
    "backend": "; use --backend",
    "compile_dir": "; use -o DIR",
    "dry_run": "; use --dry-run",
    "extensions": "; use --extension",
    "kv_offload": "; use --kv-offload or --no-kv-offload",
    "path": "",
    "rebuild": "; use qeff compile --rebuild",
    "self": "",
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in the form of every other error of the command."""

    def error(self, message: str) -> NoReturn:
        """Prints usage and message on stderr and exits with 2."""
        if choice := _CHOICE.fullmatch(message):
            message += _did_you_mean(choice["given"], re.findall(r"'(.+?)'", choice["choices"]))
        self.exit(2, f"{self.format_usage()}qeff: error: {message}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; a subcommand refuses by itself what it does not know, with the nearest option."""
        known, others = super().parse_known_args(args, namespace)
        if others and self._subparsers is None:
            options = [name for name in self._option_string_actions if name.startswith("--")]
            near = [_did_you_mean(other.partition("=")[0], options) for other in others if other.startswith("--")]
            self.error(f"unrecognized arguments: {' '.join(others)}{''.join(near)}")
        return known, others


#: What argparse says of a word that is none of several.
_CHOICE = re.compile(r"argument \S+: invalid choice: '(?P<given>.+?)' \(choose from (?P<choices>.+)\)")


def _did_you_mean(given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1, cutoff=CLOSE)
    return f"; did you mean {near[0]}?" if near else ""


def add_common(parser: argparse.ArgumentParser, *, default: Any = argparse.SUPPRESS) -> None:
    """What stands before or after the subcommand. Without `default` an absent one leaves what stood before."""
    group = parser.add_argument_group("messages")
    group.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        default=default,
        help="no progress and no figures, only results and warnings",
    )
    group.add_argument("-v", "--verbose", action="store_true", default=default, help="show debug messages too")
    group.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")


def add_subcommand(
    subparsers: Any, name: str, run: Run | None, *, summary: str, description: str = "", examples: Sequence[str]
) -> argparse.ArgumentParser:
    """A subcommand with the arguments that all of them take."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog="\n".join(["examples:" if len(examples) > 1 else "example:", *(f"  {line}" for line in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if run is not None:
        parser.add_argument("--json", action="store_true", help="print one JSON document on stdout, all else on stderr")
        parser.set_defaults(run=run)
    add_common(parser)
    return parser


def add_model(parser: argparse.ArgumentParser, *, metavar: str = "MODEL") -> None:
    """The model, and how a checkpoint is read."""
    also = ", or an artifact that `qeff compile` has written" if metavar != "MODEL" else ""
    parser.add_argument("model", metavar=metavar, help=f"a checkpoint folder, a .gguf file or a hub id{also}")
    group = parser.add_argument_group("checkpoint")
    group.add_argument("--gguf-file", metavar="FILE", help="a GGUF file of the folder or of the hub repository")
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings along"
    )
    group.add_argument(
        "--adapter", metavar="ADAPTER", help="folder or hub id of a LoRA adapter that is merged into the weights"
    )
    group.add_argument(
        "--keep-quantized",
        action="store_true",
        help="leave the weights of a quantised checkpoint in its blocks of 4 or 8 bits, where they are such",
    )
    group.add_argument(
        "--kv-offload",
        action=argparse.BooleanOptionalAction,
        help="vision-language models: a program for images and one for text, or one for both (default: two)",
    )
    group.add_argument(
        "--no-safety-checker",
        action="store_true",
        help="pictures: leave the pipeline's safety checker out, which is never compiled, and check the pictures yourself",
    )
    group.add_argument(
        "--task",
        choices=("auto", *task_names()),
        default="auto",
        help="what the model is for (default: its config says)",
    )
    group.add_argument(
        "--pooling",
        choices=("auto", *POOLINGS, "none"),
        help="encoder: how token vectors become one embedding (default auto: all that a sentence-transformers checkpoint says)",
    )


def add_extension(parser: argparse.ArgumentParser) -> None:
    """Extensions by name."""
    parser.add_argument(
        "--extension",
        metavar="NAME",
        action="append",
        help="wrap the hooks with this extension, for instance timing; may be repeated (default: QEFF_EXTENSIONS)",
    )


def add_compile_options(parser: argparse.ArgumentParser) -> None:
    """The backend and its options."""
    group = parser.add_argument_group("compilation")
    group.add_argument(
        "--backend",
        metavar="NAME",
        help="an installed backend (default: QEFF_BACKEND, else the best one that works here)",
    )
    group.add_argument(
        "-O",
        "--option",
        dest="options",
        metavar="KEY=VALUE",
        type=key_value,
        action="append",
        default=[],
        help="any option of the backend or the task; `qeff backends NAME --options` lists a backend's",
    )
    for name, (metavar, told) in _SIZES.items():
        group.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=told)
    add_extension(parser)


def add_runtime_options(group: Any) -> None:
    """Options of the backend's runtime."""
    group.add_argument(
        "-R",
        "--runtime-option",
        dest="runtime_options",
        metavar="KEY=VALUE",
        type=key_value,
        action="append",
        default=[],
        help="a runtime option of the backend",
    )


def add_grammar(parser: Any) -> None:
    """What the whole answer must look like."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--json-schema",
        metavar="FILE",
        help="the answer is JSON that follows the schema in FILE (needs the extra guided)",
    )
    group.add_argument(
        "--regex", metavar="PATTERN", help="the whole answer matches the regular expression (needs the extra guided)"
    )


def given_grammar(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that `add_grammar` stands for. Raises `InputError` for a file that holds no JSON."""
    if args.regex is not None:
        return {"regex": args.regex}
    if args.json_schema is None:
        return {}
    try:
        return {"json_schema": parse_json(read_input(args.json_schema))}
    except (OSError, ValueError) as error:
        raise InputError(f"the JSON schema in {args.json_schema} cannot be read: {error}") from error


def add_verify(parser: argparse.ArgumentParser) -> None:
    """How closely an artifact's files are compared with its manifest."""
    parser.add_argument(
        "--verify",
        choices=("quick", "full"),
        default="quick",
        help="quick (default): sizes, small files, and larger ones whose time stamps have changed; full: read every file, and "
        "refuse unlisted ones",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where a result is put."""
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, help="put the result there (default: the artifact store)"
    )


def key_value(text: str) -> tuple[str, str]:
    """Reads ``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must have the form KEY=VALUE")
    return key.strip(), value


def add_parallel(parser: argparse.ArgumentParser) -> None:
    """Whether the programs of a pipeline are compiled at the same time."""
    parser.add_argument(
        "--parallel",
        action="store_true",
        help="of a pipeline of diffusers: compile as many of its programs at a time as there are processors",
    )


def compile_texts(args: argparse.Namespace) -> dict[str, str]:
    """All options of the compilation by name, as they were typed. Raises `OptionError` for one that is given twice."""
    flags = [(name, getattr(args, name)) for name in _SIZES if getattr(args, name) is not None]
    return texts_by_name([*flags, *args.options])


def texts_by_name(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Option texts by name. Raises `OptionError` for one that is given twice, or that has a flag of its own."""
    texts: dict[str, str] = {}
    for name, text in pairs:
        if name in _NO_OPTIONS:
            raise OptionError(f"'{name}' is not an option of a backend or a task{_NO_OPTIONS[name]}")
        if texts.setdefault(name, text) != text:
            raise OptionError(
                f"option '{name}' is given twice, as {texts[name]!r} and {text!r}; give it once, a list as a,b,c"
            )
    return texts
