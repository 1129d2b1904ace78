"""``qeff cache``: the artifact store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import add_subcommand
from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.tables import size, table, when
from qeff_framework.errors import ArtifactError, OptionError

if TYPE_CHECKING:
    from qeff_framework.artifacts import Store, StoredArtifact
    from qeff_framework.cli.progress import ProgressHandler


def add_to(subparsers: Any) -> None:
    """Adds the subcommand and its own subcommands."""
    parser = add_subcommand(
        subparsers,
        "cache",
        None,
        summary="list, check and remove stored artifacts",
        description="Lists, checks and removes what is in the artifact store (QEFF_HOME).",
        examples=["qeff cache ls", "qeff cache rm ort_sim-gpt2-0123456789abcdef --yes"],
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_subcommand(actions, "ls", run_ls, summary="list the artifacts", examples=["qeff cache ls --json"])
    verify = add_subcommand(
        actions,
        "verify",
        run_verify,
        summary="read every file and compare it with its manifest",
        examples=["qeff cache verify"],
    )
    verify.add_argument("selectors", metavar="SELECTOR", nargs="*", help="only these artifacts (default: all)")
    remove = add_subcommand(
        actions,
        "rm",
        run_rm,
        summary="remove artifacts",
        examples=["qeff cache rm gpt2-0123456789abcdef", "qeff cache rm --all --yes"],
    )
    remove.add_argument(
        "selectors",
        metavar="SELECTOR",
        nargs="*",
        help="a name from `qeff cache ls`, a label, or the beginning of a key",
    )
    remove.add_argument("--all", action="store_true", help="every artifact, and what killed processes have left")
    remove.add_argument("--yes", action="store_true", help="do not ask")


def run_ls(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:  # noqa: ARG001 - every subcommand has this signature
    """Lists the artifacts."""
    from qeff_framework.artifacts import Store

    store = Store()
    artifacts = store.list()
    rows = [
        (
            artifact.kind,
            artifact.name,
            size(artifact.size),
            when(artifact.created),
            when(artifact.last_used),
            "ok" if artifact.intact else "damaged",
        )
        for artifact in artifacts
    ]
    total = f"{len(rows)} artifacts, {size(sum(artifact.size for artifact in artifacts))} in {store.root}"
    listing = table(("KIND", "NAME", "SIZE", "CREATED", "LAST USED", "STATE"), rows)
    return CommandResult(
        document={"root": str(store.root), "artifacts": [_plain(artifact) for artifact in artifacts]},
        text=f"{listing}\n{total}" if rows else f"the artifact store {store.root} is empty",
    )


def run_verify(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:  # noqa: ARG001 - every subcommand has this signature
    """Reads and compares the artifacts."""
    from qeff_framework.artifacts import Store, verify
    from qeff_framework.progress import report

    store = Store()
    results = []
    for artifact in _selected(store, args.selectors) if args.selectors else store.list():
        report(f"checking {artifact.kind}/{artifact.name} ({size(artifact.size)})")
        results.append((artifact, verify(artifact.path, full=True)))
    damaged = [artifact for artifact, problems in results if problems]
    lines = [
        "\n".join(
            [f"{artifact.kind}/{artifact.name}: {'damaged' if problems else 'ok'}", *(f"  {item}" for item in problems)]
        )
        for artifact, problems in results
    ]
    return CommandResult(
        document={
            "root": str(store.root),
            "artifacts": [
                {
                    **_plain(artifact),
                    "intact": not problems,
                    "problems": [
                        {"file": item.file, "kind": item.kind.value, "detail": item.detail} for item in problems
                    ],
                }
                for artifact, problems in results
            ],
        },
        text="\n".join(lines) or f"the artifact store {store.root} is empty",
        failure=f"{len(damaged)} of {len(results)} artifacts are damaged; remove them with "
        f"`qeff cache rm {' '.join(artifact.name for artifact in damaged)}`, they are built again when they are needed"
        if damaged
        else "",
    )


def run_rm(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:
    """Removes artifacts, after asking."""
    from qeff_framework.artifacts import Store

    if args.all == bool(args.selectors):
        raise OptionError("name the artifacts to remove, or give --all; `qeff cache ls` lists them")
    store = Store()
    artifacts = store.list() if args.all else _selected(store, args.selectors)
    if artifacts and not args.yes:
        progress.clear()
        _ask(artifacts)
    removed = [store.remove(f"{artifact.kind}/{artifact.name}") for artifact in artifacts]
    if args.all:
        store.sweep()
    freed = sum(artifact.size for artifact in removed)
    return CommandResult(
        document={"root": str(store.root), "removed": [_plain(artifact) for artifact in removed], "freed_bytes": freed},
        text="\n".join(
            [
                *(f"removed {artifact.kind}/{artifact.name}" for artifact in removed),
                f"{len(removed)} removed, {size(freed)} freed",
            ]
        ),
    )


def _ask(artifacts: Sequence[StoredArtifact]) -> None:
    """Lets a person confirm. Raises `OptionError` where there is none to ask, `ArtifactError` when the answer is no."""
    if not sys.stdin.isatty():
        raise OptionError("add --yes to remove without being asked: there is no terminal to ask on")
    names = "\n".join(f"  {artifact.kind}/{artifact.name}  {size(artifact.size)}" for artifact in artifacts)
    print(f"to be removed:\n{names}\nremove? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ArtifactError("nothing was removed: not confirmed")


def _selected(store: Store, selectors: Sequence[str]) -> list[StoredArtifact]:
    """All artifacts that the selectors name, each once. Every selector is resolved before anything is done.

    Raises `ArtifactError` for a selector that fits none or several.
    """
    found: dict[str, StoredArtifact] = {}
    artifacts = store.list()
    for selector in selectors:
        matches = [item for item in artifacts if selector in (item.name, f"{item.kind}/{item.name}")] or [
            item for item in artifacts if selector and (item.label == selector or item.key.startswith(selector))
        ]
        if not matches:
            raise ArtifactError(
                f"no artifact in {store.root} is named '{selector}' or has a key that begins with it: `qeff cache ls` lists them"
            )
        if len(matches) > 1:
            names = ", ".join(f"{item.kind}/{item.name}" for item in matches)
            raise ArtifactError(f"'{selector}' fits {len(matches)} artifacts, name one of them: {names}")
        found[str(matches[0].path)] = matches[0]
    return list(found.values())


def _plain(artifact: StoredArtifact) -> dict[str, object]:
    return {
        "kind": artifact.kind,
        "name": artifact.name,
        "label": artifact.label,
        "key": artifact.key,
        "path": str(artifact.path),
        "size": artifact.size,
        "created": artifact.created.isoformat(),
        "last_used": artifact.last_used.isoformat(),
        "intact": artifact.intact,
    }
