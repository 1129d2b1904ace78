"""A task that the framework does not have, in one file: whether a text follows another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from qeff_framework.auto.task_model import TaskModel
from qeff_framework.runtime import CompiledRunner
from qeff_framework.shapes import EncoderShapes
from qeff_framework.tasks import TaskSpec

if TYPE_CHECKING:
    from qeff_framework.cli.command_result import CommandResult
    from qeff_framework.cli.results.request import ResultsRequest
    from qeff_framework.export.portable_graph import GraphRequest, PortableGraph


class ModelForNextSentencePrediction(TaskModel):
    task: ClassVar[str] = "next-sentence-prediction"
    transformers_class = "AutoModelForNextSentencePrediction"
    shapes = EncoderShapes


def next_sentence_graph(module: Any, request: GraphRequest) -> PortableGraph:
    from qeff_framework.export.encoder import sequence_classification_graph

    return sequence_classification_graph(module, request)


class CompiledNextSentencePrediction(CompiledRunner):
    def generate(self, inputs: Mapping[str, Any]) -> Any:
        return self._encoder(inputs)


def show(runner: CompiledNextSentencePrediction, request: ResultsRequest) -> CommandResult:
    from qeff_framework.cli.command_result import CommandResult

    tokenizer = runner.tokenizer
    assert tokenizer is not None
    logits = runner.generate({"input_ids": [tokenizer.encode(text) for text in request.texts]})
    return CommandResult(document={"follows": (logits[:, 0] > logits[:, 1]).tolist()})


SPEC = TaskSpec(
    name="next-sentence-prediction",
    models="models for the next sentence",
    model_path=f"{__name__}:ModelForNextSentencePrediction",
    transformers_mapping="NEXT_SENTENCE_PREDICTION",
    graph_path=f"{__name__}:next_sentence_graph",
    runner_path=f"{__name__}:CompiledNextSentencePrediction",
    results_path=f"{__name__}:show",
)
