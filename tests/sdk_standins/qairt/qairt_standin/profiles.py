"""The SDK generations that the stand-in can act as."""

from __future__ import annotations

from dataclasses import dataclass

_TYPES = ("float32", "float16", "int64", "int32", "uint8", "int8", "bool")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One generation. `data_types` are the words that an IO file may use."""

    version: str
    needs_model_library: bool
    data_types: tuple[str, ...]


PROFILES: dict[str, Profile] = {
    "2.34": Profile(version="2.34.0.250424", needs_model_library=True, data_types=_TYPES),
    "2.37": Profile(version="2.37.1.250807", needs_model_library=False, data_types=(*_TYPES, "bfloat16")),
}
