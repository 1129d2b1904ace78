"""Text from images and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from QEfficient._compat.execution import check_runtime, padding_id
from QEfficient._compat.keywords import GENERATE
from QEfficient._compat.models.causal_lm import GeneratingModel
from QEfficient._compat.results import CloudAI100ExecInfoNew, PerfMetrics, padded
from QEfficient._compat.translation import translate

if TYPE_CHECKING:
    import torch


class QEFFAutoModelForImageTextToText(GeneratingModel):
    """Text from images and text; ``generate`` returns `CloudAI100ExecInfoNew`."""

    core_class = "QEFFAutoModelForImageTextToText"
    own_keywords: ClassVar[tuple[str, ...]] = (*GeneratingModel.own_keywords, "kv_offload", "processor")

    @classmethod
    def core_arguments(cls, own: Mapping[str, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = {"kv_offload": own.get("kv_offload") is not False}
        return {**arguments, "processor": own["processor"]} if own.get("processor") is not None else arguments

    def __init__(self, model: torch.nn.Module | Any, **kwargs: Any) -> None:
        own = self._take_own(kwargs)
        core = model if isinstance(model, self.core_type()) else self.core_type()(model, **self.core_arguments(own))
        super().__init__(core, **kwargs)
        self.take_over(own)

    def generate(
        self,
        inputs: Any = None,
        tokenizer: Any = None,
        processor: Any = None,
        images: Any = None,
        prompts: Any = None,
        streamer: Any = None,
        device_ids: Sequence[int] | int | None = None,
        runtime_ai100: bool = True,
        generation_len: int | None = None,
        stream: bool = False,
        **kwargs: Any,
    ) -> CloudAI100ExecInfoNew:
        """Generates text from a processor's output, or from images (pictures, paths, addresses) and prompts."""
        check_runtime(runtime_ai100)
        settings = translate("generate", GENERATE, kwargs)
        program = self._load(device_ids)
        if streamer is not None:
            settings["stopping_criteria"] = [*(settings.get("stopping_criteria") or ()), _Streaming(streamer)]
        given = (
            {"inputs": dict(inputs)}
            if inputs is not None
            else {"images": images, "prompts": prompts, "processor": processor}
        )
        output = program.generate(stream=stream, generation_len=generation_len, **given, **settings)
        if streamer is not None:
            streamer.end()
        fill = padding_id(tokenizer if tokenizer is not None else program.tokenizer)
        return CloudAI100ExecInfoNew(
            batch_size=output.batch_size,
            generated_ids=padded(output.generated_ids, fill, generation_len),
            perf_metrics=PerfMetrics.joined([output.perf_metrics]),
        )


class _Streaming:
    """A stopping criterion that stops nothing, and gives each token to a streamer."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        del scores, kwargs
        self._streamer.put(input_ids[:, -1].cpu())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)
