"""``qeff test-backend``: whether a backend keeps the promises of the contract."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import add_subcommand, key_value, texts_by_name
from qeff_framework.cli.command_result import CommandResult, to_json
from qeff_framework.cli.tables import table
from qeff_framework.errors import OptionError

if TYPE_CHECKING:
    from qeff_framework.cli.progress import ProgressHandler
    from qeff_framework.plugin_api import Backend
    from qeff_framework.testing import CheckResult, Report, Settings

logger = logging.getLogger(__name__)

_NAMED_IN_FAILURE = 5


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "test-backend",
        None,
        summary="check that a backend keeps the promises of the contract",
        description="Runs the conformance kit over an installed backend. What it claims by its capabilities is checked, what "
        "it denies is checked to be refused, and what needs an SDK or a device that is not here is reported as unavailable. "
        "Options, precision and expected failures are read from conformance.toml in the backend's package. The exit code is 1 "
        "if a check fails, or if an expected failure passes.",
        examples=[
            "qeff test-backend ort_sim",
            "qeff test-backend acme --group dialect --group execute",
            "qeff test-backend acme --require-device --junit acme.xml --html acme.html",
        ],
    )
    parser.set_defaults(run=run, json=False, json_file=None)
    parser.add_argument("name", metavar="NAME", help="an installed backend")
    parser.add_argument("--require-device", action="store_true", help="what needs an absent SDK or device is a failure")
    group = parser.add_argument_group("what is run")
    group.add_argument("--group", metavar="GROUP", action="append", default=[], help="only this group; may be repeated")
    group.add_argument(
        "--check",
        metavar="ID",
        action="append",
        default=[],
        help="only this check, as --list names it; may be repeated",
    )
    group.add_argument("--list", action="store_true", help="list the checks of the backend and run none")
    group.add_argument(
        "--settings", metavar="FILE", type=Path, help="read this file instead of conformance.toml in the package"
    )
    group.add_argument(
        "-O", "--option", dest="options", metavar="KEY=VALUE", type=key_value, action="append", default=[],
        help="compile with this option of the backend, beside those of the settings",
    )  # fmt: skip
    group.add_argument(
        "-R", "--runtime-option", dest="runtime_options", metavar="KEY=VALUE", type=key_value, action="append", default=[],
        help="run with this runtime option",
    )  # fmt: skip
    group = parser.add_argument_group("results")
    group.add_argument("--junit", metavar="FILE", type=Path, help="write JUnit's XML")
    group.add_argument(
        "--json", metavar="FILE", nargs="?", action=_Json, help="write a JSON document; without FILE print it on stdout"
    )
    group.add_argument("--html", metavar="FILE", type=Path, help="write a page that needs no other file")


class _Json(argparse.Action):
    """``--json`` alone is what it is for every command."""

    def __call__(self, _parser: Any, namespace: Any, value: Any, _option: str | None = None) -> None:
        namespace.json = value is None
        namespace.json_file = None if value is None else Path(value)


def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:  # noqa: ARG001 - every subcommand has this signature
    """Runs the checks."""
    from qeff_framework.registry import registry
    from qeff_framework.testing import chosen_cases, run_conformance
    from qeff_framework.testing.reports import to_document, to_html, to_junit, to_text

    descriptor = registry.descriptor(args.name)
    settings = _settings(args, descriptor)
    if args.list:
        cases = chosen_cases(descriptor, groups=args.group, only=args.check)
        return CommandResult(
            document={"checks": [{"id": case.id, "promise": case.check.summary} for case in cases]},
            text=table(("CHECK", "PROMISE"), [(case.id, case.check.summary) for case in cases]),
        )
    files: dict[Path, Callable[[Report], str]] = {
        file: form
        for file, form in (
            (args.junit, to_junit),
            (args.json_file, lambda report: to_json(to_document(report)) + "\n"),
            (args.html, to_html),
        )
        if file is not None
    }
    for file in files:
        _write(file, "")  # A report that cannot be written is told before the checks, not after them.
    report = run_conformance(args.name, settings=settings, groups=args.group, only=args.check, on_result=_tell)
    for file, form in files.items():
        _write(file, form(report))
    return CommandResult(
        document=to_document(report),
        text=to_text(report),
        summary=f"{len(report.results)} checks in {report.seconds:.1f} s",
        failure=_failure(report),
    )


def _settings(args: argparse.Namespace, descriptor: Backend) -> Settings:
    from qeff_framework.testing import Settings

    found = Settings.of(descriptor) if args.settings is None else Settings.read(args.settings)
    return dataclasses.replace(
        found,
        require_device=args.require_device,
        options={**found.options, **_read(descriptor.options, args.options, descriptor)},
        runtime_options={
            **found.runtime_options,
            **_read(descriptor.runtime_options, args.runtime_options, descriptor),
        },
    )


def _read(schema: type, pairs: list[tuple[str, str]], descriptor: Backend) -> dict[str, Any]:
    from qeff_framework.options import parse_options

    texts = texts_by_name(pairs)
    parsed: Any = parse_options(schema, texts, owner=f"backend '{descriptor.name}'", from_text=True)
    return {name: getattr(parsed, name) for name in texts}


def _tell(result: CheckResult, number: int, total: int) -> None:
    logger.info("%d of %d  %s  %s", number, total, result.id, result.outcome)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptionError(f"cannot write the report {file}: {error}") from error


def _failure(report: Report) -> str:
    if report.conforms:
        return ""
    if not report.bad:
        return f"none of {len(report.results)} checks could be made here; `qeff doctor {report.backend}` says what is missing"
    names = [each.id for each in report.bad]
    more = ", ..." if len(names) > _NAMED_IN_FAILURE else ""
    return f"{len(names)} of {len(report.results)} checks fail: {', '.join(names[:_NAMED_IN_FAILURE])}{more}"
