"""Options of target ``aic``."""

from __future__ import annotations

from dataclasses import dataclass

from qeff_framework.plugin_api import CompileOptions, RuntimeOptions


@dataclass(frozen=True, kw_only=True)
class AicOptions(CompileOptions):
    """Options of `compile` for Cloud AI 100."""

    def aic_problems(self) -> list[str]:
        """Combinations of options that cannot work."""
        return []


@dataclass(frozen=True, kw_only=True)
class AicRuntimeOptions(RuntimeOptions):
    """Options of `execute` for Cloud AI 100."""
