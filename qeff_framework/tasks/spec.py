"""What the framework must know about a task."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qeff_framework.cli.command_result import CommandResult
    from qeff_framework.cli.results.request import ResultsRequest
    from qeff_framework.contracts import ExecutionSession, Task
    from qeff_framework.coverage.task_coverage import TaskCoverage
    from qeff_framework.export.portable_graph import GraphRequest, PortableGraph
    from qeff_framework.model import QEFFBaseModel
    from qeff_framework.runtime import CompiledRunner


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task: which models are for it, how they become a graph, and who runs and shows the program.

    What belongs to one stage is named as ``"module:name"`` and imported when that stage needs it: running a program must not
    import what exports it.
    """

    name: Task
    #: The models of the task in the plural, for messages: ``"text encoders"``.
    models: str
    #: The class that users start from. It says which class of Transformers loads a checkpoint and which sizes are compiled.
    model_path: str
    #: The mapping of Transformers that lists the classes with this head (``"CAUSAL_LM"`` of
    #: ``MODEL_FOR_CAUSAL_LM_MAPPING_NAMES``); `None` for models without a head.
    transformers_mapping: str | None
    #: The models read a source with an encoder and generate with a decoder (``is_encoder_decoder`` in their config).
    is_encoder_decoder: bool = False
    #: Keywords of ``from_pretrained`` that only this task has.
    model_options: tuple[str, ...] = ()
    #: ``(module: PreTrainedModel, GraphRequest) -> PortableGraph``.
    graph_path: str
    #: Subclass of `runtime.CompiledRunner`, or a function that makes one of a session.
    runner_path: str
    #: What ``qeff generate`` runs and prints: ``(runner, ResultsRequest) -> CommandResult``.
    results_path: str
    #: Programs generate text: the options of text generation apply.
    generates_text: bool = False
    #: Prompts are questions about a text, which must be given too.
    needs_context: bool = False
    #: Prompts may come with images.
    reads_images: bool = False
    #: Works on sound.
    reads_audio: bool = False
    #: Works on texts; else on images or sound alone.
    takes_prompts: bool = True
    #: Programs make pictures from prompts, which ``qeff generate`` writes to files.
    makes_pictures: bool = False
    #: How ``qeff coverage`` checks model types; `None` for a task that is covered together with another.
    coverage_path: str | None = None

    @cached_property
    def model_class(self) -> type[QEFFBaseModel]:
        """The class that users start from."""
        model_class: type[QEFFBaseModel] = _imported(self.model_path)
        return model_class

    @cached_property
    def build_graph(self) -> Callable[[Any, GraphRequest], PortableGraph]:
        """Traces and translates a module."""
        build: Callable[[Any, GraphRequest], PortableGraph] = _imported(self.graph_path)
        return build

    @cached_property
    def runner(self) -> Callable[[ExecutionSession], CompiledRunner]:
        """The class that runs a program, made of a session; or what chooses it by the program."""
        runner: Callable[[ExecutionSession], CompiledRunner] = _imported(self.runner_path)
        return runner

    @cached_property
    def show_results(self) -> Callable[[Any, ResultsRequest], CommandResult]:
        """Runs a loaded program for ``qeff generate``."""
        show: Callable[[Any, ResultsRequest], CommandResult] = _imported(self.results_path)
        return show

    @cached_property
    def coverage(self) -> TaskCoverage | None:
        """How ``qeff coverage`` checks model types."""
        coverage: TaskCoverage | None = _imported(self.coverage_path) if self.coverage_path else None
        return coverage


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
