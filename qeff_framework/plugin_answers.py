"""Checks of what plugins return. A plugin is somebody else's code: nothing it returns is used or published unchecked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import (
    Capabilities,
    Check,
    CompiledModel,
    CompileRequest,
    ExportedModel,
    ExportRequest,
    Probe,
    StateSpec,
    TensorSpec,
)
from qeff_framework.errors import BackendBrokenError, BackendError, BackendIncompatibleError, QEFFError
from qeff_framework.options import CompileOptions, RuntimeOptions
from qeff_framework.plugin_metadata import printable

if TYPE_CHECKING:
    from qeff_framework.plugin_api import Backend


def error_line(error: BaseException) -> str:
    """Returns the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {printable(lines[0])}" if lines else type(error).__name__


@contextmanager
def blamed(told: str, action: str, error_type: type[QEFFError]) -> Iterator[None]:
    """Lets every exception of a plugin name the plugin.

    An error of ours keeps its type, and the plugin is put in front of its message unless the message names it. Anything else
    becomes an `error_type` with the original as its cause. An interruption by the user passes.

    Args:
        told: ``"backend 'acme' (qeff-acme-backend 1.0)"``.
        action: what it was asked to do, as in ``"failed to compile"``.
        error_type: the error of this stage.
    """
    try:
        yield
    except QEFFError as error:
        if told.partition(" (")[0] not in str(error):
            error.args = (f"{told}: {error}",)
        raise
    except (Exception, SystemExit) as error:
        raise error_type(f"{told} {action}: {error_line(error)}") from error


def check_descriptor(descriptor: Backend, origin: str) -> None:
    """Raises `BackendIncompatibleError` if a field of a descriptor has a wrong type."""
    expected: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("name", lambda value: isinstance(value, str) and bool(value.strip()), "a name"),
        ("api", lambda value: isinstance(value, str), "text"),
        ("summary", lambda value: isinstance(value, str), "text"),
        ("options", _is_schema(CompileOptions), "a dataclass derived from CompileOptions"),
        ("runtime_options", _is_schema(RuntimeOptions), "a dataclass derived from RuntimeOptions"),
        ("capabilities", lambda value: isinstance(value, Capabilities), "an instance of Capabilities"),
        ("implementation", lambda value: isinstance(value, str) and ":" in value, "text like 'package.module:Class'"),
    )
    wrong = [
        f"{name} is {printable(repr(getattr(descriptor, name, None)), longest=60)}, not {what}"
        for name, is_right, what in expected
        if not is_right(getattr(descriptor, name, None))
    ]
    if wrong:
        raise BackendIncompatibleError(
            f"the backend descriptor of {origin} is wrong: {'; '.join(wrong)}; see qeff_framework.plugin_api.Backend"
        )


def checked_probe(descriptor: Backend, told: str) -> Probe:
    """Returns the answer of ``probe()``.

    Raises:
        BackendBrokenError: it raised an exception or returned something else than a `Probe` with fields of the right types.
    """
    with blamed(told, "failed in probe()", BackendBrokenError):
        probe: object = descriptor.probe()
    if not isinstance(probe, Probe):
        raise BackendBrokenError(f"{told} returned {_shown(probe)} from probe(), not a Probe")
    flags = (probe.can_compile, probe.can_execute, probe.hardware)
    fields_fit = all(isinstance(flag, bool) for flag in flags) and isinstance(probe.rank, int)
    if not fields_fit or not isinstance(probe.other_options, str) or not _all_of(Check, probe.checks):
        raise BackendBrokenError(f"{told} returned a Probe with fields of wrong types from probe(): {_shown(probe)}")
    return probe


def checked_fingerprint(descriptor: Backend, told: str) -> dict[str, str]:
    """Returns the answer of ``fingerprint()``.

    Raises:
        BackendBrokenError: it raised an exception or returned something else than a mapping of names to texts.
    """
    with blamed(told, "failed in fingerprint()", BackendBrokenError):
        answer: object = descriptor.fingerprint()
        content = dict(answer) if isinstance(answer, Mapping) else None
    if content is None or not all(isinstance(part, str) for pair in content.items() for part in pair):
        raise BackendBrokenError(
            f"{told} returned {_shown(answer)} from fingerprint(), not a mapping of names to texts"
        )
    return content


