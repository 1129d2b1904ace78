"""Backends that break one promise each. Every one is `ToyBackend` with one fault, which its docstring names."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qeff_framework.lowering import GraphPass
from qeff_framework.plugin_api import Backend, CompileOptions, RuntimeOptions
from qeff_framework.sessions import BaseSession
from qeff_framework.testing import Settings
from tests.testing.toy_backend import ToyBackend
from tests.testing.toy_hooks import ToyHooks


@dataclass(frozen=True, kw_only=True)
class Mutant:
    #: The group of checks that must fail, and nothing else of it but these.
    group: str
    fails: frozenset[str]
    backend: type[Backend]
    settings: Settings = field(default_factory=Settings)
    #: Metadata of the package that provides it; `None` for one that is not installed.
    metadata: str | None = None
    #: What is run over it; by default every case of the checks that must fail.
    runs: tuple[str, ...] = ()


MUTANTS: dict[str, Mutant] = {}
#: What `ToyBackend.implementation` and pickle look up here: hooks and descriptors of the mutants.
_MADE: dict[str, Any] = {}


#: Of a package without a fault.
METADATA = """\
Metadata-Version: 2.1
Name: toy-backend
Version: 1.2.3
Summary: A backend of the tests
License-Expression: Apache-2.0
Requires-Python: >=3.11
Requires-Dist: qeff-framework<0.2,>=0.1
Requires-Dist: onnxruntime
"""


def mutant(
    group: str,
    *fails: str,
    settings: Settings | None = None,
    metadata: str | None = None,
    runs: tuple[str, ...] = (),
    **facts: Any,
) -> Callable[[type], type]:
    """Makes a backend of a class with one fault: a descriptor, hooks, a session, options, or a pass.

    A descriptor may bring `hooks` of its own. `fails` are the checks that must fail (``name`` or ``name[case]``), `facts` are further attributes of the descriptor.
    `metadata` is that of the package that provides the backend, by default none does. `runs` are the ids of what is run over it.
    """

    def register(cls: type) -> type:
        name = cls.__name__
        if name in MUTANTS:
            raise ValueError(f"two mutants are called {name}")
        parts: dict[str, Any] = {"session": None}
        hooks: type = ToyHooks
        base: type[Backend] = ToyBackend
        if issubclass(cls, Backend):
            base, hooks = cls, facts.pop("hooks", ToyHooks)
        elif issubclass(cls, ToyHooks):
            hooks = cls
        elif issubclass(cls, CompileOptions):
            facts["options"] = cls
        elif issubclass(cls, RuntimeOptions):
            facts["runtime_options"] = cls
        elif issubclass(cls, BaseSession):
            parts["session"] = cls
        elif issubclass(cls, GraphPass):
            parts["passes"] = lambda self, request: [cls()]
        else:
            raise TypeError(f"{name} is no part of a backend")
        told = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        wanted = facts.pop("name", told)
        parts = {key: value for key, value in parts.items() if value is not None}
        _MADE[f"{name}Hooks"] = type(f"{name}Hooks", (hooks,), {"__module__": __name__, **parts})
        descriptor = type(
            f"{name}Backend",
            (base,),
            {"name": wanted, "implementation": f"{__name__}:{name}Hooks", "__module__": __name__, **facts},
        )
        _MADE[f"{name}Backend"] = descriptor
        MUTANTS[name] = Mutant(
            group=group,
            fails=frozenset(f"{group}/{each}" for each in fails),
            backend=descriptor,
            settings=settings or Settings(),
            metadata=metadata,
            runs=runs,
        )
        return cls

    return register


def load_all() -> None:
    """Imports the modules of this folder, which fill `MUTANTS`."""
    for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        importlib.import_module(f"{__name__}.{file.stem}")


def __getattr__(name: str) -> Any:
    if name not in _MADE and name.endswith(("Hooks", "Backend")):
        load_all()  # in a fresh process
    try:
        return _MADE[name]
    except KeyError:
        raise AttributeError(name) from None


def cases(check: str, names: Iterable[str]) -> list[str]:
    """``check[name]`` for each of `names`."""
    return [f"{check}[{name}]" for name in names]
