"""Checks of what plugins return. A plugin is somebody else's code: nothing it returns is used or published unchecked."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qeff_framework.contracts import (
    COMPANIONS,
    Capabilities,
    Check,
    CompiledModel,
    CompileRequest,
    ExportedModel,
    ExportRequest,
    Probe,
    StateSpec,
    Status,
    TensorSpec,
)
from qeff_framework.errors import BackendBrokenError, BackendError, BackendIncompatibleError, OptionError, QEFFError
from qeff_framework.options import CompileOptions, RuntimeOptions, describe_options
from qeff_framework.plugin_metadata import is_backend_name, printable
from qeff_framework.tasks import task_names

if TYPE_CHECKING:
    from qeff_framework.plugin_api import Backend


#: A probe that takes longer is taken for one that hangs. The probes of this project limit their own processes to 50 s together.
PROBE_SECONDS = 60.0
#: Files of a compiled artifact that the framework writes, beside `COMPANIONS`.
_OF_THE_CORE = ("manifest.json", "qconfig.json")


def error_line(error: BaseException) -> str:
    """Returns the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {printable(lines[0])}" if lines else type(error).__name__


#: Set on an exception once it is known whose it is, so that what it passes on its way is not blamed as well.
_OWNED = "_qeff_owned"


#: Its value for an error that stands for an exception which nobody expected.
_CRASH = "crash"


def is_crash(error: BaseException) -> bool:
    """Whether the error stands for an exception that a plugin did not mean to raise; its cause has the traceback."""
    return getattr(error, _OWNED, None) == _CRASH


@contextmanager
def blamed(told: str | None, action: str, error_type: type[QEFFError]) -> Iterator[None]:
    """Lets every exception of a plugin name the plugin and its package.

    An error of ours keeps its type, and the plugin is put in front of its message. Anything else, ``SystemExit`` and panics of
    native code included, becomes an `error_type` with the original as its cause; where the disk was full, which is no fault of
    the plugin, an `ArtifactError` that says what to do. An interruption by the user passes.

    Args:
        told: ``"backend 'acme' (qeff-acme-backend 1.0)"``; `None` for the core's own code, whose errors stay as they are.
        action: what it was asked to do, as in ``"failed to compile"``.
        error_type: the error of this stage.
    """
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if told is None or isinstance(error, QEFFError):
            name_plugin(error, told)
            raise
        if hasattr(error, _OWNED):
            raise
        if (full := _disk_full(error, f"{told} {action}")) is not None:
            setattr(full, _OWNED, True)
            raise full from error
        wrapped = error_type(f"{told} {action}: {error_line(error)}")
        setattr(wrapped, _OWNED, _CRASH)
        raise wrapped from error


def _disk_full(error: BaseException, asked: str) -> QEFFError | None:
    if not isinstance(error, OSError):
        return None
    from qeff_framework.artifacts.disk import explained, is_disk_full

    return explained(error, asked) if is_disk_full(error) else None


def name_plugin(error: BaseException, told: str | None) -> None:
    """Puts `told` in front of an error's message, unless it is known already whose error it is."""
    if hasattr(error, _OWNED):
        return
    setattr(error, _OWNED, True)
    if told is None:
        return
    name, message = told.partition(" (")[0], str(error)
    # "backend 'acme' cannot compile: ..." gets the package; what does not begin with the name gets both.
    error.args = (told + message.removeprefix(name) if message.startswith(name) else f"{told}: {message}",)


