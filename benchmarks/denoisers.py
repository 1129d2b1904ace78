"""The denoisers of tiny pipelines over ten time steps on simulators of several backends: how far each is from torch.

python -m benchmarks.denoisers [--types TYPE ...] [--backends BACKEND ...]

Each denoiser gets what diffusers' own pipeline gives it in the steps of one picture. The table has the largest difference of a
number as a part of the largest one, over all steps; beside the backends that of torch itself in float16. Backend qaic runs on the
stand-in for its SDK that the tests have, which computes in float16 where the device does.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from qeff_framework import QEFFDiffusionPipeline
from qeff_framework.coverage.pipelines import PROMPTS, make_picture
from qeff_framework.coverage.tiny_pipelines import TinyPipeline, is_built, pipeline_classes, tiny_pipeline
from qeff_framework.diffusion.arguments import call_parameters
from qeff_framework.diffusion.calls import Call, call_of, described, rebuilt, tensor_specs, with_real_times
from qeff_framework.model import QEFFBaseModel
from qeff_framework.runtime.program_sessions import ProgramSessions

TIME_STEPS: Final = 10
BACKENDS: Final = ("ort_sim", "qaic", "qnn")
#: How a backend that has several targets is told.
OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {"qaic": {"num_cores": 8}}
TYPES: Final = (
    "stable-diffusion", "stable-diffusion/2", "stable-diffusion-controlnet", "stable-diffusion-xl", "stable-diffusion-3",
    "flux", "flux/schnell", "pixart-alpha", "pixart-sigma", "sana", "qwenimage", "wan", "wan-i2v/image-to-video",
)  # fmt: skip
_MESSAGE: Final = 400


@dataclass(frozen=True)
class Step:
    """One call of a denoiser, and what torch returns in float32."""

    call: Call
    tensors: Sequence[torch.Tensor]
    expected: Sequence[torch.Tensor]


def recorded_steps(tiny: TinyPipeline, denoisers: Sequence[str]) -> list[Step]:
    """The calls that the pipeline of diffusers makes of its denoisers for one picture."""
    steps: list[Step] = []
    with ExitStack() as stack:
        for name in denoisers:
            stack.enter_context(_watched(tiny.pipeline.components[name], name, steps))
        make_picture(tiny.pipeline, tiny, TIME_STEPS)
    return steps


@contextmanager
def _watched(component: Any, name: str, steps: list[Step]) -> Iterator[None]:
    forward = component.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        call, tensors = call_of(name, "forward", forward, args, kwargs)
        # A pipeline may go on writing into what it has given or got.
        steps.append(Step(call, [each.clone() for each in tensors], [each.clone() for each in _tensors(result)]))
        return result

    component.forward = watched
    try:
        yield
    finally:
        del component.forward


def _tensors(result: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    described(result, found)
    return found


def largest_error(steps: Sequence[Step], compute: Callable[[Step], Sequence[Any]]) -> float:
    """Of a number, as a part of the largest one that torch returns in that step."""
    worst = []
    for step in steps:
        pairs = [
            (np.asarray(got, dtype=np.float32), expected.numpy())
            for got, expected in zip(compute(step), step.expected, strict=True)
        ]
        worst.append(max(float(np.abs(got - expected).max() / np.abs(expected).max()) for got, expected in pairs))
    logging.getLogger(__name__).info("by time step: %s", [f"{each:.1e}" for each in worst])
    return float(np.max(worst))


def half_precision(tiny: TinyPipeline, steps: Sequence[Step]) -> float:
    """Of torch in float16, as ``pipeline.to(torch.float16)`` computes: time steps stay as they are."""
    halves = {
        name: copy.deepcopy(tiny.pipeline.components[name]).half() for name in {step.call.component for step in steps}
    }

    def compute(step: Step) -> list[torch.Tensor]:
        paths = [path for path, _ in tensor_specs(step.call.arguments)]
        given = (
            each.half() if each.dtype == torch.float32 and "timestep" not in path else each
            for path, each in zip(paths, step.tensors, strict=True)
        )
        with torch.no_grad():
            return _tensors(halves[step.call.component](**rebuilt({"dict": step.call.arguments}, iter(given))))

    return largest_error(steps, compute)


def on_backend(tiny: TinyPipeline, steps: Sequence[Step], backend: str) -> float:
    """Of the programs of the denoisers, which alone are compiled."""
    model = QEFFDiffusionPipeline(tiny.pipeline)
    taken = call_parameters(tiny.pipeline)
    guided = tiny.sizes.get("guidance", True)
    prompts = {
        name: text for name, text in PROMPTS.items() if name in taken and (guided or not name.startswith("negative"))
    }
    model._call = {**prompts, **tiny.arguments}  # noqa: SLF001 - without the other components
    model._chosen = frozenset(model.denoisers)  # noqa: SLF001
    QEFFBaseModel.compile(model, backend, **tiny.sizes, **OPTIONS.get(backend, {}))
    with model.load() as runner:
        session = runner.session
        programs = [*session.sessions.values()] if isinstance(session, ProgramSessions) else [session]

        def compute(step: Step) -> list[Any]:
            # A program for time steps between whole numbers takes whole ones as well.
            forms = [(step.call, step.tensors), with_real_times(step.call, step.tensors)]
            told = [form.as_json() for form, _ in forms]
            (program,) = [each for each in programs if each.compiled.metadata["call"] in told]
            call, tensors = forms[told.index(program.compiled.metadata["call"])]
            paths = [path for path, _ in tensor_specs(call.arguments)]
            outputs = program.run({path: each.numpy() for path, each in zip(paths, tensors, strict=True)})
            names = [path for path, _ in tensor_specs({"result": program.compiled.metadata["result"]})]
            return [np.array(outputs[name]) for name in names]

        return largest_error(steps, compute)


def row(name: str, backends: Sequence[str]) -> str:
    """One line of the table; why a backend refuses the denoiser stands below it."""
    tiny = tiny_pipeline(name)
    steps = recorded_steps(tiny, QEFFDiffusionPipeline(tiny.pipeline).denoisers)
    columns: dict[str, Callable[[], float]] = {"torch in float16": partial(half_precision, tiny, steps)}
    columns |= {backend: partial(on_backend, tiny, steps, backend) for backend in backends}
    cells, reasons = [], []
    for column, measure in columns.items():
        try:
            cells.append(f"{measure():.1e}")
        except Exception as error:  # noqa: BLE001 - a table of all backends is wanted
            cells.append("refused")
            reasons.append(f"\n  {name} on {column}: {type(error).__name__}: {str(error)[:_MESSAGE]}")
    return f"| {name} | {' | '.join(cells)} |{''.join(reasons)}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="*", default=BACKENDS, metavar="BACKEND")
    parser.add_argument(
        "--types", nargs="*", default=TYPES, metavar="TYPE", help="of diffusers' mappings; 'all' for every one"
    )
    parser.add_argument("--verbose", action="store_true", help="the error of each time step")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger(__name__).setLevel(logging.INFO if options.verbose else logging.WARNING)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["QEFF_HOME"] = str(folder / "store")
        if "qaic" in options.backends:
            from qaic_backend.sdk import ROOT_VARIABLE
            from tests.sdk_standins.qaic import install_standin

            sdk = install_standin(folder / "sdk")
            os.environ[ROOT_VARIABLE] = str(sdk.root)
            stack.enter_context(sdk.clean_imports())
        print(f"| Denoiser of | torch in float16 | {' | '.join(options.backends)} |")
        print(f"|---|{'---|' * (1 + len(options.backends))}", flush=True)
        every = [name for name in pipeline_classes() if is_built(name)]
        for each in every if [*options.types] == ["all"] else options.types:
            print(row(each, options.backends), flush=True)
