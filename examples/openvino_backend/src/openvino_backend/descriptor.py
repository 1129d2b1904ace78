"""What can be told about the backend without loading OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from openvino_backend.options import OpenVinoOptions, OpenVinoRuntimeOptions
from qeff_framework.plugin_api import Backend, Capabilities, Check, Probe, Status
from qeff_framework.toolchains import ProbeError, ask_python

_ASK = """
import json, openvino
core = openvino.Core()
print(json.dumps({"version": openvino.__version__, "cpu": core.get_property("CPU", "FULL_DEVICE_NAME")}))
"""


class OpenVinoBackend(Backend):
    """Descriptor of `openvino`."""

    name = "openvino"
    api = "1.2"
    summary = "OpenVINO on the CPU: states are variables of the program"
    options = OpenVinoOptions
    runtime_options = OpenVinoRuntimeOptions
    capabilities = Capabilities(tasks=frozenset({"causal-lm", "encoder"}), continuous_batching=True)
    implementation = "openvino_backend.compiling:OpenVinoCompiler"
    execute_implementation = "openvino_backend.running:OpenVinoRuntime"

    def probe(self) -> Probe:
        """Asks OpenVINO in a process of its own: native code that crashes there is an answer as well."""
        try:
            found = ask_python(_ASK, subject="importing openvino")
        except ProbeError as error:
            check = Check(name="openvino", status=Status.FAILED, detail=str(error), remedy="pip install openvino")
        else:
            check = Check(name="openvino", status=Status.OK, detail=f"version {found['version']}, {found['cpu']}")
        usable = check.status is Status.OK
        # The CPU is what users of this backend mean to run on, but a host has one anyway: it is no accelerator to be preferred.
        return Probe(can_compile=usable, can_execute=usable, hardware=False, rank=50, checks=(check,))

    def fingerprint(self) -> Mapping[str, str]:
        """Versions of this package and of OpenVINO."""
        return {name: version(name) for name in ("qeff-openvino-backend", "openvino")}