def check_descriptor(descriptor: Backend, origin: str) -> None:
    """Raises `BackendIncompatibleError` if a field of a descriptor has a wrong type."""
    expected: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("name", lambda value: isinstance(value, str) and is_backend_name(value), "a name of letters, digits, - and _"),
        ("api", lambda value: isinstance(value, str), "text"),
        ("summary", lambda value: isinstance(value, str), "text"),
        (
            "options",
            _is_schema(CompileOptions),
            "a dataclass derived from CompileOptions with annotations that can be resolved",
        ),
        (
            "runtime_options",
            _is_schema(RuntimeOptions),
            "a dataclass derived from RuntimeOptions with annotations that can be resolved",
        ),
        ("implementation", lambda value: isinstance(value, str) and ":" in value, "text like 'package.module:Class'"),
        (
            "execute_implementation",
            lambda value: isinstance(value, str) and (value == "" or ":" in value),
            "text like 'package.module:Class'",
        ),
    )
    wrong = [
        f"{name} is {printable(repr(getattr(descriptor, name, None)), longest=60)}, not {what}"
        for name, is_right, what in expected
        if not is_right(getattr(descriptor, name, None))
    ]
    wrong += _wrong_capabilities(getattr(descriptor, "capabilities", None), "capabilities")
    if wrong:
        raise BackendIncompatibleError(
            f"the backend descriptor ({origin}) is wrong: {'; '.join(wrong)}; see qeff_framework.plugin_api.Backend"
        )


def checked_probe(descriptor: Backend, told: str) -> Probe:
    """Returns the answer of ``probe()``, its texts on one printable line each.

    Raises:
        BackendBrokenError: it raised an exception, did not answer within `PROBE_SECONDS`, or returned something else than a
            `Probe` with fields of the right types.
    """
    with blamed(told, "failed in probe()", BackendBrokenError):
        probe: object = _within(PROBE_SECONDS, descriptor.probe)
    if not isinstance(probe, Probe):
        raise BackendBrokenError(f"{told} returned {_shown(probe)} from probe(), not a Probe")
    flags = dict.fromkeys(("can_compile", "can_execute", "hardware"), "True or False")
    kinds = {bool: flags, int: {"rank": "a whole number"}, str: {"other_options": "text"}}
    wrong = [
        f"{name} is {_shown(getattr(probe, name))}, not {told_kind}"
        for kind, names in kinds.items()
        for name, told_kind in names.items()
        if not isinstance(getattr(probe, name), kind)
    ]
    if not _all_of(Check, probe.checks):
        wrong.append(f"checks is {_shown(probe.checks)}, not a tuple of Check")
    if wrong:
        raise BackendBrokenError(f"{told} returned a wrong Probe from probe(): {'; '.join(wrong)}")
    for check in probe.checks:
        texts = (check.name, check.detail, check.remedy)
        if not isinstance(check.status, Status) or not all(isinstance(text, str) for text in texts):
            raise BackendBrokenError(
                f"{told} returned a Check with fields of wrong types from probe(): {_shown(check)}"
            )
    return dataclasses.replace(
        probe,
        checks=tuple(
            Check(
                name=printable(check.name), status=check.status, detail=_text(check.detail), remedy=_text(check.remedy)
            )
            for check in probe.checks
        ),
        other_options=_text(probe.other_options),
    )


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """What `function` returns. Raises `TimeoutError` after `seconds`; the function then goes on in a thread that ends with the
    process.
    """
    results: list[Any] = []
    failures: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=call, daemon=True, name="qeff probe")
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]


def _text(text: str) -> str:
    return printable(text, longest=2000)


def checked_capabilities(descriptor: Backend, options: CompileOptions, told: str) -> Capabilities:
    """Returns the answer of ``capabilities_for()``. Raises `BackendBrokenError` for anything else than `Capabilities`."""
    with blamed(told, "failed in capabilities_for()", BackendBrokenError):
        answer: object = descriptor.capabilities_for(options)
    if wrong := _wrong_capabilities(answer, "the answer"):
        raise BackendBrokenError(f"{told} returned wrong Capabilities from capabilities_for(): {'; '.join(wrong)}")
    return cast("Capabilities", answer)


def check_compiler(descriptor: Backend, options: CompileOptions, told: str) -> None:
    """Raises `BackendUnavailableError` where the backend cannot compile with these options on this machine."""
    with blamed(told, "failed in check_compiler()", BackendBrokenError):
        descriptor.check_compiler(options)


def check_weights(descriptor: Backend, options: CompileOptions, numbers: int, told: str) -> None:
    """Raises `CompileError` where no program with so many numbers in its weights can be made with these options."""
    with blamed(told, "failed in check_weights()", BackendBrokenError):
        descriptor.check_weights(options, numbers)


