"""Checks of many model types, each in its own process with a time limit: one that hangs or dies costs only its own line."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import json
import logging
import multiprocessing
import os
import pkgutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Literal

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.registry import list_backends

Outcome = Literal["pass", "refused", "fail", "no reference"]

#: How the error of a refusal begins, see `first_line`; lines of older runs are told by it as well.
_REFUSAL: Final = f"{UnsupportedModelError.__name__}: "

#: Checks one model type and returns the facts that belong in its line.
Check = Callable[[str], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What became of one type: the facts that its check returned, or the first line of what it raised."""

    model_type: str
    ok: bool
    seconds: float
    error: str | None = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        """What the line counts as: a type that Transformers itself cannot run says nothing about an export.

        Refused on purpose is what the export raised `UnsupportedModelError` for.
        """
        if self.ok:
            return "pass"
        stage = self.facts.get("stage")
        if stage == "reference":
            return "no reference"
        refused = stage == "export" and (self.error or "").startswith(_REFUSAL)
        return "refused" if refused else "fail"

    def to_json(self) -> str:
        """One JSON object without line breaks; the facts stand beside the other fields."""
        fields = dataclasses.asdict(self)
        facts = fields.pop("facts")
        return json.dumps({name: value for name, value in fields.items() if value is not None} | facts)

    @classmethod
    def from_json(cls, line: str) -> Report:
        """Reads what `to_json` wrote. Raises `ValueError` or `KeyError` for anything else."""
        facts = json.loads(line)
        own = {field.name: facts.pop(field.name) for field in dataclasses.fields(cls) if field.name in facts}
        return cls(**own, facts=facts)


#: What an export imports on its way, beside the framework.
_LIBRARIES: Final = (
    *("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxscript.optimizer", "importlib_metadata"),
    *("torch.onnx._internal.exporter._core", "torch.export._trace", "torch.export._unlift"),
    *("torch._functorch.aot_autograd", "torch._export.non_strict_utils", "sympy.tensor.tensor"),
)


#: In the folder of a process: all that it printed.
_OUTPUT: Final = "output.txt"


