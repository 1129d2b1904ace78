"""What is claimed works, what is denied is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.contracts import Capabilities, CompiledModel
from qeff_framework.errors import ExecutionError, OptionError
from qeff_framework.model import QEFFBaseModel
from qeff_framework.plugin_api import Backend
from qeff_framework.tasks import task_names, task_spec
from qeff_framework.testing.checks import BrokenPromiseError, UnavailableError, check, require
from qeff_framework.testing.groups.compile import (
    check_nearly_the_same,
    comparable,
    different_files,
    digests,
    need_causal_lm,
    products_layer,
)
from qeff_framework.testing.groups.execute import attention_layer, continuous_layer
from qeff_framework.testing.layers import STEPS, feeds
from qeff_framework.testing.small_models import SIZES, SmallModel, compile_publicly

if TYPE_CHECKING:
    from qeff_framework.testing.subject import Subject

#: What asks for each capability: arguments of `compile`.
_ASKED: Final[Mapping[str, Mapping[str, Any]]] = {
    "continuous_batching": {"full_batch_size": 2, "batch_size": 1},
    "multi_device": {"num_devices": 2},
    "mxfp6_matmul": {"mxfp6_matmul": True},
    "mxint8_kv_cache": {"mxint8_kv_cache": True},
    "speculative_decoding": {"num_speculative_tokens": 2},
    "compute_contexts": {"comp_ctx_lengths_prefill": (6,), "comp_ctx_lengths_decode": (9,)},
    "on_device_sampling": {"include_sampler": True},
    "dry_run": {"dry_run": True},
}
FLAGS: Final = tuple(_ASKED)


def _denied(backend: Backend) -> Sequence[str]:
    flags = [name for name in FLAGS if not getattr(backend.capabilities, name)]
    return [*flags, *(f"task {task}" for task in task_names() if task not in backend.capabilities.tasks)]


@check("capabilities")
def check_flags_are_known(subject: Subject) -> None:
    """The kit knows every capability that this version of the framework has."""
    known = {*FLAGS, "tasks", "scope"}
    unknown = [each.name for each in dataclasses.fields(Capabilities) if each.name not in known]
    require(
        not unknown,
        f"the kit does not check {', '.join(unknown)}; this is a fault of the framework, not of the backend",
    )
    require(subject.capabilities is not None, "there are no capabilities")


@check("capabilities", cases=_denied)
def check_denied(subject: Subject, case: str) -> None:
    """What the capabilities deny is refused with an `OptionError` that names it, before any work."""
    home = subject.folder("home")
    asked = _ASKED.get(case, {})
    try:
        if case.startswith("task "):
            _compile_task(subject, case.removeprefix("task "), home)
        else:
            compile_publicly(subject, attention_layer().program, home, **asked)
    except OptionError as error:
        words = [case.removeprefix("task ")] if case.startswith("task ") else [*asked]
        require(any(word in str(error) for word in words), f"the refusal does not name {words[0]}: {error}")
    except UnavailableError as error:
        raise BrokenPromiseError(f"{case} is denied, but the compiler was asked first: {error}") from error
    except Exception as error:
        raise BrokenPromiseError(f"{case} is denied; asked for, it raises {type(error).__name__}: {error}") from error
    else:
        raise BrokenPromiseError(f"{case} is denied, and was compiled all the same when it was asked for")
    require(not any(home.glob("compiled/*")), "something was published before the refusal")


def _compile_task(subject: Subject, task: str, home: Any) -> None:
    """Compiles for a task that is denied; the model must not be asked for anything."""
    exported = subject.export(attention_layer().program)
    spec = task_spec(task)

    class Denied(spec.model_class):  # type: ignore[misc,name-defined]
        _export = SmallModel._export  # noqa: SLF001 -- the model of the kit
        _exported = exported

        def __init__(self, source: Any) -> None:
            QEFFBaseModel.__init__(self, source)

    with subject.store(home):
        denied = Denied(SmallModel(exported, "denied")._source)  # noqa: SLF001
        # Not the class's own way to it, which may need what this model does not have.
        QEFFBaseModel.compile(denied, backend=subject.asked, **subject.settings.options)


@check("capabilities")
def check_multi_device(subject: Subject) -> None:
    """``num_devices=2`` is compiled where it is claimed."""
    subject.need(subject.capabilities.multi_device, "multi_device")
    need_causal_lm(subject)
    subject.compiled(products_layer().program, num_devices=2)


@check("capabilities", cases=("mxfp6_matmul", "mxint8_kv_cache"))
def check_compressed(subject: Subject, case: str) -> None:
    """Where MXFP6 or MXINT8 is claimed, it changes the program, whose results stay nearly the same."""
    subject.need(getattr(subject.capabilities, case), case)
    need_causal_lm(subject)
    layer = products_layer() if case == "mxfp6_matmul" else attention_layer()
    plain, compressed = subject.compiled(layer.program), subject.compiled(layer.program, **{case: True})
    if case == "mxfp6_matmul":
        check_nearly_the_same(subject, mxfp6_matmul=True)
    else:
        subject.session(layer.program, mxint8_kv_cache=True).run(feeds(STEPS[0]))
    comparable(subject)
    require(different_files(plain, compressed), f"{case}=True gives the same program as without: it is ignored")


@check("capabilities")
def check_dry_run(subject: Subject) -> None:
    """A dry run writes the compiler's inputs, always the same ones, and needs neither SDK nor device."""
    subject.need(subject.capabilities.dry_run, "dry_run")
    need_causal_lm(subject)
    try:
        first, second = (subject.compile(attention_layer().program, dry_run=True) for _ in range(2))
    except UnavailableError as error:
        raise BrokenPromiseError(
            f"a dry run is for machines without the compiler, but it asks for it: {error}"
        ) from error
    require(digests(first.directory), "a dry run writes no file")
    different = different_files(first, second)
    require(not different, f"two dry runs differ in {', '.join(different)}")


@check("capabilities")
def check_dry_run_is_no_program(subject: Subject) -> None:
    """What a dry run has written is not run as a program."""
    from qeff_framework import load_compiled

    subject.need(subject.capabilities.dry_run, "dry_run")
    need_causal_lm(subject)
    compiled: CompiledModel = compile_publicly(subject, attention_layer().program, subject.folder("home"), dry_run=True)
    try:
        load_compiled(compiled.directory, backend=subject.asked, **subject.settings.runtime_options).close()
    except ExecutionError:
        return
    raise BrokenPromiseError("the result of a dry run was loaded as a program")


@check("capabilities")
def check_continuous_batching(subject: Subject) -> None:
    """``full_batch_size`` is compiled where it is claimed: a prefill of one row, and steps of all rows, or of fewer as well."""
    subject.need(subject.capabilities.continuous_batching, "continuous_batching")
    need_causal_lm(subject)
    asked = {**SIZES, "batch_size": 1, "full_batch_size": 2, "kv_cache_batch_size": 3}
    compiled = compile_publicly(subject, continuous_layer().program, subject.folder("home"), **asked)
    rows = {item.name: (item.dims["batch_size"], item.dims["full_batch_size"]) for item in compiled.specializations}
    asked_for = {"prefill": (1, 3), "decode": (2, 3)}
    require(rows | asked_for == rows, f"the program has the rows {rows}")
