"""The command as a whole: arguments, output, errors and exit codes.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted, 141 the reader of the output has gone (as shells count it).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from qeff_framework.cli import (
    backends,
    batch,
    bench,
    cache,
    chat,
    compare,
    compile,  # noqa: A004 - named like the subcommand
    coverage,
    doctor,
    export,
    generate,
    inspect,
    new_backend,
    serve,
    test_backend,
)
from qeff_framework.cli.arguments import Parser, add_common
from qeff_framework.cli.command_result import CommandResult, to_json
from qeff_framework.cli.environment import misspelt_variables
from qeff_framework.cli.progress import shown_progress
from qeff_framework.errors import OptionError, QEFFError, UnknownBackendError, UnknownExtensionError
from qeff_framework.plugin_answers import is_crash
from qeff_framework.plugin_metadata import printable_lines

logger = logging.getLogger(__name__)

SUCCESS, FAILURE, USAGE, INTERRUPTED, NO_READER = 0, 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with `argv` (by default the process's arguments) and returns its exit code."""
    _open_closed_streams()
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        # A model's text may hold characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="replace")
    # Python looks for cycles several times when it ends: 2 s for the half a million objects of an export.
    atexit.register(gc.freeze)
    try:
        code = _main(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        return NO_READER
    except OSError as error:
        # What a command itself cannot read or write is told by `_main`.
        _forget_stdout()
        with contextlib.suppress(OSError):
            print(f"qeff: error: the output cannot be written: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("qeff: interrupted", file=sys.stderr)
        return INTERRUPTED
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command and its subcommands."""
    parser = Parser(
        prog="qeff",
        description="Runs Transformers models on AI accelerators, through backends that are installed as packages.",
        epilog='example:\n  qeff generate gpt2 --backend ort_sim --prompt "My name is"\n\n`qeff COMMAND --help` says more.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print the version and exit"
    )
    add_common(parser, default=False)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in (
        backends,
        doctor,
        export,
        compile,
        generate,
        chat,
        serve,
        bench,
        compare,
        batch,
        inspect,
        cache,
        coverage,
        new_backend,
        test_backend,
    ):
        module.add_to(subparsers)
    return parser


class _Version(argparse.Action):
    """Reads the version from the metadata only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"qeff-framework {version('qeff-framework')}")
        except PackageNotFoundError:
            print("qeff-framework (not installed: run from its sources)")
        parser.exit()


def _main(argv: Sequence[str] | None) -> int:
    try:
        parser = build_parser()
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else SUCCESS
    if args.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    level = logging.WARNING if args.quiet else logging.DEBUG if args.verbose else logging.INFO
    try:
        with (
            _reserved_stdout() if args.json else contextlib.nullcontext(),
            _library_warnings(shown=args.verbose or args.debug),
            shown_progress(sys.stderr, level) as progress,
        ):
            if args.command != "doctor":
                for name, meant in misspelt_variables():
                    logger.warning("the variable %s is read by nobody here; did you mean %s?", name, meant)
            outcome: CommandResult = args.run(args, progress)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the last place where an error can be turned into a message
        return _fail(error, args)
    return _show(outcome, args)


def _show(outcome: CommandResult, args: argparse.Namespace) -> int:
    if args.json:
        print(to_json(outcome.document))
    elif outcome.text:
        print(outcome.text)
    if outcome.summary and not args.quiet:
        separator = "\n" if not args.json else ""
        print(f"{separator}{outcome.summary}", file=sys.stderr if args.json else sys.stdout)
    if outcome.failure:
        sys.stdout.flush()
        print(f"qeff: error: {outcome.failure}", file=sys.stderr)
        return FAILURE
    return SUCCESS


def _fail(error: Exception, args: argparse.Namespace) -> int:
    expected = isinstance(error, QEFFError)
    message = str(error) if expected else f"unexpected {' '.join(traceback.format_exception_only(error)[-1].split())}"
    if args.json:
        print(to_json({"error": {"type": type(error).__name__, "message": message}}))
        sys.stdout.flush()
    if args.debug:
        traceback.print_exception(error)
    hint = "" if (expected and not is_crash(error)) or args.debug else "; --debug shows the traceback"
    print(f"qeff: error: {printable_lines(message)}{hint}", file=sys.stderr)
    return USAGE if isinstance(error, (OptionError, UnknownBackendError, UnknownExtensionError)) else FAILURE


@contextlib.contextmanager
def _reserved_stdout() -> Iterator[None]:
    """Keeps stdout free for the JSON document: what libraries, native code and child processes print goes to stderr."""
    real = sys.stdout is sys.__stdout__
    sys.stdout.flush()
    kept = os.dup(1) if real else -1
    try:
        if real:
            os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if real:
            os.dup2(kept, 1)
            os.close(kept)


@contextlib.contextmanager
def _library_warnings(*, shown: bool) -> Iterator[None]:
    """Hides the Python warnings of libraries: they are for their callers, and whoever types a command is none of them.

    Warnings that Python was asked for (``-W``, PYTHONWARNINGS) stay.
    """
    with warnings.catch_warnings():
        if not shown and not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


def _open_closed_streams() -> None:
    """Opens standard streams that the caller has closed (``>&-``) on nothing.

    Python has `None` in their place, and the next file that is opened, such as one of weights, would get what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            # For child processes as well.
            os.set_inheritable(number, True)
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _forget_stdout() -> None:
    """Lets the interpreter flush its buffer into nothing when it exits, instead of failing once more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
