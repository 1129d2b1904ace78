"""``qeff doctor``: what each installed backend can do on this machine, and the remedy where it cannot."""

from __future__ import annotations

import argparse
import os
import platform
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import add_subcommand
from qeff_framework.cli.backends import NOTHING_INSTALLED, named
from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.environment import environment_checks
from qeff_framework.cli.tables import facts, table
from qeff_framework.contracts import Check, Probe, Status
from qeff_framework.errors import BackendBrokenError, BackendIncompatibleError, QEFFError

if TYPE_CHECKING:
    from qeff_framework.cli.progress import ProgressHandler
    from qeff_framework.registry import InstalledBackend

_DISTRIBUTIONS = (
    "qeff-framework",
    "torch",
    "transformers",
    "tokenizers",
    "diffusers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "numpy",
    "pluggy",
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found out about one backend."""

    name: str
    distribution: str
    version: str
    #: That of the metadata, or ``"broken"``; ``"available"`` when its descriptor could be loaded and asked.
    status: str
    reason: str = ""
    #: What to do where the status is not ``"available"``.
    remedy: str = ""
    #: The original exception of a broken backend, with its traceback.
    exception: str = ""
    can_compile: bool = False
    can_execute: bool = False
    hardware: bool | None = None
    rank: int | None = None
    checks: Sequence[Check] = ()
    #: What it can do with options that are not its defaults.
    other_options: str = ""

    @property
    def usable(self) -> bool:
        """Whether it can do anything here."""
        return self.can_compile or self.can_execute or bool(self.other_options)

    @property
    def verdict(self) -> str:
        """One line for people."""
        if self.status != "available":
            return f"{self.status}: {self.reason}"
        able = [word for word, can in (("compile", self.can_compile), ("execute", self.can_execute)) if can]
        unable = [word for word, can in (("compile", self.can_compile), ("execute", self.can_execute)) if not can]
        parts = [f"can {' and '.join(able)}" if able else "", f"cannot {' nor '.join(unable)}" if unable else ""]
        sort = "hardware" if self.hardware else "simulator"
        told = f"{', '.join(part for part in parts if part)} here ({sort}, rank {self.rank})"
        return f"{told}; {self.other_options}" if self.other_options else told


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "doctor",
        run,
        summary="check what each backend can do here",
        description="Loads every installed backend, or only NAME, and asks it what it can do on this machine. Looks for versions "
        "that do not fit, packages that are there twice and devices without a backend. Each finding has a remedy; the output can "
        "be pasted into a bug report. The exit code is 0 if one of the backends can compile or execute.",
        examples=["qeff doctor", "qeff doctor ort_sim --json"],
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this backend")


def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:  # noqa: ARG001 - every subcommand has this signature
    """Examines the backends."""
    from qeff_framework.registry import list_backends

    asked = list_backends() if args.name is None else named(args.name)
    findings = [replace(found, remedy=_remedy(found)) for found in map(_examine, asked)]
    surroundings = _surroundings()
    checks = environment_checks(hardware_is_used=any(found.hardware and found.usable for found in findings))
    text = [facts(surroundings), "", *_check_lines(checks), *([""] if checks else [])]
    text += [_told(finding, verbose=args.verbose or args.debug) for finding in findings]
    return CommandResult(
        document={
            "environment": surroundings,
            "checks": [asdict(check) for check in checks],
            "backends": [
                {**asdict(finding), "usable": finding.usable, "verdict": finding.verdict} for finding in findings
            ],
        },
        text="\n".join(text if findings else [*text, NOTHING_INSTALLED]),
        failure="" if any(finding.usable for finding in findings) else _failure(args.name, findings),
    )


def _examine(backend: InstalledBackend) -> Finding:
    """Loads the descriptor and asks it; a backend that breaks here is a finding, not a failure."""
    from qeff_framework.registry import registry

    found = Finding(
        name=backend.name,
        distribution=backend.distribution,
        version=backend.version,
        status=backend.status,
        reason=backend.reason,
    )
    if backend.status != "available":
        return found
    try:
        probe = registry.probe(backend.name)
    except BackendIncompatibleError as error:
        return replace(found, status="incompatible", reason=str(error))
    except BackendBrokenError as error:
        return replace(found, status="broken", reason=str(error), exception=_trace(error.__cause__ or error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a backend raises is what has to be shown
        return replace(found, status="broken", reason=f"probe() raised {_one_line(error)}", exception=_trace(error))
    return _with_implementation(found, probe)


def _with_implementation(found: Finding, probe: Probe) -> Finding:
    """A backend that says it is able must also load: its implementation, plugin API and hooks are checked by selecting it."""
    from qeff_framework.registry import registry

    checks, exception, loads = [*probe.checks], "", True
    if probe.can_compile or probe.can_execute or probe.other_options:
        try:
            registry.get(found.name, extensions=(), tried=True)
        except QEFFError as error:
            loads, exception = False, _trace(error.__cause__ or error)
            remedy = f"reinstall {found.distribution}, or install the version that fits this qeff-framework"
            checks.append(Check(name="implementation", status=Status.FAILED, detail=str(error), remedy=remedy))
    return replace(
        found,
        exception=exception,
        can_compile=probe.can_compile and loads,
        can_execute=probe.can_execute and loads,
        hardware=probe.hardware,
        rank=probe.rank,
        checks=tuple(checks),
        other_options=probe.other_options if loads else "",
    )


def _remedy(finding: Finding) -> str:
    """What to do about a backend that cannot be used at all."""
    package = finding.distribution
    return {
        "blocked": "change or unset that variable",
        "incompatible": f"install versions that fit together: pip install --upgrade {package} qeff-framework",
        "conflict": f"uninstall all but one of these packages, or name it as '{package}:{finding.name}'",
        "broken": f"repair what the error names, or reinstall: pip install --force-reinstall {package}",
    }.get(finding.status, "")


def _check_lines(checks: Sequence[Check]) -> list[str]:
    lines: list[str] = []
    told = table(("", "", ""), [(check.status, check.name, check.detail) for check in checks]).splitlines()[1:]
    for check, line in zip(checks, told, strict=True):
        lines.append(f"  {line}")
        if check.status is not Status.OK and check.remedy:
            lines.append(f"           -> {check.remedy}")
    return lines


def _told(finding: Finding, *, verbose: bool) -> str:
    lines = [f"{finding.name} ({finding.distribution} {finding.version}): {finding.verdict}"]
    if finding.remedy:
        lines.append(f"           -> {finding.remedy}")
    lines += _check_lines(finding.checks)
    if finding.exception:
        shown = finding.exception if verbose else finding.exception.strip().splitlines()[-1]
        lines.extend(f"  {line}" for line in shown.splitlines())
    return "\n".join(lines)


def _failure(name: str | None, findings: Sequence[Finding]) -> str:
    if not findings:
        return NOTHING_INSTALLED
    if name is not None:
        return f"backend '{name}' can neither compile nor execute here; see its checks for the remedy"
    return "none of the installed backends can compile or execute here; see their checks for the remedies"


def _surroundings() -> dict[str, str]:
    import importlib_metadata

    from qeff_framework.artifacts.root import store_root

    versions = {}
    for distribution in _DISTRIBUTIONS:
        try:
            versions[distribution] = importlib_metadata.version(distribution)
        except importlib_metadata.PackageNotFoundError:
            versions[distribution] = "not installed"
    try:
        store = store_root()
        place = str(store) if _writable(store) else f"{store} (not writable)"
    except QEFFError as error:
        place = str(error)
    return {
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "store": place,
        **{name: value for name, value in sorted(os.environ.items()) if name.startswith("QEFF_")},
    }


def _writable(directory: Path) -> bool:
    """Whether files can be created in `directory`, or in the one above it that exists."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _one_line(error: BaseException) -> str:
    return " ".join(traceback.format_exception_only(error)[-1].split())
