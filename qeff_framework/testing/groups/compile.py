"""Programs and the files that they consist of."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.contracts import CompiledModel, Specialization
from qeff_framework.errors import CompileError, OptionError, QEFFError, UnsupportedModelError
from qeff_framework.options import default_of, describe_options
from qeff_framework.plugin_api import Backend
from qeff_framework.testing.checks import BrokenPromiseError, NotClaimedError, UnavailableError, check, require
from qeff_framework.testing.comparing import require_close
from qeff_framework.testing.groups.execute import attention_layer, output_of
from qeff_framework.testing.layers import STEPS, Layer, feeds, plain_layer, step_inputs, valid_part
from qeff_framework.testing.programs import CTX_LEN, SmallProgram, steps_of
from qeff_framework.testing.small_models import compile_publicly
from qeff_framework.testing.watching import watched

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qeff_framework.testing.layers import Arrays
    from qeff_framework.testing.subject import Subject

#: Sizes of a product: blocks of 32 weights, as formats with a scale for each block have them.
_WIDTH: Final = 32
#: Least correlation with the reference that weights of few bits must leave.
_ALIKE: Final = 0.9


@functools.cache
def products_layer() -> Layer:
    """Two products with constant weights: what formats of weights apply to."""
    import numpy as np

    random = np.random.default_rng(11)
    table = random.standard_normal((16, _WIDTH)).astype(np.float32)
    first = (random.standard_normal((_WIDTH, 2 * _WIDTH)) / 6).astype(np.float32)
    second = (random.standard_normal((2 * _WIDTH, _WIDTH)) / 8).astype(np.float32)

    def expected(inputs: Arrays, _states: Arrays) -> NDArray[Any]:
        result: NDArray[Any] = np.maximum(table[inputs["input_ids"]] @ first, 0) @ second
        return result

    return plain_layer(
        "products",
        """
        hidden = Gather (table, input_ids)
        wide = MatMul (hidden, first)
        positive = Relu (wide)
        logits = MatMul (positive, second)
        """,
        expected,
        output=f"batch_size, seq_len, {_WIDTH}",
        constants={"table": table, "first": first, "second": second},
    )


@functools.cache
def broken_program() -> SmallProgram:
    """A graph with an op that no compiler knows."""
    return SmallProgram(
        name="broken",
        graph="""
        broken (int64[batch_size, seq_len] input_ids, int64[batch_size, seq_len] position_ids)
        => (float[batch_size, seq_len] logits)
        {
            numbers = Cast <to = 1> (input_ids)
            logits = QeffNoSuchOp (numbers)
        }
        """,
    )


def need_causal_lm(subject: Subject) -> None:
    """The programs of this group are those of causal LMs."""
    subject.need("causal-lm" in subject.capabilities.tasks, "task 'causal-lm'")


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of each file of a program, without the framework's own description of it."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != CompiledModel.FILE
    }


def described(compiled: CompiledModel) -> tuple[Any, ...]:
    """What a program says of itself, without its place."""
    return dict(compiled.program), compiled.inputs, compiled.outputs, compiled.states


def different_files(one: CompiledModel, other: CompiledModel) -> list[str]:
    """Names of files that differ or are in one program only."""
    first, second = digests(one.directory), digests(other.directory)
    names = [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]
    return names if described(one) == described(other) else [*names, "what `program` says"]


# --- the same again ---------------------------------------------------------------------------------------------------


@check("compile")
def check_deterministic(subject: Subject) -> None:
    """The same graph with the same options gives the same files, wherever they are written."""
    need_causal_lm(subject)
    first, second = subject.compiled(attention_layer().program), subject.compile(attention_layer().program)
    different = different_files(first, second)
    require(not different, f"two compilations of one graph differ in {', '.join(different)}")


def comparable(subject: Subject) -> CompiledModel:
    """The program of `attention_layer`. Raises `NotClaimedError` where two compilations differ, so that files tell nothing."""
    first = subject.compiled(attention_layer().program)
    if "deterministic" not in subject.shared:
        subject.shared["deterministic"] = not different_files(first, subject.compile(attention_layer().program))
    if not subject.shared["deterministic"]:
        raise NotClaimedError(
            "its files differ from compilation to compilation, so they tell nothing (compile/deterministic)"
        )
    return first


@check("compile")
def check_found_again(subject: Subject) -> None:
    """A program that exists is found again, and not compiled a second time."""
    need_causal_lm(subject)
    home = subject.folder("home")
    first = compile_publicly(subject, attention_layer().program, home)
    written = (first.directory / CompiledModel.FILE).stat().st_ino
    second = compile_publicly(subject, attention_layer().program, home)
    same = second.directory == first.directory and (second.directory / CompiledModel.FILE).stat().st_ino == written
    require(
        same, "the second compilation did not find the program of the first: does fingerprint() or a transform change?"
    )


@check("compile")
def check_options_outside_of_the_key(subject: Subject) -> None:
    """An option with ``changes_program=False`` does not change the program, which is found again whatever its value is."""
    need_causal_lm(subject)
    found = [
        each for each in dataclasses.fields(subject.backend.options) if not each.metadata.get("changes_program", True)
    ]
    if not found:
        raise NotClaimedError("it has no option with changes_program=False")
    plain = comparable(subject)
    for each in found:
        value = _another(each, default_of(each))
        try:
            other = subject.compile(attention_layer().program, **{each.name: value})
        except OptionError:
            continue
        different = different_files(plain, other)
        require(
            not different,
            f"'{each.name}' is declared with changes_program=False, but {each.name}={value!r} changes {', '.join(different)}: "
            "the program of another value would be found",
        )


def _another(field: dataclasses.Field[Any], value: Any) -> Any:
    choices: Sequence[Any] = field.metadata.get("choices") or ()
    if choices:
        return next((choice for choice in choices if choice != value), value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value * 2
    return "conformance" if value is None or isinstance(value, str) else value


@check("compile")
def check_two_at_once(subject: Subject) -> None:
    """Two compilations in one process, in two threads, give what they give one after the other."""
    need_causal_lm(subject)
    layers = (attention_layer(), products_layer())
    alone = [subject.compiled(layer.program) for layer in layers]
    together: list[CompiledModel | BaseException | None] = [None, None]

    def work(number: int) -> None:
        try:
            together[number] = subject.compile(layers[number].program)
        except BaseException as error:  # noqa: BLE001 -- told below
            together[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for layer, one, found in zip(layers, alone, together, strict=True):
        if not isinstance(found, CompiledModel):
            raise BrokenPromiseError(
                f"a compilation that runs beside another one fails: {type(found).__name__}: {found}"
            )
        inputs = feeds(STEPS[0])
        sessions = [subject.open(one), subject.open(found)]
        expected, got = (valid_part(layer, inputs, output_of(session, inputs)) for session in sessions)
        for session in sessions:
            session.close()
        require_close(subject, got, expected, f"{layer.program.name}, compiled beside another, computes something else")


# --- places -----------------------------------------------------------------------------------------------------------


@check("compile")
def check_no_absolute_path(subject: Subject) -> None:
    """No file of a program names the place where it was made: programs are moved, copied and shared."""
    need_causal_lm(subject)
    compiled = subject.compiled(attention_layer().program)
    place = str(subject.workspace)
    for path in sorted(compiled.directory.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        found = next((code for code in ("utf-8", "utf-16-le") if place.encode(code) in content), None)
        require(found is None, f"{path.name} contains the path {place}: name files relative to the program's directory")


@check("compile")
def check_can_be_moved(subject: Subject) -> None:
    """A program runs from another folder, when its first place and its export are gone."""
    need_causal_lm(subject)
    layer = attention_layer()
    expected = [output_of(subject.session(layer.program), inputs) for inputs in [next(step_inputs(layer))]]
    private = dataclasses.replace(subject.export(layer.program), directory=subject.folder("export") / "copy")
    shutil.copytree(subject.export(layer.program).directory, private.directory)
    compiled = compile_export(subject, private, layer.program)
    moved = subject.folder("moved") / "deep" / "program"
    moved.parent.mkdir()
    shutil.copytree(compiled.directory, moved)
    shutil.rmtree(compiled.directory)
    shutil.rmtree(private.directory)
    session = subject.open(CompiledModel.load(moved))
    inputs = next(step_inputs(layer))
    got = output_of(session, inputs)
    session.close()
    require_close(
        subject,
        valid_part(layer, inputs, got),
        valid_part(layer, inputs, expected[0]),
        "a moved program computes something else",
    )


def compile_export(subject: Subject, exported: Any, program: SmallProgram) -> CompiledModel:
    """Compiles an export that checks do not share."""
    from qeff_framework.lowering.stored_weights import load_portable

    options = subject.options()
    passes = subject.passes(exported, program.specializations, options)
    model = load_portable(exported.model_path)
    applied = tuple(f"{each.name}@{each.version}" for each in passes if each(model))
    return subject.compile_model(exported, model, program.specializations, options, applied=applied)


@check("compile")
def check_writes_nowhere_else(subject: Subject) -> None:
    """A compilation writes into its directory and nowhere else, and leaves no process and no temporary file."""
    need_causal_lm(subject)
    program = attention_layer().program
    exported = subject.export(program)
    before = digests(exported.directory)
    with watched(subject) as left:
        subject.compile(program)
    require(not str(left), f"a compilation leaves {left}")
    require(digests(exported.directory) == before, "a compilation changes the export, which other backends share")


@check("compile")
def check_failure_leaves_nothing(subject: Subject) -> None:
    """A compilation that fails leaves no program, no temporary file and no process."""
    need_causal_lm(subject)
    home = subject.folder("home")
    with watched(subject) as left:
        refused_compilation(subject, home)
    require(not str(left), f"a compilation that failed leaves {left}")
    published = [path for kind in ("compiled", "staging") for path in (home / kind).glob("*")]
    require(
        not published, f"a compilation that failed leaves {', '.join(path.name for path in published)} in the store"
    )


def refused_compilation(subject: Subject, home: Path) -> QEFFError:
    """The error that a graph with an unknown op ends in."""
    try:
        compile_publicly(subject, broken_program(), home)
    except (CompileError, UnsupportedModelError) as error:
        return error
    except QEFFError as error:
        raise BrokenPromiseError(
            f"an op that does not exist raises {type(error).__name__}, not CompileError: {error}"
        ) from error
    raise BrokenPromiseError(
        "a graph with an op that does not exist was compiled: what runs cannot be what was asked for"
    )


@check("compile", cases=("none", "missing dimension", "chunk longer than the context"))
def check_refused_sizes(subject: Subject, case: str) -> None:
    """Specializations that cannot work are refused with `CompileError`; see `check_specializations`."""
    need_causal_lm(subject)
    specializations = {
        "none": (),
        "missing dimension": (Specialization(name="prefill", dims={"batch_size": 2, "seq_len": 4}),),
        "chunk longer than the context": steps_of(CTX_LEN + 3, 1),
    }[case]
    program = dataclasses.replace(attention_layer().program, specializations=specializations)
    try:
        subject.compile(program)
    except UnavailableError:
        raise
    except CompileError as error:
        require(str(error).strip(), "the refusal gives no reason")
    except Exception as error:
        raise BrokenPromiseError(f"{case}: raises {type(error).__name__}, not CompileError: {error}") from error
    else:
        raise BrokenPromiseError(f"{case}: was compiled; call qeff_framework.sessions.check_specializations first")


# --- options ----------------------------------------------------------------------------------------------------------


def _choices(backend: Backend) -> list[str]:
    return [f"{info.name}={choice}" for info in describe_options(backend.options) for choice in info.choices]


@check("compile", cases=_choices)
def check_choice(subject: Subject, case: str) -> None:
    """Every choice of an option compiles to a program that computes nearly the same, or is refused by an `OptionError`."""
    need_causal_lm(subject)
    name, _, text = case.partition("=")
    value = next(
        choice
        for info in describe_options(subject.backend.options)
        if info.name == name
        for choice in info.choices
        if str(choice) == text
    )
    check_nearly_the_same(subject, **{name: value})


def check_nearly_the_same(subject: Subject, **changes: Any) -> None:
    """Programs with `changes` to the options compute nearly what the reference says; a refusal by options is well."""
    import numpy as np

    layer = products_layer()
    try:
        session = subject.session(layer.program, **changes)
    except OptionError as error:
        raise NotClaimedError(f"refused beside the other options: {error}") from error
    inputs = feeds(STEPS[0])
    got, expected = output_of(session, inputs), layer.expected(inputs, {})
    got, expected = valid_part(layer, inputs, got), valid_part(layer, inputs, expected)
    require(np.isfinite(got).all(), f"with {changes} the results are not finite")
    alike = float(np.corrcoef(got.ravel(), expected.ravel())[0, 1])
    require(alike > _ALIKE, f"with {changes} the results have a correlation of {alike:.3f} with those of float32")
    scale = float((got * expected).sum() / (expected * expected).sum())
    require(0.8 < scale < 1.25, f"with {changes} the results are {scale:.2f} times those of float32")


def _options_with_choices(backend: Backend) -> list[str]:
    return [info.name for info in describe_options(backend.options) if info.choices]


@check("compile", cases=_options_with_choices)
def check_option_takes_effect(subject: Subject, name: str) -> None:
    """An option with choices changes the program: one that is ignored would be a silent fallback."""
    need_causal_lm(subject)
    comparable(subject)
    [info] = [info for info in describe_options(subject.backend.options) if info.name == name]
    was_compared = False
    for layer in (products_layer(), attention_layer()):
        seen: CompiledModel | None = None
        for choice in info.choices:
            try:
                compiled = subject.compiled(layer.program, **{name: choice})
            except OptionError:
                continue
            if seen is not None:
                was_compared = True
                if different_files(seen, compiled):
                    return
            seen = compiled
    if not was_compared:
        raise NotClaimedError(f"fewer than two choices of '{name}' are compiled on this machine")
    raise BrokenPromiseError(f"every choice of '{name}' gives the same program: it is ignored")