def check_exported(exported: ExportedModel, request: ExportRequest, told: str) -> None:
    """Raises `BackendError` if an export does not answer its request, or names what is not there."""
    problems = []
    if exported.task != request.task:
        problems.append(f"its task is '{exported.task}', asked for was '{request.task}'")
    if not _same_place(exported.directory, request.output_dir):
        problems.append("its directory is not the output_dir of the request")
    elif not (request.output_dir / exported.model_file).is_file():
        problems.append(f"it names the model file {exported.model_file!r}, which was not written")
    problems += _state_problems(exported.states, exported.inputs, exported.outputs)
    _refuse(problems, f"{told} returned an export that does not fit its request")


def check_compiled(compiled: CompiledModel, request: CompileRequest, name: str, told: str) -> None:
    """Raises `BackendError` if a program does not answer its request: it would be published, and found again later."""
    exported = request.exported
    problems = []
    if compiled.backend != name:
        problems.append(f"it is for backend '{compiled.backend}'")
    if compiled.task != exported.task:
        problems.append(f"its task is '{compiled.task}', asked for was '{exported.task}'")
    if not _same_place(compiled.directory, request.output_dir):
        problems.append("its directory is not the output_dir of the request")
    if tuple(compiled.specializations) != tuple(request.specializations):
        missing = [item.name for item in request.specializations if item not in compiled.specializations]
        problems.append(
            f"its specializations are not those of the request (missing or changed: {', '.join(missing) or 'none'}, "
            f"{len(compiled.specializations)} for {len(request.specializations)})"
        )
    problems += _interface_problems(exported, compiled)
    problems += _state_problems(compiled.states, compiled.inputs, compiled.outputs)
    for field in ("program", "qpc_config", "metadata"):
        try:
            json.dumps(getattr(compiled, field))
        except (TypeError, ValueError) as error:
            problems.append(f"its {field} is not JSON: {error}")
    _refuse(problems, f"{told} returned a program that does not fit its request")


def _state_problems(
    states: Iterable[StateSpec], inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
) -> list[str]:
    taken, given = {item.name for item in inputs}, {item.name for item in outputs}
    return [
        f"the state '{state.input}' is not an input and an output of it"
        for state in states
        if state.input not in taken or state.output not in given
    ]


def _interface_problems(exported: ExportedModel, compiled: CompiledModel) -> list[str]:
    """What the program lacks of the export's interface.

    The generation loop feeds and reads by name what is not a state, so names, dtypes and shapes of these tensors are those of the
    export. States stay with the session: a compiler may rename them (QNN has no dots in names), but each is there, in order.
    """
    problems = []
    kinds, found = [state.kind for state in exported.states], [state.kind for state in compiled.states]
    if kinds != found:
        there = {state.input for state in compiled.states}
        lacking = [state.input for state in exported.states if state.input not in there]
        problems.append(
            f"its {len(found)} states are not the {len(kinds)} of the export ({_listed(lacking)} are not there)"
        )
    for what, asked, offered in (
        ("input", _without_states(exported.inputs, exported), _without_states(compiled.inputs, compiled)),
        ("output", _without_states(exported.outputs, exported), _without_states(compiled.outputs, compiled)),
    ):
        missing = [name for name in asked if name not in offered]
        if missing:
            problems.append(f"it lacks the {what}s {_listed(missing)}")
        problems += [
            f"its {what} '{name}' is {_form(offered[name])}, in the export it is {_form(spec)}"
            for name, spec in asked.items()
            if name in offered and offered[name] != spec
        ]
    unknown = set(_without_states(compiled.inputs, compiled)) - set(_without_states(exported.inputs, exported))
    if unknown:
        problems.append(f"it has inputs that the export has not: {_listed(sorted(unknown))}")
    return problems


def _without_states(specs: Iterable[TensorSpec], model: ExportedModel | CompiledModel) -> dict[str, TensorSpec]:
    retained = {name for state in model.states for name in (state.input, state.output)}
    return {spec.name: spec for spec in specs if spec.name not in retained}


def _form(spec: TensorSpec) -> str:
    return f"{spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{' and others' if len(names) > 5 else ''}"


def _refuse(problems: list[str], message: str) -> None:
    if problems:
        raise BackendError(f"{message}: {'; '.join(problems)}; nothing is published, and its author has to correct it")


def _is_schema(base: type[Any]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, type) and issubclass(value, base) and dataclasses.is_dataclass(value)


def _same_place(one: object, other: Path) -> bool:
    return isinstance(one, Path) and one.absolute() == other.absolute()


def _all_of(kind: type, values: object) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, kind) for value in values)


def _shown(value: object) -> str:
    return printable(repr(value), longest=100)
