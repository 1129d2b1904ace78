"""``qeff chat``: a conversation at the terminal, or line by line from a pipe."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import (
    add_compile_options,
    add_model,
    add_runtime_options,
    add_subcommand,
    add_verify,
)
from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.compile import compile_model
from qeff_framework.cli.drafts import add_draft, check_draft, opened_draft
from qeff_framework.cli.generate_input import add_settings, given_settings
from qeff_framework.cli.programs import given_artifact, load_program
from qeff_framework.cli.results.common import needed_tokenizer, where
from qeff_framework.errors import InputError, OptionError
from qeff_framework.tasks import task_spec

if TYPE_CHECKING:
    from qeff_framework.cli.progress import ProgressHandler
    from qeff_framework.serving import Engine

_HELP = """/reset          forget the conversation; the system message stays
/system TEXT    forget the conversation and begin with this system message; without TEXT, with none
/exit           leave (so does the end of the input)
/help           this list
A line that begins with // is a message that begins with /. Three quotes (\"\"\") begin a message of several lines, and end it.
Ctrl-C ends an answer where it is."""

_QUOTES = '"""'


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "chat",
        run,
        summary="talk with a model",
        description="Answers each line of standard input as a message of one conversation, which the checkpoint's chat template "
        "renders. A MODEL is compiled first, unless the artifact store has its program.\n\nCommands in the conversation:\n"
        f"{_HELP}",
        examples=[
            "qeff chat chat-model --backend ort_sim --ctx-len 1024",
            'echo "Who wrote Faust?" | qeff chat chat-compiled --system "Answer briefly."',
        ],
    )
    add_model(parser, metavar="MODEL|ARTIFACT")
    generation = parser.add_argument_group("generation")
    generation.add_argument("--system", metavar="TEXT", help="the system message that the conversation begins with")
    add_settings(generation)
    add_draft(generation)
    add_runtime_options(generation)
    add_verify(parser)
    add_compile_options(parser)


def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:
    """Compiles if needed, loads, and answers lines until the input ends."""
    from qeff_framework.serving import Engine

    check_draft(args)
    settings = given_settings(args)
    from qeff_framework.model import GivenInput

    compiled = given_artifact(args) or compile_model(
        args, check_task=_check_task, given=GivenInput(conversations=True), prefer="causal-lm"
    )
    _check_task(compiled.task)
    with opened_draft(args, compiled) as draft, load_program(args, compiled) as runner:
        tokenizer: Any = needed_tokenizer(runner)
        if tokenizer.chat_template is None:
            from qeff_framework.tokenization.chat import without_chat_template

            raise without_chat_template(args.model)
        engine = Engine(runner, draft=draft)  # type: ignore[arg-type] # the task was checked
        chat = _Chat(engine, settings, system=args.system, silent=args.json)
        progress.clear()
        failed = chat.talk()
        place = where(runner)
    return CommandResult(
        document={**place, "messages": chat.messages, "failed": failed},
        failure=f"{failed} messages were not answered; the errors stand above" if failed else "",
    )


def _check_task(task: str) -> None:
    spec = task_spec(task)
    if not spec.generates_text or spec.reads_images or spec.reads_audio or spec.is_encoder_decoder:
        raise OptionError(f"the program is for {task}: a chat needs a causal language model; use `qeff generate`")


class _Chat:
    """The conversation so far."""

    def __init__(self, engine: Engine, settings: dict[str, Any], *, system: str | None, silent: bool) -> None:
        self._engine = engine
        self._settings = settings
        self._silent = silent
        self._is_terminal = sys.stdin.isatty() and not silent
        self._begin(system)

    def _begin(self, system: str | None) -> None:
        self._system = system or None
        self.messages: list[dict[str, str]] = [] if not system else [{"role": "system", "content": system}]

    def talk(self) -> int:
        """Answers lines until the input ends; returns how many messages could not be answered."""
        failed = 0
        if self._is_terminal:
            print("/help lists the commands, /exit leaves.", file=sys.stderr)
        while (line := self._next_line()) is not None:
            command, _, rest = line.partition(" ")
            if command == "/exit":
                break
            if line.startswith(_QUOTES):
                text = self._quoted(line)
                failed += bool(text) and not self._answer(text)
            elif line.startswith("/") and not line.startswith("//"):
                self._obey(command, rest.strip())
            elif line:
                failed += not self._answer(line.removeprefix("/") if line.startswith("//") else line)
        return failed

    def _next_line(self) -> str | None:
        line = self._read("> ")
        return None if line is None else line.strip()

    def _read(self, sign: str) -> str | None:
        if self._is_terminal:
            print(sign, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None

    def _quoted(self, line: str) -> str:
        """A message of several lines, up to the quotes that end it or to the end of the input."""
        text = line.removeprefix(_QUOTES)
        while not text.rstrip().endswith(_QUOTES) and (more := self._read("... ")) is not None:
            text += f"\n{more}"
        return text.rstrip().removesuffix(_QUOTES).strip()

    def _obey(self, command: str, rest: str) -> None:
        if command == "/reset" and not rest:
            self._begin(self._system)
        elif command == "/system":
            self._begin(rest)
        elif command == "/help":
            print(_HELP, file=sys.stderr)
        else:
            print(f"there is no command {command!r}, or it takes no text:\n{_HELP}", file=sys.stderr)

    def _answer(self, text: str) -> bool:
        """Answers a message; one that cannot be answered leaves the conversation as it was."""
        asked = [*self.messages, {"role": "user", "content": text}]
        pieces: list[str] = []
        try:
            stream = self._engine.stream(self._engine.add(asked, **self._settings))
            try:
                for piece in stream:
                    pieces.append(piece.text)
                    self._show(piece.text)
            except KeyboardInterrupt:
                # The answer ends here, and the conversation goes on.
                if not self._is_terminal:
                    raise
            finally:
                stream.close()  # type: ignore[attr-defined] # a generator; closing it frees the row
        except InputError as error:
            print(f"qeff: error: {error}; /reset begins anew", file=sys.stderr)
            return False
        self._show("\n")
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]
        return True

    def _show(self, text: str) -> None:
        if not self._silent:
            print(text, end="", flush=True)
