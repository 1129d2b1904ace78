"""Pickling, and work in fresh processes."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.contracts import CompiledModel, ExecuteRequest
from qeff_framework.testing.checks import BrokenPromiseError, check, require
from qeff_framework.testing.children import call_in_child
from qeff_framework.testing.comparing import require_close
from qeff_framework.testing.groups.compile import comparable, digests, need_causal_lm, refused_compilation
from qeff_framework.testing.groups.execute import attention_layer, output_of
from qeff_framework.testing.layers import step_inputs, valid_part

if TYPE_CHECKING:
    from qeff_framework.testing.subject import Subject

#: What is pickled when work is handed to another process.
_PARTS: Final = ("descriptor", "options", "runtime_options", "probe", "capabilities", "error")


def _part(subject: Subject, name: str) -> Any:
    if name == "error":
        need_causal_lm(subject)
        return refused_compilation(subject, subject.folder("home"))
    found: Mapping[str, Any] = {
        "descriptor": subject.backend,
        "options": subject.options(),
        "runtime_options": subject.runtime_options(),
        "probe": subject.probe,
        "capabilities": subject.capabilities,
    }
    return found[name]


@check("processes", cases=_PARTS)
def check_pickles(subject: Subject, name: str) -> None:
    """Descriptor, options, probe, capabilities and errors can be handed to another process."""
    value = _part(subject, name)
    try:
        again = pickle.loads(pickle.dumps(value))  # noqa: S301 -- written here
    except Exception as error:
        raise BrokenPromiseError(f"{name} cannot be pickled: {type(error).__name__}: {error}") from error
    require(type(again) is type(value), f"{name} comes back from pickle as {type(again).__name__}")
    same = str(again) == str(value) if isinstance(value, Exception) else again == value or name == "descriptor"
    require(same, f"{name} comes back from pickle as something else")


@check("processes")
def check_fresh_process_runs(subject: Subject) -> None:
    """A program that this process has compiled runs in a fresh process, to which the descriptor is handed as ``spawn`` does."""
    import numpy as np

    need_causal_lm(subject)
    layer = attention_layer()
    compiled, session = subject.compiled(layer.program), subject.session(layer.program)
    inputs = list(step_inputs(layer))
    expected = [output_of(session, each) for each in inputs]
    found = call_in_child(
        "qeff_framework.testing.groups.processes:run_in_child",
        _handed_over(subject),
        str(compiled.directory),
        subject.runtime_options(),
        inputs,
        what="running a program",
    )["outputs"]
    for number, (each, got, wanted) in enumerate(zip(inputs, found, expected, strict=True)):
        array = np.array(got, dtype=wanted.dtype)
        told = f"step {number} in a fresh process"
        require_close(subject, valid_part(layer, each, array), valid_part(layer, each, wanted), told)


def _handed_over(subject: Subject) -> Any:
    """The descriptor's class by name, or the descriptor where it is a changed instance."""
    return type(subject.backend).__module__, type(subject.backend).__qualname__


def run_in_child(backend: tuple[str, str], directory: str, options: Any, inputs: list[dict[str, Any]]) -> Any:
    """Runs the steps `inputs` of the program at `directory` in this process."""
    from qeff_framework.registry import registry

    relay = registry.get(getattr(importlib.import_module(backend[0]), backend[1]), extensions=())
    session = relay.execute(ExecuteRequest(compiled=CompiledModel.load(Path(directory)), options=options))
    outputs = [output_of(session, each).tolist() for each in inputs]
    session.close()
    return {"outputs": outputs}


@check("processes")
def check_fresh_process_compiles_the_same(subject: Subject) -> None:
    """A fresh process compiles the same program, whatever its hash seed is."""
    need_causal_lm(subject)
    program = attention_layer().program
    compiled = comparable(subject)
    found = call_in_child(
        "qeff_framework.testing.groups.processes:compile_in_child",
        _handed_over(subject),
        subject.settings,
        str(subject.workspace),
        what="compiling",
        variables={"PYTHONHASHSEED": "12345"},
    )
    here, there = digests(compiled.directory), found["digests"]
    names = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    require(not names, f"a fresh process compiles {program.name} to other files: {', '.join(names)}")


def compile_in_child(backend: tuple[str, str], settings: Any, workspace: str) -> Any:
    """Compiles `attention_layer` in this process."""
    from qeff_framework.testing.subject import Subject

    found = getattr(importlib.import_module(backend[0]), backend[1])
    with Subject(found, settings=settings, workspace=Path(workspace)) as subject:
        return {"digests": digests(subject.compile(attention_layer().program).directory)}
