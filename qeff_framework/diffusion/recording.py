"""Which calls a pipeline makes of its components: found out by running it on components that compute nothing."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from qeff_framework.diffusion.calls import Call, CallGraph, call_of, rebuilt, tensor_specs, with_real_times
from qeff_framework.diffusion.components import changed_parts, hand_over, read_on_demand, structure
from qeff_framework.diffusion.folder import components_with_weights, with_components
from qeff_framework.errors import ExportError, InputError, OptionError, QEFFError, UnsupportedModelError
from qeff_framework.seam.deferred import DeferredTensor
from qeff_framework.thread_quiet import muted_loggers

#: Arguments that messages about a refused run name.
_TOLD = ("height", "width", "num_frames", "max_sequence_length")
#: What diffusers imports where it is installed, under the names of the modules.
_OPTIONAL_PACKAGES = ("ftfy",)
#: Bytes of weights that the pipeline's own code may compute with: an artifact carries them beside the programs.
_MOST_ON_THE_HOST = 64 * 2**20


class Recorder:
    """Answers calls with zeros of the right shapes, and keeps each kind of call once, in the order of the first of each."""

    def __init__(self, components: Mapping[str, torch.nn.Module], numbers: Mapping[str, torch.nn.Module]) -> None:
        """`numbers`: the components with their weights."""
        self._components = components
        self._numbers = numbers
        #: Numbers of weights that the pipeline's own code has computed with, by component and name.
        self.host_weights: dict[str, dict[str, torch.Tensor]] = {}
        self.calls: list[Call] = []
        #: For each call the number of the run that made it first.
        self.runs: list[int] = []
        self.run = 0
        self._results: list[Mapping[str, Any]] = []
        #: Of each component in the hands of the pipeline, see `components.structure`.
        self._structures: dict[str, Any] = {}

    def watch(self, name: str, component: torch.nn.Module) -> torch.nn.Module:
        """Keeps in mind what a component is before the pipeline runs."""
        self._structures[name] = structure(component)
        return component

    def lend(self, name: str, weight: str) -> torch.Tensor:
        """The numbers of a weight that the pipeline's own code computes with."""
        taken = self.host_weights.setdefault(name, {})
        if weight not in taken:
            given = self._numbers[name].get_parameter(weight)
            numbers = given.materialise() if isinstance(given, DeferredTensor) else given.detach()
            taken[weight] = numbers.float() if numbers.is_floating_point() else numbers.clone()
        size = sum(each.nbytes for weights in self.host_weights.values() for each in weights.values())
        if size > _MOST_ON_THE_HOST:
            raise UnsupportedModelError(
                f"the pipeline computes with {size / 2**20:.0f} MiB of weights itself, outside of calls of its components (of "
                f"its {name} {', '.join([*taken][:3])}, ...): no program can do that for it"
            )
        return taken[weight]

    def __call__(
        self, name: str, method: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """The handler of all components."""
        exact, tensors = call_of(name, method, function, args, kwargs)
        real, real_tensors = with_real_times(exact, tensors)
        call = next((each for each in (real, exact) if each in self.calls), None)
        if call is None:
            self._refuse_changed(name, getattr(function, "__self__", None))
            try:
                call, result = real, self._result(real, real_tensors)
            except (ExportError, UnsupportedModelError):
                if real == exact:
                    raise
                # It counts its time steps, so that none lies between two of them.
                call, result = exact, self._result(exact, tensors)
            self._results.append(result)
            self.calls.append(call)
            self.runs.append(self.run)
        result = self._results[self.calls.index(call)]
        specs = tensor_specs({"": result})
        zeros = (torch.zeros(spec["shape"], dtype=getattr(torch, spec["dtype"])) for _, spec in specs)
        return rebuilt(result, zeros)

    def _refuse_changed(self, name: str, component: Any) -> None:
        """A program is made of the component as the pipeline was given it, which is another one then."""
        changed = changed_parts(self._structures[name], structure(component))
        if changed:
            raise UnsupportedModelError(
                f"the pipeline changes its {name} while it runs ({changed}): a program computes the same in every run; make the "
                "change before, or take a pipeline that makes none"
            )

    def _result(self, call: Call, tensors: list[torch.Tensor]) -> Mapping[str, Any]:
        from qeff_framework.export.stages import stage
        from qeff_framework.export.trace import probe

        graph = CallGraph(self._components[call.component], call)
        with stage(f"probe run of {call.told}"):
            probe(graph, (tensors,))
        return graph.result


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What runs of a pipeline have asked of its components."""

    #: Each with the number of the first run that makes it.
    calls: list[tuple[Call, int]]
    #: Weights that the pipeline's own code computes with, by component and name.
    host_weights: Mapping[str, Mapping[str, torch.Tensor]]


def recorded(pipeline: Any, runs: Sequence[Mapping[str, Any]]) -> Recording:
    """What runs with these arguments ask of the components.

    Raises:
        InputError: the pipeline needs a package that is not installed, or a component that is not there.
        OptionError: the pipeline refuses the arguments, for instance a height.
        UnsupportedModelError: it does what no recorder can answer.
    """
    from qeff_framework.seam.isolation import exporting
    from qeff_framework.seam.weightless import weightless_copy

    with exporting():
        with_weights = components_with_weights(pipeline)
        own = {name: weightless_copy(each) for name, each in with_weights.items()}
        recorder = Recorder(own, with_weights)
        handed = {
            name: recorder.watch(
                name,
                hand_over(read_on_demand(weightless_copy(each), partial(recorder.lend, name)), name, recorder),
            )
            for name, each in own.items()
        }
        scheduler = {name: copy.deepcopy(each) for name, each in pipeline.components.items() if name == "scheduler"}
        recording = with_components(pipeline, {**handed, **scheduler})
        recording.set_progress_bar_config(disable=True)
        for recorder.run, arguments in enumerate(runs):
            try:
                # A caller may have seeded torch's own generator for the picture that is made afterwards.
                with torch.no_grad(), torch.random.fork_rng(devices=[]), muted_loggers("diffusers"):
                    recording(**arguments)
            except QEFFError:
                raise
            except ValueError as error:
                told = [f"{name}={value}" for name, value in arguments.items() if name in _TOLD]
                sizes = ", ".join(told) or "its own sizes"
                raise OptionError(f"{type(pipeline).__name__} refuses {sizes}: {error}") from error
            except Exception as error:
                missing = _missing_package(error)
                if missing:
                    raise InputError(
                        f"{type(pipeline).__name__} needs {missing}, which is not installed: pip install {missing}"
                    ) from error
                if absent := _absent_components(pipeline):
                    raise InputError(
                        f"{type(pipeline).__name__} lacks its {' and '.join(absent)}, without which it does not run "
                        f"({type(error).__name__}: {error}); load it with all its components"
                    ) from error
                raise UnsupportedModelError(
                    f"{type(pipeline).__name__} cannot be run on components without weights: {type(error).__name__}: {error}"
                ) from error
    return Recording(calls=list(zip(recorder.calls, recorder.runs, strict=True)), host_weights=recorder.host_weights)


def _absent_components(pipeline: Any) -> list[str]:
    """Those that read texts and are not there. Some pipelines do without one of several; others declare it optional and fail."""
    return [
        name
        for name, each in pipeline.components.items()
        if each is None and name.startswith(("text_encoder", "tokenizer"))
    ]


def _missing_package(error: Exception) -> str:
    """The package that a pipeline stumbles over, or "". Diffusers leaves out the import of one that is not there."""
    if isinstance(error, ModuleNotFoundError):
        return error.name or ""
    # Texts of Wan's image-to-video pipeline are cleaned with `ftfy`, which is a name of no module that was imported then.
    if isinstance(error, NameError) and error.name in _OPTIONAL_PACKAGES:
        return error.name if importlib.util.find_spec(error.name) is None else ""
    return ""
