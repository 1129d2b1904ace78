"""What the descriptor says, and its options."""

from __future__ import annotations

import dataclasses
import itertools
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from qeff_framework.contracts import Capabilities, Probe, Status
from qeff_framework.errors import OptionError, QEFFError
from qeff_framework.options import MicroscalingOptions, default_of, parse_options
from qeff_framework.plugin_api import Backend
from qeff_framework.plugin_metadata import is_backend_name
from qeff_framework.tasks import task_names
from qeff_framework.testing.checks import BrokenPromiseError, UnavailableError, check, require

if TYPE_CHECKING:
    from qeff_framework.testing.subject import Subject

#: Parameters of `compile` and `load_compiled`: an option of such a name could never be given.
_TAKEN: Final = {
    "options": ("backend", "compile_dir", "dry_run", "extensions"),
    "runtime_options": ("backend", "extensions", "path", "verify"),
}
#: Most characters of a summary: what a line of `qeff backends` holds.
_SUMMARY = 120


@check("descriptor")
def check_name(subject: Subject) -> None:
    """The name is made of letters, digits, ``-`` and ``_``, and is not one of auto, all, none."""
    name = subject.backend.name
    require(is_backend_name(name), f"name is {name!r}: use letters, digits, - and _")
    require(name.lower() not in ("auto", "all", "none", "core"), f"the name {name!r} is reserved, choose another one")


@check("descriptor")
def check_summary(subject: Subject) -> None:
    """The summary tells in one line what the backend runs on."""
    summary = subject.backend.summary
    require(isinstance(summary, str) and summary.strip(), "summary is empty: `qeff backends` shows it")
    require(len(summary.splitlines()) == 1, f"summary has {len(summary.splitlines())} lines, it must have one")
    require(len(summary) <= _SUMMARY, f"summary has {len(summary)} characters, a line holds {_SUMMARY}")


@check("descriptor")
def check_capabilities(subject: Subject) -> None:
    """The capabilities name tasks of the framework, and at least one."""
    tasks = subject.backend.capabilities.tasks
    known = task_names()
    wrong = sorted(set(tasks) - set(known))
    require(
        not wrong, f"capabilities name the task {wrong[:1]}, which does not exist; the tasks are {', '.join(known)}"
    )
    require(tasks, "capabilities name no task: no model could be compiled")


@check("descriptor")
def check_capabilities_for_options(subject: Subject) -> None:
    """`capabilities_for` claims with no options more than the descriptor's capabilities."""
    overall = subject.backend.capabilities
    for changes in _single_changes(subject.backend.options):
        try:
            options = subject.options(**changes)
        except Exception:  # noqa: BLE001, S112 -- `check_values_are_checked` reports it
            continue
        claimed = subject.relay.capabilities_for(options)
        more = [*sorted(set(claimed.tasks) - set(overall.tasks)), *_flags_beyond(claimed, overall)]
        require(not more, f"capabilities_for({changes}) claims {', '.join(more)}, which `capabilities` denies")


def _flags_beyond(claimed: Capabilities, overall: Capabilities) -> Iterator[str]:
    for each in dataclasses.fields(Capabilities):
        if getattr(claimed, each.name) is True and getattr(overall, each.name) is False:
            yield each.name


# --- options ----------------------------------------------------------------------------------------------------------


def _schemas(backend: Backend) -> Iterator[tuple[str, type]]:
    yield "options", backend.options
    yield "runtime_options", backend.runtime_options


@check("descriptor")
def check_options_are_documented(subject: Subject) -> None:
    """Every option says what it does."""
    for told, schema in _schemas(subject.backend):
        for each in dataclasses.fields(schema):
            text = each.metadata.get("help")
            require(isinstance(text, str) and text.strip(), f"{told}: '{each.name}' has no help text; use option(...)")


