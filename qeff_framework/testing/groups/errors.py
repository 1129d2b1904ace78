"""Types and texts of errors."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.contracts import CompiledModel
from qeff_framework.errors import ArtifactError, BackendUnavailableError, ExecutionError, InputError, QEFFError
from qeff_framework.plugin_answers import is_crash
from qeff_framework.testing.checks import BrokenPromiseError, NotClaimedError, UnavailableError, check, require
from qeff_framework.testing.children import call_in_child
from qeff_framework.testing.groups.compile import digests, need_causal_lm, refused_compilation
from qeff_framework.testing.groups.execute import attention_layer, with_cache
from qeff_framework.testing.layers import STEPS, feeds

if TYPE_CHECKING:
    from qeff_framework.testing.subject import Subject

#: Longest message: a screen of text. What a compiler prints belongs into its log.
_LONGEST: Final = 2000
#: Shortest one that can say what is missing and what to do.
_SHORTEST: Final = 30


def _readable(error: Exception, what: str) -> None:
    text = str(error)
    require(text.strip(), f"{what}: {type(error).__name__} has no message")
    require(
        len(text) <= _LONGEST, f"{what}: the message has {len(text)} characters; keep the output of tools in a log file"
    )
    require("Traceback (most recent call last)" not in text, f"{what}: the message contains a traceback")
    require(not is_crash(error), f"{what}: an exception that nobody meant to raise came through: {text}")


@check("errors")
def check_refused_graph(subject: Subject) -> None:
    """A graph that the compiler refuses ends in an error that names the reason, in the compiler's own words."""
    need_causal_lm(subject)
    error = refused_compilation(subject, subject.folder("home"))
    _readable(error, "an op that does not exist")
    require("QeffNoSuchOp" in str(error), f"the message does not name the op that was refused: {error}")


@check("errors")
def check_unavailable(subject: Subject) -> None:
    """What is not here is named by `BackendUnavailableError`, with what to do."""
    need_causal_lm(subject)
    try:
        session = subject.open(subject.compiled(attention_layer().program))
    except UnavailableError as error:
        cause = error.__cause__
        if not isinstance(cause, BackendUnavailableError):
            raise
        _readable(cause, "without the SDK or the device")
        reason = str(error).partition("): ")[2] or str(error)
        require(len(reason) > _SHORTEST, f"the message says too little to act on: {error}")
        return
    session.close()
    raise NotClaimedError("everything that it needs is here")


@check("errors")
def check_refused_step_names_the_sizes(subject: Subject) -> None:
    """The refusal of a step names the shapes that were given, and those that are compiled."""
    session = with_cache(subject)
    try:
        session.run(feeds([[4, 5], [2, 3]]))
    except InputError as error:
        _readable(error, "a step of a length that was not compiled")
        for shape in ("[2, 2]", "[2, 4]"):
            require(
                shape in str(error).replace("(", "[").replace(")", "]"), f"the message does not name {shape}: {error}"
            )
    else:
        raise BrokenPromiseError("a step of a length that was not compiled was run")


@check("errors")
def check_missing_file(subject: Subject) -> None:
    """A program whose files are gone is refused when it is loaded, with `ExecutionError` or `ArtifactError`."""
    need_causal_lm(subject)
    compiled = subject.compiled(attention_layer().program)
    subject.session(attention_layer().program)  # it can be loaded while the files are there
    place = subject.folder("gone") / "program"
    shutil.copytree(compiled.directory, place)
    for name in digests(place):
        (place / name).unlink()
    try:
        session = subject.open(CompiledModel.load(place))
        session.run(feeds(STEPS[0]))
    except (ExecutionError, ArtifactError) as error:
        _readable(error, "a program without its files")
        return
    except Exception as error:
        raise BrokenPromiseError(f"a program without its files raises {type(error).__name__}: {error}") from error
    raise BrokenPromiseError("a program whose files are gone was run: what has run is not what was asked for")


@check("errors")
def check_damaged_file(subject: Subject) -> None:
    """A program whose files are damaged is refused when it is loaded, and does not take the process down."""
    need_causal_lm(subject)
    compiled = subject.compiled(attention_layer().program)
    subject.session(attention_layer().program)
    place = subject.folder("damaged") / "program"
    shutil.copytree(compiled.directory, place)
    for name in digests(place):
        (place / name).write_bytes(b"this is not what was published")
    found = call_in_child(
        "qeff_framework.testing.groups.errors:load_damaged",
        type(subject.backend).__module__,
        type(subject.backend).__qualname__,
        str(place),
        dict(subject.settings.runtime_options),
        what="loading a damaged program",
    )
    require(found["error"], "a program whose files are damaged was loaded")
    require(
        found["expected"] and not found["crash"],
        f"loading a damaged program raises {found['error']}: {found['message']}",
    )


def load_damaged(module: str, name: str, directory: str, options: dict[str, Any]) -> dict[str, Any]:
    """Loads the program at `directory` in this process, and says what is raised."""
    import importlib
    from pathlib import Path

    from qeff_framework.contracts import ExecuteRequest
    from qeff_framework.registry import registry

    relay = registry.get(getattr(importlib.import_module(module), name), extensions=())
    runtime = relay.backend.runtime_options(**options)
    try:
        relay.execute(ExecuteRequest(compiled=CompiledModel.load(Path(directory)), options=runtime))
    except QEFFError as error:
        expected = isinstance(error, (ExecutionError, ArtifactError))
        return {"error": type(error).__name__, "message": str(error), "expected": expected, "crash": is_crash(error)}
    return {"error": ""}
