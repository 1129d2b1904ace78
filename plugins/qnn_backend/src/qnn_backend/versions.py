"""Versions that change a program."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from qnn_backend.aic.sdk import described_versions

_DISTRIBUTIONS = ("qeff-qnn-backend", "onnxruntime", "onnxruntime-qnn")


def version_of(distribution: str) -> str:
    """Version of an installed distribution, else ``none``."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"


def versions() -> dict[str, str]:
    """Reads metadata, and the QAIRT SDK's description of itself where ``QNN_SDK_ROOT`` names one."""
    return {name: version_of(name) for name in _DISTRIBUTIONS} | described_versions()
