"""The framework's conformance kit."""

from __future__ import annotations

from qeff_framework.testing import BackendConformance


class TestOpenVino(BackendConformance):
    backend = "openvino"
