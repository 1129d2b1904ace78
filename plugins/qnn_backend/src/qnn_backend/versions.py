"""Versions that change a program."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_DISTRIBUTIONS = ("qeff-qnn-backend", "onnxruntime", "onnxruntime-qnn")


def version_of(distribution: str) -> str:
    """Version of an installed distribution, else ``none``."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"


def versions() -> dict[str, str]:
    """Reads metadata only."""
    return {name: version_of(name) for name in _DISTRIBUTIONS}