@check("descriptor")
def check_options_are_frozen(subject: Subject) -> None:
    """Options are frozen, keyword-only dataclasses, and their defaults are values of theirs."""
    for told, schema in _schemas(subject.backend):
        parameters = schema.__dataclass_params__  # type: ignore[attr-defined]
        require(parameters.frozen, f"{told} is not frozen: an option that changes later is in no cache key")
        loose = [each.name for each in dataclasses.fields(schema) if not each.kw_only]
        require(not loose, f"{told}: {', '.join(loose)} must be keyword-only")
        without = [each.name for each in dataclasses.fields(schema) if _has_no_default(each)]
        require(
            not without, f"{told}: {', '.join(without)} has no default: automatic choice could never use the backend"
        )
        values = {each.name: default_of(each) for each in dataclasses.fields(schema)}
        try:
            parse_options(schema, values, owner=told)
        except OptionError as error:
            raise BrokenPromiseError(f"the defaults of {told} are refused: {error}") from error


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@check("descriptor")
def check_option_types(subject: Subject) -> None:
    """Every option can be written on a command line: its value, as text, is read back as the same value."""
    for told, schema in _schemas(subject.backend):
        hints = typing.get_type_hints(schema)
        for each in dataclasses.fields(schema):
            require(
                _is_writable(hints[each.name]),
                f"{told}: '{each.name}' is {hints[each.name]}; -O and -R read bool, int, float, str, Path, and tuples of them",
            )
            for value in [default_of(each), *(each.metadata.get("choices") or ())]:
                _check_round_trip(told, schema, each.name, value)


def _is_writable(hint: Any) -> bool:
    if hint in (bool, int, float, str, Path, type(None)):
        return True
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return len(parts) == 2 and parts[1] is Ellipsis and _is_writable(parts[0])
    if origin is Literal:
        return all(isinstance(part, (str, int, float)) for part in parts)
    return origin in (types.UnionType, typing.Union) and all(_is_writable(part) for part in parts)


def _check_round_trip(told: str, schema: type, name: str, value: object) -> None:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    try:
        read = getattr(parse_options(schema, {name: text}, owner=told, from_text=True), name)
    except OptionError as error:
        # A choice may need other options beside it; that it cannot be read at all is another thing.
        if f"option '{name}'" in str(error):
            raise BrokenPromiseError(f"{told}: {name}={text!r} is refused as text: {error}") from error
        return
    except Exception:  # noqa: BLE001 -- `check_values_are_checked` reports it
        return
    require(read == value, f"{told}: {name}={text!r} is read as {read!r}, not as {value!r}")


@check("descriptor")
def check_common_options(subject: Subject) -> None:
    """The options that every backend takes keep their types, and their defaults ask for nothing special."""
    hints, common = typing.get_type_hints(subject.backend.options), typing.get_type_hints(MicroscalingOptions)
    for each in dataclasses.fields(MicroscalingOptions):
        if each.name in hints:
            require(hints[each.name] == common[each.name], f"option '{each.name}' has the type {hints[each.name]}")
    found = subject.backend.options()
    # Those of the Microscaling formats are there only where the backend has such formats.
    own = {each.name for each in dataclasses.fields(found)}
    for name, wanted in {"num_devices": 1, "mxfp6_matmul": False, "mxint8_kv_cache": False}.items():
        given = getattr(found, name) if name in own else wanted
        require(given == wanted, f"the default of '{name}' is {given!r}, not {wanted!r}")


@check("descriptor")
def check_options_fit_capabilities(subject: Subject) -> None:
    """What is claimed can be asked for: MXFP6 and MXINT8 are options of a backend that claims them."""
    names = {each.name for each in dataclasses.fields(subject.backend.options)}
    for name in ("mxfp6_matmul", "mxint8_kv_cache"):
        claimed = getattr(subject.backend.capabilities, name)
        require(
            not claimed or name in names,
            f"{name} is claimed, but is no option: derive the options from MicroscalingOptions",
        )


