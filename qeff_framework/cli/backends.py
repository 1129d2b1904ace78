"""``qeff backends``: what is installed, from package metadata alone."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import add_subcommand
from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.tables import facts, table
from qeff_framework.errors import BackendBrokenError, BackendError, OptionError
from qeff_framework.plugin_metadata import printable

if TYPE_CHECKING:
    from qeff_framework.cli.progress import ProgressHandler
    from qeff_framework.registry import InstalledBackend

NOTHING_INSTALLED = (
    "no backend is installed; install one, for instance `pip install qeff-ort-sim-backend`, which simulates on the CPU"
)


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "backends",
        run,
        summary="list the installed backends",
        description="Lists the installed backends from package metadata: none of them is imported. With NAME, says what that one "
        "is and can be asked for, from its descriptor. Whether it works here is told by `qeff doctor`.",
        examples=["qeff backends --json", "qeff backends ort_sim", "qeff backends ort_sim --options"],
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this backend; loads its descriptor")
    parser.add_argument(
        "--options",
        action="store_true",
        help="list the options of backend NAME; loads its descriptor, not the backend itself",
    )


def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:  # noqa: ARG001 - every subcommand has this signature
    """Lists backends, or the options of one."""
    from qeff_framework.registry import list_backends

    if args.options:
        if args.name is None:
            raise OptionError("--options lists the options of one backend; name it: qeff backends NAME --options")
        return _options(args.name)
    return _listing(list_backends()) if args.name is None else _described(named(args.name))


def named(name: str) -> Sequence[InstalledBackend]:
    """The installed backends of one name, several if packages compete for it. Raises `BackendError` if there is none."""
    from qeff_framework.registry import list_backends, normalize, registry

    distribution, _, bare = name.rpartition(":")
    found = [
        backend
        for backend in list_backends()
        if normalize(backend.name) == normalize(bare)
        and (not distribution or normalize(backend.distribution) == normalize(distribution))
    ]
    if not found:
        registry.descriptor(name)
    return found


def _listing(backends: Sequence[InstalledBackend]) -> CommandResult:
    rows = [
        (
            backend.name,
            backend.distribution,
            backend.version,
            f"{backend.status}: {backend.reason}" if backend.reason else backend.status,
            backend.summary,
        )
        for backend in backends
    ]
    return CommandResult(
        document={"backends": [dataclasses.asdict(backend) for backend in backends]},
        text=table(("NAME", "PACKAGE", "VERSION", "STATUS", "SUMMARY"), rows) if rows else NOTHING_INSTALLED,
    )


def _described(backends: Sequence[InstalledBackend]) -> CommandResult:
    found = [{**dataclasses.asdict(backend), **_descriptor_facts(backend)} for backend in backends]
    shown = [
        facts(
            {
                "name": item["name"],
                "summary": item["descriptor_summary"] or item["summary"],
                "package": f"{item['distribution']} {item['version']}",
                "status": f"{item['status']}: {item['reason']}" if item["reason"] else item["status"],
                "plugin API": item["api"] or f"v{item['api_major']}",
                "tasks": ", ".join(item["tasks"]),
                "capabilities": ", ".join(item["capabilities"]),
            }
        )
        for item in found
    ]
    return CommandResult(document={"backends": found}, text="\n\n".join(shown))


def _descriptor_facts(backend: InstalledBackend) -> dict[str, Any]:
    """What its descriptor says; empty, and with the reason, for a backend whose descriptor cannot be used."""
    from qeff_framework.registry import registry

    nothing: dict[str, Any] = {"descriptor_summary": "", "api": "", "tasks": [], "capabilities": []}
    if backend.status != "available":
        return nothing
    try:
        descriptor = registry.descriptor(backend.name, tried=True)
    except BackendError as error:
        broken = isinstance(error, BackendBrokenError)
        return {**nothing, "status": "broken" if broken else "incompatible", "reason": str(error)}
    can = descriptor.capabilities
    return {
        "descriptor_summary": printable(descriptor.summary),
        "api": descriptor.api,
        "tasks": sorted(can.tasks),
        "capabilities": [field.name for field in dataclasses.fields(can) if getattr(can, field.name) is True],
    }


def _options(name: str) -> CommandResult:
    from qeff_framework.options import describe_options
    from qeff_framework.registry import registry

    descriptor = registry.descriptor(name, tried=True)
    stages = {"compile": descriptor.options, "runtime": descriptor.runtime_options}
    described = {stage: describe_options(schema) for stage, schema in stages.items()}
    rows = [
        (info.name, stage, info.type, _default(info.default), _help(info.help, info.choices))
        for stage, infos in described.items()
        for info in infos
    ]
    return CommandResult(
        document={
            "backend": descriptor.name,
            "options": {
                stage: [{**dataclasses.asdict(info), "default": _json_default(info.default)} for info in infos]
                for stage, infos in described.items()
            },
        },
        text=table(("OPTION", "STAGE", "TYPE", "DEFAULT", "MEANING"), rows),
    )


def _help(text: str, choices: Sequence[object]) -> str:
    return f"{text} ({' | '.join(map(str, choices))})" if choices else text


def _default(value: object) -> str:
    """As it would be typed after ``-O name=``."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "(empty)"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _json_default(value: object) -> object:
    return value if isinstance(value, (type(None), bool, int, float, str, list, tuple, dict)) else str(value)
