"""Device generation asked for by `-aic-hw-version` and what it can hold (row C6)."""

from __future__ import annotations

from ..profiles import Profile
from .arguments import Arguments
from .errors import wrong_value


def target_of(arguments: Arguments, profile: Profile) -> str:
    """`ai100` or `ai200`.

    Raises:
        CompileError: the value is not one of the profile.
    """
    given = arguments.text("aic-hw-version", profile.default_hw_version)
    if given not in profile.hw_versions:
        raise wrong_value("-aic-hw-version", given, f"one of {', '.join(profile.hw_versions)}")
    return profile.hw_versions[given]


def supports_bfloat16(target: str) -> bool:
    """Cloud AI 100 has no bfloat16."""
    return target == "ai200"
