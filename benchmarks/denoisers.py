"""The denoiser of a tiny pipeline alone over ten time steps on simulators of several backends: how far it is from torch.

python -m benchmarks.denoisers [--type TYPE] [BACKEND ...]

Backend qaic runs on the stand-in for its SDK that the tests have, which computes in FP16 where the device does.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qeff_framework import QEFFDiffusionPipeline
from qeff_framework.coverage.tiny_pipelines import tiny_pipeline
from qeff_framework.diffusion.calls import Call, example_tensors, rebuilt, tensor_specs

TIME_STEPS = 10
#: How a backend that has several targets is told.
OPTIONS: dict[str, dict[str, Any]] = {"ort_sim": {}, "qaic": {"num_cores": 8}, "qnn": {}}


def errors(name: str, backend: str) -> str:
    """One line: the largest difference of a number, as a part of the largest one, for each time step."""
    tiny = tiny_pipeline(name)
    model = QEFFDiffusionPipeline(tiny.pipeline)
    others = {each: "ort_sim" for each in model.component_names if each not in model.denoisers}
    model.compile({**others, "denoiser": backend}, call=tiny.arguments, **tiny.sizes, **OPTIONS.get(backend, {}))
    worst = []
    with model.load() as runner:
        found = [each for each in runner.session.sessions.values() if each.compiled.backend == backend]  # type: ignore[attr-defined]
        (session,) = [each for each in found if each.compiled.metadata["call"]["component"] in model.denoisers]
        call = Call(**session.compiled.metadata["call"])
        component = tiny.pipeline.components[call.component]
        names = [path for path, _ in tensor_specs(call.arguments)]
        for step in range(TIME_STEPS):
            generator = torch.Generator().manual_seed(step)
            time_step = 999 - step * (999 // (TIME_STEPS - 1))
            tensors = [
                torch.full_like(each, time_step)
                if path.startswith("timestep")
                else torch.randn(each.shape, generator=generator).to(each.dtype)
                for path, each in zip(names, example_tensors(call.arguments), strict=True)
            ]
            arguments = rebuilt({"dict": call.arguments}, iter(tensors))
            with torch.no_grad():
                expected = getattr(component, call.method)(**arguments)[0].numpy()
            outputs = session.run({path: each.numpy() for path, each in zip(names, tensors, strict=True)})
            got = np.array(next(iter(outputs.values())), dtype=np.float32)
            worst.append(float(np.abs(got - expected).max() / np.abs(expected).max()))
    logging.getLogger(__name__).info("by time step: %s", [f"{each:.1e}" for each in worst])
    return f"{name} on {backend}: largest error {max(worst):.1e} of the largest number over {TIME_STEPS} time steps"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backends", nargs="*", default=["ort_sim", "qaic", "qnn"], metavar="BACKEND")
    parser.add_argument("--type", default="stable-diffusion")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["QEFF_HOME"] = str(folder / "store")
        if "qaic" in options.backends:
            from qaic_backend.sdk import ROOT_VARIABLE
            from tests.sdk_standins.qaic import install_standin

            sdk = install_standin(folder / "sdk")
            os.environ[ROOT_VARIABLE] = str(sdk.root)
            stack.enter_context(sdk.clean_imports())
        for backend in options.backends:
            try:
                print(errors(options.type, backend), flush=True)
            except Exception as error:  # noqa: BLE001 - a table of all backends is wanted
                print(f"{options.type} on {backend}: {type(error).__name__}: {str(error)[:800]}", flush=True)
