"""Hooks whose sessions load torch."""

from __future__ import annotations

from typing import Any

from qeff_framework.plugin_api import ExecuteRequest, hookimpl
from tests.testing.toy_hooks import ToyHooks


class TorchHooks(ToyHooks):
    @hookimpl
    def execute(self, request: ExecuteRequest) -> Any:
        import torch  # noqa: F401

        return super().execute(request)
