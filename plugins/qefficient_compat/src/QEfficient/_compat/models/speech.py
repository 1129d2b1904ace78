"""Text from sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from QEfficient._compat.execution import padding_id
from QEfficient._compat.keywords import GENERATE
from QEfficient._compat.models.base import QEFFBaseModel
from QEfficient._compat.results import CloudAI100ExecInfoNew, PerfMetrics, padded
from QEfficient._compat.translation import translate


class QEFFAutoModelForSpeechSeq2Seq(QEFFBaseModel):
    """Text from sound; ``generate`` returns `CloudAI100ExecInfoNew`."""

    core_class = "QEFFAutoModelForSpeechSeq2Seq"

    def generate(
        self,
        inputs: Any,
        generation_len: int | None = None,
        streamer: Any = None,
        device_ids: Sequence[int] | int | None = None,
        **kwargs: Any,
    ) -> CloudAI100ExecInfoNew:
        """Writes down what a processor's output says."""
        settings = translate("generate", GENERATE, kwargs)
        program = self._load(device_ids)
        if streamer is not None:
            settings["streamer"] = streamer
        output = program.generate(inputs=dict(inputs), generation_len=generation_len, **settings)
        return CloudAI100ExecInfoNew(
            batch_size=output.batch_size,
            generated_ids=padded(output.generated_ids, padding_id(program.tokenizer), generation_len),
            perf_metrics=PerfMetrics.joined([output.perf_metrics]),
        )


class QEFFAutoModelForCTC(QEFFBaseModel):
    """Scores of letters for sound; ``generate`` returns ``{"logits": array}``."""

    core_class = "QEFFAutoModelForCTC"

    def generate(
        self, processor: Any, inputs: Any, device_ids: Sequence[int] | int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Reads a waveform with the checkpoint's processor, and scores it."""
        settings = translate("generate", GENERATE, kwargs)
        features = processor(inputs, return_tensors="np", sampling_rate=16_000)
        return {"logits": self._load(device_ids).generate(dict(features), **settings)}
