"""Who may import whom: backends the plugin API only, the core no backend, and nothing heavy where it must be quick."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import qeff_framework
from qeff_framework.plugin_api import TOOLKITS

ROOT = Path(__file__).parents[1]
CORE = ROOT / "qeff_framework"
#: What backends may import.
PUBLIC = {"plugin_api", *TOOLKITS}
#: Packages that use the framework as a script does.
USERS = [ROOT / "plugins" / "qefficient_compat"]
BACKENDS = sorted({path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml")} - {*USERS})
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/pyproject.toml"))


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("backend", [*BACKENDS, *EXAMPLES], ids=lambda path: path.name)
def test_a_backend_imports_the_plugin_api_and_its_toolkits_only(backend: Path) -> None:
    files = list((backend / "src").rglob("*.py"))
    assert files
    for file in files:
        names = {name for name in imported(file) if name.split(".")[0] == "qeff_framework"}
        wrong = {name for name in names if name.partition(".")[2].partition(".")[0] not in PUBLIC}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("package", USERS, ids=lambda path: path.name)
def test_a_package_for_users_imports_the_public_names_only(package: Path) -> None:
    files = list((package / "src").rglob("*.py"))
    assert files
    for file in files:
        names = {name for name in imported(file) if name.split(".")[0] == "qeff_framework"}
        wrong = {name for name in names if name.partition(".")[2].partition(".")[0] not in {"", "plugin_api"}}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("room", ["dialect", "export", "seam"])
def test_no_module_of_a_room_imports_itself_by_way_of_others(room: str) -> None:
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (CORE / room).rglob("*.py")
    }
    # A package imports what it re-exports; its modules name each other and not the package.
    graph = {name: {*imported(file)} & files.keys() - {f"qeff_framework.{room}"} for name, file in files.items()}
    assert any(graph.values())
    TopologicalSorter(graph).prepare()


def test_the_lint_rule_knows_every_module_of_the_core() -> None:
    rules = tomllib.loads((ROOT / "plugins" / "ruff.toml").read_text(encoding="utf-8"))
    banned = set(rules["lint"]["flake8-tidy-imports"]["banned-api"])
    modules = {path.stem for path in CORE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert banned == {f"qeff_framework.{name}" for name in modules - {"__init__", "__main__", *PUBLIC}}


def test_the_core_imports_no_backend() -> None:
    packages = {path.name for backend in [*BACKENDS, *USERS] for path in (backend / "src").iterdir()}
    assert packages
    for file in CORE.rglob("*.py"):
        wrong = {name for name in imported(file) if name.split(".")[0] in packages}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize(
    "statement",
    [
        "import qeff_framework",
        "from qeff_framework.plugin_api import *",
        "from qeff_framework import list_backends; list_backends()",
        "from qeff_framework import load_compiled, get_backend, QEFFError",
        "import qeff_framework.toolchains",
    ],
)
def test_nothing_heavy_is_imported(statement: str) -> None:
    heavy = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "numpy")
    code = f"import sys; {statement}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_exports_a_model_imports_no_loops_of_generation() -> None:
    """They take a fifth of a second, and no export runs them."""
    code = (
        "import sys, qeff_framework.auto; print([name for name in sys.modules if name == 'qeff_framework.generation'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert sorted(qeff_framework.__all__) == qeff_framework.__all__
    for name in qeff_framework.__all__:
        assert getattr(qeff_framework, name).__name__ == name
    assert set(qeff_framework.__all__) <= set(dir(qeff_framework))
    with pytest.raises(AttributeError, match="QEFFAutoModle"):
        qeff_framework.QEFFAutoModle  # noqa: B018 - the access is what is tested
