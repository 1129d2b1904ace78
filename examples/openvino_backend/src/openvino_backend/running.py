"""Running a program. Imported when one is loaded: OpenVINO and NumPy, nothing of the compiler's side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from openvino_backend.options import OpenVinoRuntimeOptions
from qeff_framework.plugin_api import (
    CompiledModel,
    ExecuteRequest,
    ExecutionError,
    ExecutionSession,
    Specialization,
    hookimpl,
)
from qeff_framework.sessions import BaseSession, host_outputs


class OpenVinoRuntime:
    """The hook for running."""

    @hookimpl
    def execute(self, request: ExecuteRequest) -> ExecutionSession:
        """Loads the program."""
        return OpenVinoSession(request.compiled, request.options)


class OpenVinoSession(BaseSession):
    """A loaded program. Its states are variables of the infer request, so nothing of a cache is copied."""

    def __init__(self, compiled: CompiledModel, options: OpenVinoRuntimeOptions) -> None:
        super().__init__(compiled)
        core, precision = ov.Core(), compiled.options["precision"]
        # OpenVINO would compute in float32 without a word.
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ExecutionError(
                "the program is compiled for bfloat16, which this CPU does not have; compile again with precision='f32'"
            )
        threads = options.num_threads or min(int(compiled.options["num_cores"]), os.cpu_count() or 1)
        blob = compiled.path(compiled.program["blob"])
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
        try:
            program = core.import_model(blob.read_bytes(), "CPU", settings)
            self._request: Any = program.create_infer_request()
        except Exception as error:
            raise ExecutionError(
                f"OpenVINO {ov.__version__} cannot load {blob}: {error}; compile again if another version has written it"
            ) from error
        self._outputs = [spec.name for spec in host_outputs(compiled)]
        self.info = {
            "device": "CPU",
            "simulator": "yes",
            "runtime": f"openvino {ov.__version__}",
            "threads": str(threads),
        }

    def run_step(
        self, specialization: Specialization, inputs: Mapping[str, NDArray[np.generic]]
    ) -> Mapping[str, NDArray[np.generic]]:
        """One step; the arrays that it returns belong to the request and stay as they are until the next one."""
        try:
            self._request.infer(dict(inputs), share_inputs=True, share_outputs=True)
            return {name: self._request.get_tensor(name).data for name in self._outputs}
        except Exception as error:
            raise ExecutionError(f"OpenVINO failed in '{specialization.name}': {error}") from error

    def clear_states(self) -> None:
        """Makes the variables zero."""
        self._request.reset_state()

    def release(self) -> None:
        """Frees the program and its states."""
        self._request = None
