"""The core answers the export hook when nobody else does."""

from __future__ import annotations

import pluggy
import pytest

from qeff_framework.contracts import ExportRequest
from qeff_framework.export.hooks import CoreHooks
from qeff_framework.hookspecs import PROJECT, BackendHooks, hookimpl


@pytest.fixture
def manager():
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(BackendHooks)
    manager.register(CoreHooks())
    return manager


def test_the_core_exports(manager, llama, tmp_path):
    steps = []
    request = ExportRequest(module=llama, task="causal-lm", output_dir=tmp_path, progress=steps.append)

    exported = manager.hook.export(request=request)

    assert exported.directory == tmp_path
    assert exported.model_path.is_file()
    assert steps[0] == "tracing the model"
    assert [step for step in steps if step.startswith("writing ")]


def test_another_implementation_goes_first(manager, llama, tmp_path):
    class Backend:
        @hookimpl
        def export(self, request):
            return "its own"

    manager.register(Backend())

    request = ExportRequest(module=llama, task="causal-lm", output_dir=tmp_path)
    assert manager.hook.export(request=request) == "its own"
    assert list(tmp_path.iterdir()) == []
