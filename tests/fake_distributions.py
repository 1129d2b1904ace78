"""Real installed distributions in a folder: metadata, entry points and modules, as pip would lay them down."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path


def write_distribution(
    root: Path,
    name: str,
    version: str = "1.0",
    *,
    entry_points: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str],
    summary: str = "made by a test",
) -> None:
    """Lays down one distribution below `root`, which the caller puts on `sys.path`.

    `entry_points`: group -> name -> ``"module:attribute"``; `modules`: module name -> source text.
    """
    info = root / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n", encoding="utf-8"
    )
    lines = [
        line
        for group, targets in entry_points.items()
        for line in (f"[{group}]", *(f"{entry} = {target}" for entry, target in targets.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for module, source in modules.items():
        (root / f"{module}.py").write_text(source, encoding="utf-8")
        # Another test may have imported a module of this name from a folder of its own.
        sys.modules.pop(module, None)
    importlib.invalidate_caches()


#: A backend that compiles to a text file and runs nothing: enough for everything that is not about numbers.
ECHO_BACKEND = """
from pathlib import Path

from qeff_framework.plugin_api import *
from qeff_framework.plugin_api import Backend, hookimpl

Path(__file__).with_suffix(".imported").touch()


class Hooks:
    @hookimpl
    def compile(self, request):
        (request.output_dir / "program.txt").write_text(repr(sorted(request.options.__dict__.items())))
        return request.result(backend="{name}", program={{}})


class Descriptor(Backend):
    name = "{name}"
    api = "{api}"
    summary = "echoes its options"
    capabilities = Capabilities(tasks=frozenset({{"causal-lm", "encoder"}}))
    implementation = "{module}:Hooks"

    def probe(self):
        check = Check(name="echo", status=Status.{status}, detail="made by a test", remedy="none needed")
        usable = check.status is Status.OK
        return Probe(can_compile=usable, can_execute=usable, hardware={hardware}, rank={rank}, checks=[check])

    def fingerprint(self):
        return {{"{name}": "1"}}
"""


def echo_backend(
    root: Path,
    name: str,
    *,
    distribution: str | None = None,
    entry_name: str | None = None,
    api: str = "1.0",
    group: str = "qeff_framework.backends.v1",
    hardware: bool = False,
    rank: int = 1,
    status: str = "OK",
    source: str = ECHO_BACKEND,
) -> str:
    """Installs an echo backend below `root`; returns its module name. The module leaves ``<module>.imported`` behind."""
    distribution = distribution or f"qeff-{name}-backend"
    module = distribution.replace("-", "_")
    text = source.format(name=name, api=api, module=module, hardware=hardware, rank=rank, status=status)
    entry_points = {group: {entry_name or name: f"{module}:Descriptor"}}
    write_distribution(root, distribution, entry_points=entry_points, modules={module: text})
    return module


def was_imported(root: Path, module: str) -> bool:
    """Whether the module has run since it was laid down."""
    return (root / f"{module}.imported").exists()
