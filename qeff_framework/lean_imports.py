"""Importing torch and Transformers without work that no export has a use for.

Of the eight seconds of processor time that ``import transformers.modeling_utils`` takes on a slow machine, a quarter is of three
kinds: the collector of cycles looks at half a million objects that stay, losses of object detection import an optimiser of SciPy,
and Transformers reads the files of all its models twice for their names.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from qeff_framework.rare_collections import rare_collections

#: Modules that are imported at the top of others for single functions, which are called where a model is trained.
_LATER = {"scipy.optimize": ("linear_sum_assignment",)}


@contextmanager
def lean_imports(*, transformers: bool = False) -> Iterator[None]:
    """While the body runs, it may import these libraries for less. What it gets from them is what it gets otherwise.

    With `transformers`, for a body that needs that library, it is imported at once.
    """
    with rare_collections(), ExitStack() as stack:
        for name, functions in _LATER.items():
            stack.enter_context(_later(name, functions))
        if transformers:
            _import_transformers()
        yield


_LOCK = threading.Lock()
_users: dict[str, int] = {}


@contextmanager
def _later(name: str, functions: tuple[str, ...]) -> Iterator[None]:
    """While the body runs, `name` is imported where something of it is used, and not where a module names it.

    Bodies in several threads may overlap. What was imported meanwhile stays.
    """
    with _LOCK:
        _users[name] = _users.get(name, 0) + 1
        if name not in sys.modules:
            sys.modules[name] = _LaterModule(name, functions)
    try:
        yield
    finally:
        with _LOCK:
            _users[name] -= 1
            if not _users[name]:
                _drop(name)


class _LaterModule(ModuleType):
    """Stands for a module until something of it is used."""

    def __init__(self, name: str, functions: tuple[str, ...]) -> None:
        super().__init__(name)
        for function in functions:
            setattr(self, function, functools.partial(_call, name, function))

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "__path__":
            # Asked for by every ``from ... import``, and by whoever imports a module below this one.
            parent = importlib.import_module(self.__name__.rpartition(".")[0])
            spec = PathFinder.find_spec(self.__name__, parent.__path__)
            if spec is not None and spec.submodule_search_locations is not None:
                return spec.submodule_search_locations
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(_real(self.__name__), attribute)


def _call(name: str, function: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(_real(name), function)(*args, **kwargs)


def _real(name: str) -> ModuleType:
    with _LOCK:
        _drop(name)
    return importlib.import_module(name)


def _drop(name: str) -> None:
    if isinstance(sys.modules.get(name), _LaterModule):
        del sys.modules[name]


def _import_transformers() -> None:
    """Imports the package, and its list of models from what it has read itself."""
    import transformers

    if f"{transformers.__name__}.models" in sys.modules:
        return
    library: Any
    try:
        from transformers.utils import import_utils as library

        original, folder = library.define_import_structure, Path(str(transformers.__file__)).parent / "models"
        names = _names_of_models(original, folder) if original.cache_info().misses else None
    except (ImportError, AttributeError, TypeError):  # A release that finds its models in another way.
        names = None
    if names is None:
        return

    def known(path: Any, *args: Any, **kwargs: Any) -> Any:
        is_of_models = not args and not kwargs and Path(path) == folder / "__init__.py"
        return names if is_of_models else original(path, *args, **kwargs)

    library.define_import_structure = known
    try:
        importlib.import_module(f"{transformers.__name__}.models")
    finally:
        library.define_import_structure = original


def _names_of_models(library_function: Any, folder: Path) -> dict[Any, dict[str, Any]]:
    """What ``define_import_structure`` finds in the package of models, by way of what it has found for the whole library."""
    # With the library's own arguments, whose answer it keeps.
    found = library_function(folder, prefix=folder.name)
    start = f"{folder.name}."
    return {
        needs: {name.removeprefix(start): names for name, names in modules.items() if name.startswith(start)}
        for needs, modules in found.items()
    }
