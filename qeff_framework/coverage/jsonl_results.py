"""Results in JSON-lines files: a line about each run, followed by one for each type in the order in which types finished."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from qeff_framework.coverage.families import coverage_of
from qeff_framework.coverage.processes import Report
from qeff_framework.errors import OptionError
from qeff_framework.plugin_api import Backend
from qeff_framework.textfiles import read_text, split_lines

_DISTRIBUTIONS: Final = ("qeff-framework", "transformers", "torch", "onnx", "onnxscript")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What the results of a run depend on."""

    task: str
    backend: str
    #: By distribution.
    versions: Mapping[str, str]

    @classmethod
    def here(cls, task: str, backend: Backend) -> Run:
        """A run with what is installed; the backend names the distributions that change its results.

        What else it tells, such as a digest of its files, is another one after each edit: types that are run again could never
        take their place among those of the run before.
        """
        import importlib_metadata

        names = dict.fromkeys((*_DISTRIBUTIONS, coverage_of(task).library))
        versions = {name: importlib_metadata.version(name) for name in names}
        told = {name: version for name, version in backend.fingerprint().items() if _is_installed(name)}
        return cls(task=task, backend=backend.name, versions=versions | told)

    def to_json(self) -> str:
        """One JSON object without line breaks."""
        return json.dumps(dataclasses.asdict(self))


def _is_installed(name: str) -> bool:
    import importlib_metadata

    try:
        importlib_metadata.version(name)
    except importlib_metadata.PackageNotFoundError:
        return False
    return True


def read_lines(files: Iterable[Path], task: str) -> tuple[list[Run], dict[str, Report]]:
    """The results for `task` by type, and the different runs that they are from.

    A later line for a type replaces an earlier one. Lines that follow no line about a run are taken for results of `task`;
    no run is told for them.

    Raises:
        OptionError: a file cannot be read, or has a line of another form.
    """
    reports: dict[str, Report] = {}
    runs: dict[str, Run | None] = {}
    for file in files:
        run: Run | None = None
        for place, line in _lines(file):
            content = _parsed(line, place)
            if "model_type" not in content:
                run = _run(content, place)
            elif run is None or run.task == task:
                reports[content["model_type"]] = _report(line, place)
                runs[content["model_type"]] = run
    different: list[Run] = []
    for run in runs.values():
        if run is not None and run not in different:
            different.append(run)
    return different, reports


def _lines(file: Path) -> list[tuple[str, str]]:
    try:
        text = read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read results from {file}: {error}") from error
    return [(f"{file}, line {number}", line) for number, line in enumerate(split_lines(text), 1) if line.strip()]


def _parsed(line: str, place: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise _no_result(place, error) from error
    if not isinstance(content, dict):
        raise _no_result(place, "it is no object")
    return content


def _run(content: dict[str, Any], place: str) -> Run:
    try:
        return Run(**content)
    except TypeError as error:
        raise _no_result(place, error) from error


def _report(line: str, place: str) -> Report:
    try:
        return Report.from_json(line)
    except (TypeError, ValueError) as error:
        raise _no_result(place, error) from error


def _no_result(place: str, reason: object) -> OptionError:
    return OptionError(f"{place} is not a line of `qeff coverage --lines`: {reason}")