@check("descriptor")
def check_options_do_not_hide(subject: Subject) -> None:
    """No option has the name of a task's size or of a parameter of `compile`, which would be taken instead of it."""
    from qeff_framework.shapes import CausalLMShapes, EncoderShapes, Seq2SeqLMShapes

    sizes = {
        each.name for shapes in (CausalLMShapes, EncoderShapes, Seq2SeqLMShapes) for each in dataclasses.fields(shapes)
    }
    for told, schema in _schemas(subject.backend):
        hidden = [each.name for each in dataclasses.fields(schema) if each.name in {*sizes, *_TAKEN[told]}]
        require(not hidden, f"{told}: '{', '.join(hidden)}' is the framework's own; choose another name")


@check("descriptor", cases=("options", "runtime_options"))
def check_values_are_checked(subject: Subject, which: str) -> None:
    """A value is taken or refused with `OptionError` (`ValueError` in ``__post_init__``); nothing else is raised."""
    schema = dict(_schemas(subject.backend))[which]
    for changes in _single_changes(schema):
        try:
            parse_options(schema, changes, owner=which)
        except OptionError as error:
            require(str(error).strip(), f"{which}: {changes} is refused without a reason")
        except Exception as error:
            raise BrokenPromiseError(
                f"{which}: {changes} raises {type(error).__name__}: {error}; raise ValueError for what does not go together"
            ) from error


@check("descriptor", cases=("unknown", "misspelt", "other stage"))
def check_wrong_compile_options(subject: Subject, case: str) -> None:
    """A wrong compile option is refused before any work: no weights are loaded and no hook is called."""
    from qeff_framework.auto import QEFFAutoModelForCausalLM

    name = {"unknown": "qeff_no_such_option", "misspelt": "num_coers", "other stage": _other_stage(subject)}[case]
    model = QEFFAutoModelForCausalLM(_NoModel())
    with subject.store(subject.folder("home")) as root:
        try:
            model.compile(backend=subject.asked, **{**subject.settings.options, name: 1})
        except OptionError as error:
            require(name in str(error), f"the refusal does not name the option '{name}': {error}")
            require(case != "misspelt" or "num_cores" in str(error), f"the refusal suggests nothing: {error}")
        except Exception as error:
            raise BrokenPromiseError(
                f"{name}=1 raised {type(error).__name__} instead of OptionError: {error}"
            ) from error
        else:
            raise BrokenPromiseError(f"{name}=1 was accepted")
        require(not root.exists() or not any(root.iterdir()), "something was written before the options were checked")


def _other_stage(subject: Subject) -> str:
    own = {each.name for each in dataclasses.fields(subject.backend.options)}
    names = [each.name for each in dataclasses.fields(subject.backend.runtime_options) if each.name not in own]
    return names[0] if names else "qeff_no_such_runtime_option"


class _NoModel:
    """Stands for a checkpoint whose weights must not be asked for."""

    name = "conformance"

    def config(self) -> Mapping[str, Any]:
        return {}

    def __getattr__(self, name: str) -> Any:
        if name == "state_dict":
            raise AttributeError(name)
        raise BrokenPromiseError(f"work was begun ({name} of the model) before the options were checked")


# --- probe and fingerprint ---------------------------------------------------------------------------------------------


@check("descriptor")
def check_probe(subject: Subject) -> None:
    """`probe` answers with a `Probe`, twice the same, and names a remedy for each thing that is not right."""
    try:
        probe: Probe = subject.probe
    except QEFFError as error:
        raise BrokenPromiseError(str(error)) from error
    for each in probe.checks:
        require(
            each.status is Status.OK or each.remedy.strip(),
            f"probe(): the check '{each.name}' is {each.status}, and names no remedy",
        )
    if not (probe.can_compile and probe.can_execute):
        reasons = [each for each in probe.checks if each.status is not Status.OK]
        require(reasons, "probe() says that something cannot be done here, and no check says why")
    again = subject.backend.probe()
    same = (again.can_compile, again.can_execute, again.hardware, again.rank)
    first = (probe.can_compile, probe.can_execute, probe.hardware, probe.rank)
    require(same == first, f"probe() says {first} and then {same}")


