"""Stand-in for the runtime's Python extension; installed as `dev/lib/<machine>/qaicrt.py`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_PRIVATE = Path(__file__).resolve().parents[3] / "standin"


def _standin_package() -> ModuleType:
    # A name of its own per tree: one process may use several trees, and each must see its own devices and profile.
    name = f"qaic_standin_{abs(hash(str(_PRIVATE))):x}"
    if name not in sys.modules:
        folder = _PRIVATE / "qaic_standin"
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None:
            raise ImportError(f"No stand-in package in {folder}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


_package = _standin_package().__name__
_profile = importlib.import_module(f"{_package}.layout").installed().profile()
globals().update(importlib.import_module(f"{_package}.runtime.public").runtime_names(_profile))