def check_runtime(descriptor: Backend, runtime: RuntimeOptions, compiled_with: Mapping[str, Any], told: str) -> None:
    """Raises `OptionError` for runtime options that the backend refuses for a program of these compile options."""
    with blamed(told, "failed in check_runtime()", BackendBrokenError):
        try:
            descriptor.check_runtime(runtime, compiled_with)
        except ValueError as error:
            raise OptionError(str(error)) from error


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
    """Raises `BackendError` if an export does not answer its request, or names what is not in its graph."""
    problems = []
    if exported.task != request.task:
        problems.append(f"its task is '{exported.task}', asked for was '{request.task}'")
    if not _same_place(exported.directory, request.output_dir):
        problems.append("its directory is not the output_dir of the request")
    elif not is_inside(exported.model_file, request.output_dir) or not exported.model_path.is_file():
        problems.append(f"it names the model file {exported.model_file!r}, which was not written into output_dir")
    else:
        problems += _graph_problems(exported)
    there = {item.name for item in exported.inputs}
    lacking = [name for name in request.extra_inputs if name not in there]
    if lacking:
        problems.append(f"it lacks the inputs {_listed(lacking)} of the request")
    returned = {item.name for item in exported.outputs}
    lacking = [name for name in request.extra_outputs if name not in returned]
    if lacking:
        problems.append(f"it lacks the outputs {_listed(lacking)} of the request")
    problems += _state_problems(exported.states, exported.inputs, exported.outputs)
    problems += _json_problems(exported, ("metadata",))
    _refuse(problems, f"{told} returned an export that does not fit its request")