@check("descriptor")
def check_probe_leaves_nothing(subject: Subject) -> None:
    """`probe` changes neither environment variables nor the working directory, and leaves no file in either."""
    import os

    folder = subject.folder("probe")
    before, place = dict(os.environ), Path.cwd()
    os.chdir(folder)
    try:
        subject.backend.probe()
        inside = Path.cwd()
        left = sorted(path.name for path in folder.iterdir())
    finally:
        os.chdir(place)
    changed = sorted(name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name))
    for name in changed:
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]
    require(inside == folder, f"probe() changes the working directory to {inside}")
    require(not left, f"probe() leaves {', '.join(left)} in the working directory")
    require(not changed, f"probe() changes the environment variables {', '.join(changed)}")


@check("descriptor")
def check_fingerprint(subject: Subject) -> None:
    """`fingerprint` names versions: texts that are not empty, the same each time."""
    try:
        first, second = subject.relay.fingerprint(), subject.relay.fingerprint()
    except QEFFError as error:
        raise BrokenPromiseError(str(error)) from error
    require(first, "fingerprint() is empty: every version would find the programs of every other")
    empty = [name for name, value in first.items() if not value.strip()]
    require(not empty, f"fingerprint(): {', '.join(empty)} is empty; say 'none' for what is not there")
    require(first == second, f"fingerprint() changes from call to call: {first} and {second}")
    places = [value for value in first.values() if value.startswith(("/", "~")) or value[1:3] in (":\\", ":/")]
    require(not places, f"fingerprint() names the path {places[:1]}: the same program would have another key elsewhere")


@check("descriptor")
def check_fingerprint_names_versions(subject: Subject) -> None:
    """`fingerprint` holds the versions of the backend's package and of what that requires to compile with."""
    versions = required_versions(subject)
    values = set(subject.relay.fingerprint().values())
    missing = [
        f"{name} {version}" for name, version in versions.items() if not any(version in value for value in values)
    ]
    require(
        not missing,
        f"fingerprint() does not name {', '.join(missing)}: an upgrade would find programs of the old version",
    )


def required_versions(subject: Subject) -> dict[str, str]:
    """The backend's distribution and those of its requirements that the framework does not put into keys itself."""
    from qeff_framework.testing.distributions import distribution_of, requirements

    distribution = distribution_of(subject.backend)
    if distribution is None:
        raise UnavailableError(
            "the backend is not installed from a package, so its version and requirements are not known"
        )
    framework = {"qeff-framework", *requirements("qeff-framework")}
    own = {name: found for name, found in requirements(distribution.name).items() if name not in framework}
    return {distribution.name: distribution.version, **own}


@check("descriptor")
def check_runtime_defaults(subject: Subject) -> None:
    """`check_runtime` takes the default runtime options with a program of the default compile options."""
    compiled_with = dataclasses.asdict(subject.options())
    subject.relay.check_runtime(subject.runtime_options(), compiled_with)


# --- values to try ----------------------------------------------------------------------------------------------------


def _single_changes(schema: type) -> Iterator[dict[str, Any]]:
    """Each option with some other values of its type, one at a time."""
    hints = typing.get_type_hints(schema)
    for each in dataclasses.fields(schema):
        for value in itertools.islice(_values(hints[each.name], each), 4):
            yield {each.name: value}


def _values(hint: Any, field: dataclasses.Field[Any]) -> Iterator[Any]:
    choices: Sequence[Any] = field.metadata.get("choices") or ()
    yield from choices
    if choices:
        return
    kinds = [part for part in (typing.get_args(hint) or (hint,)) if part is not type(None)]
    if bool in kinds:
        yield from (True, False)
    if int in kinds and typing.get_origin(hint) is not tuple:
        yield from (1, 2, 3, 1000)
    if float in kinds and typing.get_origin(hint) is not tuple:
        yield from (0.5, 2.0)
    if str in kinds and typing.get_origin(hint) is not tuple:
        yield from ("", "qeff conformance")
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        yield ()
        yield {int: (1, 2), float: (0.5,), str: ("qeff",)}.get(item, ())
