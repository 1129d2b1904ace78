"""What a backend tells the kit about itself: options to run with, its accuracy, failures that are known.

A package keeps them in ``conformance.toml`` beside its ``__init__.py``, so that everybody who runs the kit runs the same::

    precision = "float16"           # of the arithmetic: float32 (default), float16 or int8

    [options]                       # compile options, beside the defaults
    num_cores = 2

    [runtime_options]
    num_threads = 1

    [expected_failures]             # strict: one that passes is a failure
    "dialect/moe[relu_squared]" = "the compiler has no such activation (ACME-1234)"
"""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from qeff_framework.errors import OptionError
from qeff_framework.plugin_api import Backend

FILE: Final = "conformance.toml"


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a number may be from the reference: ``atol + rtol * abs(expected)``."""

    rtol: float
    atol: float


#: By precision of the arithmetic. Values of the kit's programs are about 1.
TOLERANCES: Final[Mapping[str, Tolerance]] = {
    "float32": Tolerance(rtol=2e-4, atol=2e-5),
    "float16": Tolerance(rtol=2e-2, atol=2e-2),
    "int8": Tolerance(rtol=1e-1, atol=1e-1),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the kit runs a backend."""

    #: Of the arithmetic, a name of `TOLERANCES`.
    precision: str = "float32"
    #: Compile options by name.
    options: Mapping[str, Any] = field(default_factory=dict)
    runtime_options: Mapping[str, Any] = field(default_factory=dict)
    #: Ids of checks that are known to fail, with the reasons.
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    #: What needs an absent SDK or device counts as a failure.
    require_device: bool = False

    def __post_init__(self) -> None:
        """Refuses an unknown precision and expected failures without a reason."""
        if self.precision not in TOLERANCES:
            raise OptionError(f"precision = {self.precision!r} must be one of {', '.join(TOLERANCES)}")
        for check, reason in self.expected_failures.items():
            if not isinstance(reason, str) or not reason.strip():
                raise OptionError(f"the expected failure '{check}' has no reason; say why it fails, in one sentence")

    @property
    def tolerance(self) -> Tolerance:
        """What the precision allows."""
        return TOLERANCES[self.precision]

    @classmethod
    def read(cls, file: Path, *, require_device: bool = False) -> Self:
        """Reads a ``conformance.toml``. Raises `OptionError` naming the file when it cannot be used."""
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OptionError(f"{file} cannot be read: {error}") from error
        tables = {"options": dict, "runtime_options": dict, "expected_failures": dict, "precision": str}
        wrong = [name for name, value in content.items() if not isinstance(value, tables.get(name, ()))]
        if wrong:
            raise OptionError(
                f"{file} holds {wrong[0]!r}; it may hold precision, and tables {', '.join(list(tables)[:3])}"
            )
        try:
            return cls(**content, require_device=require_device)
        except OptionError as error:
            raise OptionError(f"{file}: {error}") from error

    @classmethod
    def of(cls, backend: Backend, *, require_device: bool = False) -> Self:
        """Those of the backend's own package; the defaults where it has none."""
        file = settings_file(backend)
        return cls(require_device=require_device) if file is None else cls.read(file, require_device=require_device)


def settings_file(backend: Backend) -> Path | None:
    """The ``conformance.toml`` in the package of the descriptor's class, or `None`."""
    package = type(backend).__module__.partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders if (file := Path(folder) / FILE).is_file()), None)
