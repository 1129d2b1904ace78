"""Text from sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, ClassVar

from QEfficient._compat.execution import check_runtime
from QEfficient._compat.keywords import GENERATE
from QEfficient._compat.models.base import QEFFBaseModel
from QEfficient._compat.notices import say_once
from QEfficient._compat.results import CloudAI100ExecInfoNew, PerfMetrics, padded
from QEfficient._compat.translation import translate


class _SoundModel(QEFFBaseModel):
    """What models of sound share: a processor, for a module that was built in memory."""

    own_keywords: ClassVar[tuple[str, ...]] = ("processor",)

    @classmethod
    def core_arguments(cls, own: Mapping[str, Any]) -> dict[str, Any]:
        return {"processor": own["processor"]} if own.get("processor") is not None else {}

    @classmethod
    def _take_options(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        own = cls._take_own(kwargs)
        super()._take_options(kwargs)
        return cls.core_arguments(own)


class QEFFAutoModelForSpeechSeq2Seq(_SoundModel):
    """Text from sound, with encoder and decoder; ``generate`` returns `CloudAI100ExecInfoNew`.

    ``compile`` takes ``ctx_len=150`` and ``batch_size=1``.
    """

    core_class = "QEFFAutoModelForSpeechSeq2Seq"
    default_sizes: ClassVar[Mapping[str, Any]] = {"ctx_len": 150}

    def _sized(self, given: dict[str, Any]) -> dict[str, Any]:
        # The decoder reads one token after the other.
        given.pop("prefill_seq_len", None)
        return super()._sized(given)

    def generate(
        self,
        inputs: Any,
        generation_len: int | None = None,
        streamer: Any = None,
        device_ids: Sequence[int] | int | None = None,
        runtime_ai100: bool = True,
        **kwargs: Any,
    ) -> CloudAI100ExecInfoNew:
        """Writes down what a processor's output says.

        Ids begin with the decoder's start token; rows are filled with the end token. A streamer gets all tokens at the end.
        """
        check_runtime(runtime_ai100)
        settings = translate("generate", GENERATE, kwargs)
        if generation_len is not None:
            settings["max_new_tokens"] = generation_len
        tensors = dict(inputs)
        for name in [name for name in tensors if name.startswith(("decoder_", "input_ids", "position_ids"))]:
            del tensors[name]
            say_once(f"generate: {name} has no effect: the program knows what its decoder starts with")
        program = self._load(device_ids)
        begin = perf_counter()
        output = program.generate(tensors, **settings)
        seconds = perf_counter() - begin
        config = self._core.config
        start, end = (int(config.get(name) or 0) for name in ("decoder_start_token_id", "eos_token_id"))
        if streamer is not None:
            for token in [token for row in output.generated_ids for token in row]:
                streamer.put(_tensor(token))
            streamer.end()
        rows = [[start, *row] for row in output.generated_ids]
        rate = sum(map(len, output.generated_ids)) / seconds
        return CloudAI100ExecInfoNew(
            batch_size=len(rows),
            generated_ids=padded(rows, end, None if generation_len is None else generation_len + 1),
            # Encoder and decoder are not timed apart.
            perf_metrics=PerfMetrics(prefill_time=0.0, decode_perf=rate, total_perf=rate, total_time=seconds),
        )


def _tensor(token: int) -> Any:
    import torch

    return torch.tensor([token])


class QEFFAutoModelForCTC(_SoundModel):
    """Text from sound, frame by frame; ``generate`` returns the text of each clip.

    ``compile`` takes ``seq_len=480000``, samples of a clip, one length or several, and ``batch_size=1``.
    """

    core_class = "QEFFAutoModelForCTC"
    default_sizes: ClassVar[Mapping[str, Any]] = {"seq_len": 480_000}

    def generate(
        self,
        processor: Any,
        inputs: Any,
        device_ids: Sequence[int] | int | None = None,
        runtime_ai100: bool = True,
        **kwargs: Any,
    ) -> list[str]:
        """Reads waveforms, ``[samples]`` or ``[N, samples]``, with the checkpoint's processor."""
        import numpy as np

        check_runtime(runtime_ai100)
        settings = translate("generate", GENERATE, kwargs)
        clips = list(np.atleast_2d(np.asarray(inputs, dtype=np.float32)))
        texts: list[str] = self._load(device_ids).transcribe(clips, processor=processor, **settings)
        return texts
