"""Text from speech with encoder-decoder models: Whisper and its relatives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from qeff_framework.auto.given_prompts import require_beams, require_new_tokens, require_plain_loop
from qeff_framework.auto.sound import SoundModel, frames_of
from qeff_framework.contracts import Specialization, Task
from qeff_framework.errors import InputError, OptionError
from qeff_framework.model import GivenInput
from qeff_framework.plans import Program
from qeff_framework.shapes import SpeechSeq2SeqShapes
from qeff_framework.sources import CheckpointSource

if TYPE_CHECKING:
    from qeff_framework.relay import Relay

#: The programs.
ENCODER, DECODER = "encoder", "decoder"


class QEFFAutoModelForSpeechSeq2Seq(SoundModel):
    """A speech model with encoder and decoder, as two programs in one artifact: Whisper; others as the page of coverage says.

    ``compile`` takes ``ctx_len=448`` (the start tokens and the text of a window), ``batch_size=1``, and, for models that take
    clips of any length, ``seq_len`` (several lengths; 10 seconds by default). ``generate`` takes what the processor returns, of
    Whisper also for clips of more than 30 seconds; ``transcribe`` takes sound and returns texts. See
    `qeff_framework.runtime.speech.CompiledSpeechSeq2Seq`.

    Args:
        model: a Transformers module in float32, or a source that can load one.
        processor: the processor of a module that was built in memory; a checkpoint brings its own.

    Example::

        model = QEFFAutoModelForSpeechSeq2Seq.from_pretrained("openai/whisper-tiny")
        model.compile(backend="ort_sim", ctx_len=128)
        print(model.transcribe(waveform, sampling_rate=16_000, language="en"))
    """

    task: ClassVar[Task] = "speech-seq2seq"
    transformers_class = "AutoModelForSpeechSeq2Seq"
    shapes = SpeechSeq2SeqShapes
    _has_decoder = True

    def transcribe(self, audio: Any, **settings: Any) -> list[str]:
        """Texts with the compiled program; see `qeff_framework.runtime.speech.CompiledSpeechSeq2Seq.transcribe`."""
        runner: Any = self._runner or self.load()
        texts: list[str] = runner.transcribe(audio, **settings)
        return texts

    def require_input(self, given: GivenInput, sizes: Mapping[str, Any]) -> None:
        """Adds languages and tasks that the checkpoint does not know."""
        super().require_input(given, sizes)
        require_plain_loop(given.settings, self.task)
        shapes = self._sizes_among(sizes)
        temperature = given.settings.get("temperature")
        if given.settings.get("do_sample") and temperature is None:
            raise InputError("do_sample=True needs a temperature; give temperature=..., or leave do_sample out")
        if not temperature:  # as in Transformers, attempts at a temperature draw tokens instead of searching
            require_beams(given.settings, shapes, self._checkpoint_beams())
        require_new_tokens(given.settings, shapes.ctx_len)
        if isinstance(self._source, CheckpointSource):
            # Here, since it brings the loops of generation with it, which no export needs.
            from qeff_framework.speech.start_tokens import SpeechFacts

            facts = SpeechFacts.of(self._source.generation_config(), self.config, _language_names())
            if given.language is not None:
                facts.language_id(given.language)
            if given.speech_task is not None:
                facts.task_id(given.speech_task)

    def _programs(self, relay: Relay, options: object, shapes: Any) -> list[Program]:
        shapes = self._with_lengths(shapes)
        signal = self._program_inputs()
        encoder = self._plan_export(relay, options, program=ENCODER, program_inputs=signal)
        exported = self._export(encoder)
        _, frames, hidden_size = exported.outputs[0].shape
        entries = self._encoder_entries(shapes, frames, exported.metadata)
        slots = entries[-1].dims["num_frames"]
        if shapes.encoder_ctx_len is not None:
            if shapes.encoder_ctx_len < slots:
                raise OptionError(
                    f"encoder_ctx_len={shapes.encoder_ctx_len} is less than the {slots} frames that the encoder makes; leave it "
                    "out"
                )
            slots = shapes.encoder_ctx_len
        decoder = self._plan_export(relay, options, program=DECODER, program_inputs={"hidden_size": hidden_size})
        rows = {"batch_size": shapes.batch_size, "seq_len": 1, "ctx_len": shapes.ctx_len, "encoder_ctx_len": slots}
        reads = [
            Specialization(
                name=f"read_{entry.dims['num_frames']}", dims={**rows, "encoder_seq_len": entry.dims["num_frames"]}
            )
            for entry in entries
        ]
        decode = Specialization(name="decode", dims={**rows, "encoder_seq_len": 1})
        if isinstance(frames, int):
            entries = [Specialization(name=entry.name, dims={"batch_size": shapes.batch_size}) for entry in entries]
        return [
            Program(name=ENCODER, plan=encoder, specializations=tuple(entries)),
            Program(name=DECODER, plan=decoder, specializations=(*reads, decode)),
        ]

    def _encoder_entries(self, shapes: Any, frames: int | str, metadata: Any) -> list[Specialization]:
        """One for each length of sound, with its frames, ascending."""
        found = []
        for entry in shapes.specializations():
            count = (
                frames if isinstance(frames, int) else frames_of(entry.dims["seq_len"], metadata["frames"], self.name)
            )
            if count < 2:
                raise OptionError(f"{self.name} makes {count} frame of the shortest seq_len; give a greater one")
            found.append(Specialization(name=entry.name, dims={**entry.dims, "num_frames": count}))
        return found

    def _complete_export(self, directory: Path) -> Mapping[str, Any]:
        """Adds the names of the languages that the checkpoint knows by their codes."""
        facts = super()._complete_export(directory)
        file = directory / "generation_config.json"
        known = json.loads(file.read_text(encoding="utf-8")).get("lang_to_id") if file.is_file() else None
        if not known:
            return facts
        names = {name: code for name, code in _language_names().items() if f"<|{code}|>" in known}
        return {**facts, "language_names": names}


def _language_names() -> Mapping[str, str]:
    """Code by name of a language."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return TO_LANGUAGE_CODE