def _graph_problems(exported: ExportedModel) -> list[str]:
    """Inputs and outputs that the file lacks, and weights that lie outside of the directory."""
    import onnx

    try:
        model = onnx.load(exported.model_path, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - whatever a file that is no ONNX model leads to
        return [f"{exported.model_file} is not an ONNX model: {error_line(error)}"]
    problems = []
    for what, specs, values in (
        ("input", exported.inputs, model.graph.input),
        ("output", exported.outputs, model.graph.output),
    ):
        names = {value.name for value in values}
        missing = [spec.name for spec in specs if spec.name not in names]
        if missing:
            problems.append(f"its graph has no {what} {_listed(missing)}")
    stored = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    problems += [
        f"its weights lie in {name!r}, which is not a file of its directory"
        for name in sorted(stored)
        if not is_inside(name, exported.directory) or not (exported.directory / name).is_file()
    ]
    return problems


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
    if tuple(compiled.specializations)[: len(request.specializations)] != tuple(request.specializations):
        missing = [item.name for item in request.specializations if item not in compiled.specializations]
        problems.append(
            f"its specializations are not those of the request (missing or changed: {', '.join(missing) or 'none'}, "
            f"{len(compiled.specializations)} for {len(request.specializations)})"
        )
    problems += _interface_problems(exported, compiled)
    problems += _state_problems(compiled.states, compiled.inputs, compiled.outputs)
    problems += _json_problems(compiled, ("program", "qconfig", "metadata"))
    problems += _file_problems(compiled, request.output_dir)
    _refuse(problems, f"{told} returned a program that does not fit its request")


def _json_problems(result: ExportedModel | CompiledModel, fields: Iterable[str]) -> list[str]:
    problems = []
    for field in fields:
        value = getattr(result, field)
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            problems.append(f"its {field} is not JSON: {error}")
            continue
        # Keys of other types are written as texts, so that a program from the store would not be the one that was compiled.
        if _keys(json.loads(text)) != _keys(value):
            problems.append(f"its {field} has keys that are no texts, which JSON does not keep")
    return problems


def _keys(value: object) -> list[object]:
    """The keys of all mappings in a value, in order."""
    if isinstance(value, Mapping):
        return [each for key, item in value.items() for each in (key, *_keys(item))]
    return [each for item in value for each in _keys(item)] if isinstance(value, list | tuple) else []


def _file_problems(compiled: CompiledModel, directory: Path) -> list[str]:
    """What would be wrong with the files once the directory is published under another name."""
    problems = []
    if not any(directory.iterdir()):
        problems.append("it wrote no file into output_dir: nothing would be there to load")
    taken = [name for name in (*COMPANIONS, CompiledModel.FILE, *_OF_THE_CORE) if os.path.lexists(directory / name)]
    if taken:
        problems.append(f"it wrote {_listed(taken)}, which the framework writes itself")
    named = [text for text in texts_in(compiled.program) if str(directory) in text]
    if named:
        problems.append(
            f"its program names {_shown(named[0])}: the directory is published under another name, so name files relative to it"
        )
    if compiled.dry_run_result and not is_inside(compiled.dry_run_result, directory):
        problems.append(f"its dry_run_result {compiled.dry_run_result!r} is not a path inside of its directory")
    return problems


def is_inside(name: str, directory: Path) -> bool:
    """Whether a relative name stays inside of `directory`, links followed."""
    if not name or "\0" in name or Path(name).is_absolute():
        return False
    return (directory / name).resolve().is_relative_to(directory.resolve())


def texts_in(value: object) -> Iterator[str]:
    """Every text of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_in(item)


def _state_problems(
    states: Iterable[StateSpec], inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
) -> list[str]:
    taken, given = {item.name for item in inputs}, {item.name for item in outputs}
    return [
        f"the state '{state.input}' is not an input and an output of it"
        for state in states
        if state.input not in taken or state.output not in given
    ]


def _exported_kind(state: StateSpec) -> str:
    """A compiler may keep the last tokens of an attention cache alone."""
    return "kv" if state.kind == "window" else state.kind


def _interface_problems(exported: ExportedModel, compiled: CompiledModel) -> list[str]:
    """What the program lacks of the export's interface.

    The generation loop feeds and reads by name what is not a state, so names, dtypes and shapes of these tensors are those of the
    export. States stay with the session: a compiler may rename them (QNN has no dots in names), but each is there, in order.
    """
    problems = []
    kinds, found = [state.kind for state in exported.states], [_exported_kind(state) for state in compiled.states]
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
    def is_right(value: Any) -> bool:
        if not (isinstance(value, type) and issubclass(value, base) and dataclasses.is_dataclass(value)):
            return False
        try:
            describe_options(value)
        except Exception:  # noqa: BLE001 - annotations that cannot be resolved, defaults that raise
            return False
        return True

    return is_right


def _wrong_capabilities(value: object, what: str) -> list[str]:
    """What is wrong with `value`, whose name is `what`; empty where nothing is."""
    if not isinstance(value, Capabilities):
        return [f"{what} is {_shown(value)}, not an instance of Capabilities"]
    # What somebody else's code has put there may be of any type.
    fields: dict[str, Any] = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    tasks, scope = fields.pop("tasks"), fields.pop("scope")
    wrong = [
        f"{what}.{name} is {_shown(flag)}, not True or False"
        for name, flag in fields.items()
        if not isinstance(flag, bool)
    ]
    if not isinstance(scope, str):
        wrong.append(f"{what}.scope is {_shown(scope)}, not text")
    if not isinstance(tasks, (set, frozenset)) or not all(isinstance(task, str) for task in tasks):
        return [*wrong, f"{what}.tasks is {_shown(tasks)}, not a set of names of tasks"]
    meant = {task: _misspelled_task(task) for task in sorted(tasks)}
    return [*wrong, *(f"{what}.tasks has {task!r}, which is spelled {name!r}" for task, name in meant.items() if name)]


def _misspelled_task(name: str) -> str:
    """The task that `name` is but for case and separators; "" for others, which may be tasks of a newer core."""
    meant = name.lower().replace("_", "-").replace(" ", "-")
    return meant if name not in task_names() and meant in task_names() else ""


def _same_place(one: object, other: Path) -> bool:
    return isinstance(one, Path) and one.absolute() == other.absolute()


def _all_of(kind: type, values: object) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, kind) for value in values)


def _shown(value: object) -> str:
    return printable(repr(value), longest=100)