class CheckError(Exception):
    """A check's verdict that a type fails; `facts` say what is known all the same."""

    def __init__(self, message: str, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.facts = facts


def sweep(
    check: Check, model_types: Iterable[str], *, time_limit: float, jobs: int = 2, packages: Sequence[str] = ()
) -> Iterator[Report]:
    """Checks each type in its own process, `jobs` at a time; reports come in the order in which types finish.

    `model_types` may be an iterator: it is asked for the next type when a process is free to check it.

    The modules of `packages` (those of a backend) are loaded beforehand, like those of the framework: an edit of the
    sources during a long run then reaches none of its processes.
    """
    _load_libraries()
    for package in ("qeff_framework", *packages):
        _load_modules(package)
    waiting = iter(model_types)
    running: dict[Connection, _Running] = {}
    try:
        while True:
            for model_type in itertools.islice(waiting, jobs - len(running)):
                started = _start(check, model_type)
                running[started.answers] = started
            if not running:
                return
            for receiver in _finished(list(running.values()), time_limit):
                yield running.pop(receiver).report(time_limit)
    finally:
        for left in running.values():
            left.end()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Running:
    model_type: str
    process: BaseProcess
    answers: Connection
    start: float
    folder: tempfile.TemporaryDirectory[str]

    def report(self, time_limit: float) -> Report:
        """Ends the process, if it has not ended, and tells how it went."""
        facts: dict[str, Any] = {}
        error: str | None
        try:
            if self.answers.poll():
                facts, error = self.answers.recv()
            else:
                facts, error = {"stage": "time limit"}, f"no result within {time_limit:g} s"
        except EOFError:
            self.process.join()
            facts = {"stage": "process"}
            error = f"the process ended with exit code {self.process.exitcode}{self._last_words()}"
        self.end()
        seconds = round(time.monotonic() - self.start, 2)
        return Report(model_type=self.model_type, ok=error is None, seconds=seconds, error=error, facts=facts)

    def _last_words(self) -> str:
        """What native code said before it took the process down."""
        lines = (Path(self.folder.name) / _OUTPUT).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def end(self) -> None:
        """Kills the process and what it has started, and removes its folder."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.answers.close()
        self.folder.cleanup()


def _load_libraries() -> None:
    """Imports once, in the parent, what every forked process would import for itself: 3 s each.

    The exporter's tables are as good as imports: whole libraries are read for them, and they are read only.
    """
    for name in _LIBRARIES:
        # Where a version keeps its parts elsewhere, each process imports them for itself.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from qeff_framework.dialect.names import ONNX_OPSET
    from qeff_framework.export.trace import quiet_exporter
    from qeff_framework.export.translations import translations

    with quiet_exporter():
        translations(ONNX_OPSET)
    from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig, modeling_utils  # noqa: F401


def _load_modules(package: str) -> None:
    """Imports every module of a package. One that cannot be imported here fails where it is used, with its own error."""
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(getattr(root, "__path__", ()), f"{package}.", onerror=lambda name: None):
        if not module.name.endswith(".__main__"):
            with contextlib.suppress(Exception):
                importlib.import_module(module.name)


def _start(check: Check, model_type: str) -> _Running:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    folder = tempfile.TemporaryDirectory(prefix="qeff-coverage-", ignore_cleanup_errors=True)
    process = context.Process(target=_work, args=(sender, check, model_type, Path(folder.name)))
    process.start()
    sender.close()
    return _Running(model_type=model_type, process=process, answers=receiver, start=time.monotonic(), folder=folder)


def _finished(running: Sequence[_Running], time_limit: float) -> list[Connection]:
    """The receivers of processes that have answered, died or used up their time; waits for the first of them."""
    deadline = min(each.start for each in running) + time_limit
    wait([each.answers for each in running], timeout=max(0.0, deadline - time.monotonic()))
    now = time.monotonic()
    return [each.answers for each in running if each.answers.poll() or now - each.start >= time_limit]


def _work(sender: Connection, check: Check, model_type: str, folder: Path) -> None:
    import torch

    os.setpgid(0, 0)  # so that the parent can end what the check starts along with it
    os.chdir(folder)
    os.environ["QEFF_HOME"] = str(folder / "store")
    _redirect_output(folder / _OUTPUT)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        sender.send((check(model_type), None))
    except CheckError as verdict:
        sender.send((verdict.facts, str(verdict)))
    except Exception as error:  # noqa: BLE001  (whatever a family raises is the result)
        sender.send(({"where": where(error)}, message(error)))


def _redirect_output(file: Path) -> None:
    """Sends what modelling code and native libraries print to `file`: the parent's streams are for the reports.

    The stream objects are replaced as well: a thread of the parent may have held their locks when the process was forked.
    """
    stream = file.open("w", encoding="utf-8", buffering=1)
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout = sys.stderr = stream


def first_line(error: BaseException) -> str:
    """Type and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def message(error: BaseException) -> str:
    """Type and whole text of an exception; `first_line` of it is what a table shows."""
    return f"{type(error).__name__}: {str(error).strip()}"


def where(error: BaseException) -> str:
    """The innermost line of the traceback in Transformers (by file) or in a backend (by module), else ``qeff_framework``."""
    packages = {backend.target.partition(":")[0].partition(".")[0] for backend in list_backends()} | {"transformers"}
    found = "qeff_framework"
    raised: BaseException | None = error
    while raised is not None:
        for frame, line in traceback.walk_tb(raised.__traceback__):
            package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
            if package in packages:
                module = str(frame.f_globals["__name__"])
                inner = Path(frame.f_code.co_filename).as_posix().rpartition(f"/{package}/")[2]
                found = f"{inner if package == 'transformers' else module}:{line}"
        raised = raised.__cause__
    return found
