"""Which calls a pipeline makes of its components: found out by running it on components that compute nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from qeff_framework.diffusion.calls import Call, CallGraph, call_of, rebuilt, tensor_specs
from qeff_framework.diffusion.components import hand_over
from qeff_framework.diffusion.folder import components_with_weights, with_components
from qeff_framework.errors import OptionError, QEFFError, UnsupportedModelError
from qeff_framework.thread_quiet import muted_loggers

#: Arguments that messages about a refused run name.
_TOLD = ("height", "width", "num_frames", "max_sequence_length")
#: Parts of a component that a message names.
_NAMED = 3


class Recorder:
    """Answers calls with zeros of the right shapes, and keeps each kind of call once, in the order of the first of each."""

    def __init__(self, components: Mapping[str, torch.nn.Module]) -> None:
        self._components = components
        self.calls: list[Call] = []
        #: For each call the number of the run that made it first.
        self.runs: list[int] = []
        self.run = 0
        self._results: list[Mapping[str, Any]] = []
        #: Of each component in the hands of the pipeline, see `_structure`.
        self._structures: dict[str, Any] = {}

    def watch(self, name: str, component: torch.nn.Module) -> torch.nn.Module:
        """Keeps in mind what a component is before the pipeline runs."""
        self._structures[name] = _structure(component)
        return component

    def __call__(
        self, name: str, method: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """The handler of all components."""
        call, tensors = call_of(name, method, function, args, kwargs)
        if call not in self.calls:
            self._refuse_changed(name, getattr(function, "__self__", None))
            self._results.append(self._result(call, tensors))
            self.calls.append(call)
            self.runs.append(self.run)
        result = self._results[self.calls.index(call)]
        specs = tensor_specs({"": result})
        zeros = (torch.zeros(spec["shape"], dtype=getattr(torch, spec["dtype"])) for _, spec in specs)
        return rebuilt(result, zeros)

    def _refuse_changed(self, name: str, component: Any) -> None:
        """A program is made of the component as the pipeline was given it, which is another one then."""
        before, now = self._structures[name], _structure(component)
        changed = [path for path in before | now if before.get(path) != now.get(path)]
        if changed:
            some = ", ".join(path or "itself" for path in changed[:_NAMED])
            raise UnsupportedModelError(
                f"the pipeline changes its {name} while it runs ({some}{', ...' if len(changed) > _NAMED else ''}): a program "
                "computes the same in every run; make the change before, or take a pipeline that makes none"
            )

    def _result(self, call: Call, tensors: list[torch.Tensor]) -> Mapping[str, Any]:
        from qeff_framework.export.stages import stage
        from qeff_framework.export.trace import probe

        graph = CallGraph(self._components[call.component], call)
        with stage(f"probe run of {call.told}"):
            probe(graph, (tensors,))
        return graph.result


def _structure(component: torch.nn.Module) -> dict[str, Any]:
    """What decides about what the parts of a component compute, beside their weights: their classes, settings and processors."""
    return {
        path: (type(part), {name: _setting(value) for name, value in vars(part).items() if not name.startswith("_")})
        for path, part in component.named_modules()
    }


def _setting(value: Any) -> Any:
    """Objects are told by their class: a pipeline may put another attention processor in place of one."""
    return value if isinstance(value, (bool, int, float, str, type(None))) else type(value)


def recorded_calls(pipeline: Any, runs: Sequence[Mapping[str, Any]]) -> list[tuple[Call, int]]:
    """The calls that runs with these arguments make, each with the number of the first run that makes it.

    Raises:
        OptionError: the pipeline refuses the arguments, for instance a height.
        UnsupportedModelError: it does what no recorder can answer.
    """
    from qeff_framework.seam.isolation import exporting
    from qeff_framework.seam.weightless import weightless_copy

    with exporting():
        own = {name: weightless_copy(each) for name, each in components_with_weights(pipeline).items()}
        recorder = Recorder(own)
        handed = {
            name: recorder.watch(name, hand_over(weightless_copy(each), name, recorder)) for name, each in own.items()
        }
        scheduler = {name: copy.deepcopy(each) for name, each in pipeline.components.items() if name == "scheduler"}
        recording = with_components(pipeline, {**handed, **scheduler})
        recording.set_progress_bar_config(disable=True)
        for recorder.run, arguments in enumerate(runs):
            try:
                with torch.no_grad(), muted_loggers("diffusers"):
                    recording(**arguments)
            except QEFFError:
                raise
            except ValueError as error:
                told = [f"{name}={value}" for name, value in arguments.items() if name in _TOLD]
                sizes = ", ".join(told) or "its own sizes"
                raise OptionError(f"{type(pipeline).__name__} refuses {sizes}: {error}") from error
            except Exception as error:
                raise UnsupportedModelError(
                    f"{type(pipeline).__name__} cannot be run on components without weights: {type(error).__name__}: {error}"
                ) from error
    return list(zip(recorder.calls, recorder.runs, strict=True))
