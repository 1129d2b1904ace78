"""The descriptor is light and tells the truth about this machine."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest

from ort_sim_backend import OrtSimBackend, descriptor
from qeff_framework.plugin_api import BACKEND_GROUP, Status


def test_importing_it_loads_nothing_heavy():
    program = (
        "import sys, ort_sim_backend; ort_sim_backend.OrtSimBackend();"
        "print(sorted({'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_running_a_program_loads_no_model_library():
    program = (
        "import sys, ort_sim_backend.hooks, ort_sim_backend.session;"
        "print(sorted({'onnx', 'onnx_ir', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_entry_point_leads_to_it():
    (entry,) = entry_points(group=BACKEND_GROUP, name=OrtSimBackend.name)
    assert entry.load() is OrtSimBackend


def test_probe_here():
    probe = OrtSimBackend().probe()
    assert (probe.can_compile, probe.can_execute, probe.hardware, probe.rank) == (True, True, False, 100)
    assert version("onnxruntime") in probe.checks[0].detail


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("raise ImportError('libfoo.so: cannot open')", "libfoo.so: cannot open"),
        ('print(\'{"version": "1.31.0", "providers": []}\')', "1.31.0 is older than 1.32"),
        ('print(\'{"version": "1.40.2", "providers": ["Other"]}\')', "has no CPUExecutionProvider"),
    ],
    ids=["broken", "old", "no provider"],
)
def test_probe_where_onnxruntime_is_not_usable(answer, reason, monkeypatch):
    monkeypatch.setattr(descriptor, "_ASK_ONNXRUNTIME", answer)

    probe = OrtSimBackend().probe()

    assert (probe.can_compile, probe.can_execute) == (False, False)
    assert probe.checks[0].status is Status.FAILED
    assert reason in probe.reason
    assert "pip install 'onnxruntime>=1.32'" in probe.checks[0].remedy


def test_fingerprint_names_everything_that_changes_a_program():
    fingerprint = OrtSimBackend().fingerprint()
    assert fingerprint["onnxruntime"] == version("onnxruntime")
    assert fingerprint["qeff-ort-sim-backend"] == version("qeff-ort-sim-backend")
