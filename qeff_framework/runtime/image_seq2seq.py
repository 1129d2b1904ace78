"""Text from images alone: the loaded programs of a model whose encoder reads an image, and whose decoder attends to it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import InputError
from qeff_framework.generation import GenerationOutput
from qeff_framework.generation.output import PerfMetrics
from qeff_framework.images.units import image_units
from qeff_framework.options import check_switches
from qeff_framework.runtime.image_program import ImageProgram
from qeff_framework.runtime.processed import ProcessedRunner, check_mapping
from qeff_framework.runtime.program_sessions import ProgramSessions
from qeff_framework.runtime.text_generation import generation_defaults
from qeff_framework.speech.decoder import Question, SpeechDecoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qeff_framework.generation import GenerationSettings
    from qeff_framework.generation.rows import Row
    from qeff_framework.images.units import Unit

_MASK, _PROMPT = "attention_mask", "decoder_input_ids"
#: Row, token, and whether it is the last one of the row.
OnToken = Callable[[int, int, bool], None]


class CompiledImageSeq2Seq(ProcessedRunner):
    """Text from one image for each row; the most likely tokens. Running needs NumPy alone."""

    def __init__(self, session: ExecutionSession) -> None:
        super().__init__(session)
        if not isinstance(session, ProgramSessions) or not {"vision", "language"} <= {*session.sessions}:
            raise InputError(
                f"{session.compiled.directory} does not hold both programs, that of the images and that of the decoder which "
                "attends to them"
            )
        self._vision = ImageProgram(session.sessions["vision"])
        self._decoder = SpeechDecoder(session.sessions["language"])
        self._defaults = generation_defaults(session.compiled.directory)

    def generate(
        self,
        processor: Any = None,
        prompts: Sequence[str] | str | None = None,
        *,
        images: Sequence[Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        stream: bool = False,
        streamer: Any = None,
        generation_len: int | None = None,
        generation_config: Any = None,
        **settings: Any,
    ) -> GenerationOutput:
        """Generates a text for each image.

        Args:
            processor: the checkpoint's processor; `None` takes the one that the artifact carries.
            prompts: what the decoder begins with, for each image; nothing but its start token if they are not given.
            images: one image for each prompt: a PIL image, an array ``[H, W, 3]``, or a list that holds one.
            inputs: instead of both, what the processor returns, and ``decoder_input_ids [N, P]`` for prompts. As keywords too.
            stream: print the text while it is generated; of several images each when it is complete.
            streamer: a Transformers streamer; one image only.
            generation_len: new tokens per image at most; by default the checkpoint's limit, else what is left of ``ctx_len``.
            generation_config: a Transformers `GenerationConfig`.
            **settings: single settings of a generation config.

        Raises:
            InputError: no images, images of another size than was compiled, or settings that the program cannot honour.
        """
        from qeff_framework.generation import resolve_settings

        tensors = {name: settings.pop(name) for name in (*self._vision.names, _PROMPT) if name in settings}
        if inputs is None and isinstance(processor, Mapping):
            processor, inputs = None, processor
        check_switches("generate", stream=stream)
        given = inputs if inputs is not None else tensors
        check_mapping(given, "pixel_values")
        if bool(given) == (images is not None):
            raise InputError("give images=[...], or what a processor returns, and not both")
        if images is not None:
            given = self._processed(processor or self.processor, images, prompts)
        elif prompts is not None:
            raise InputError("prompts belong to images=[...]; beside what a processor returns, give decoder_input_ids")
        if generation_len is not None:
            settings["generation_len"] = generation_len
        resolved = resolve_settings(self._defaults, generation_config, **settings)
        if resolved.do_sample:
            raise InputError(
                "do_sample=True is not supported for models whose decoder attends to an image: the most likely tokens are taken; "
                "leave it out"
            )
        self._decoder.check(resolved)
        units = image_units({name: given[name] for name in self._vision.names if given.get(name) is not None})
        for unit in units:
            self._check(unit)
        prompts_of_units = self._prompts(given.get(_PROMPT), len(units), resolved)
        on_token = self._on_token(len(units), resolved, stream=stream, streamer=streamer)
        if streamer is not None:
            streamer.put(_tensor([prompts_of_units[0]]))
        output = self._generated(units, prompts_of_units, resolved, on_token)
        if streamer is not None:
            streamer.end()
        return output

    def image_embeddings(self, inputs: Mapping[str, Any]) -> list[NDArray[np.float32]]:
        """What the encoder makes of each image: ``[T, D]``.

        Args:
            inputs: what the processor returns.

        Raises:
            InputError: images of another size than was compiled.
        """
        units = image_units({name: inputs[name] for name in self._vision.names if inputs.get(name) is not None})
        for unit in units:
            self._check(unit)
        return [self._vision(unit) for unit in units]

    def text_generator(self) -> Any:
        """Raises `InputError`: such a program is for `generate` alone."""
        raise InputError(
            f"{self.compiled.directory} holds an encoder of images and a decoder that attends to them; an engine and a server "
            "take models of images and prompts, use generate"
        )

    def _check(self, unit: Unit) -> None:
        if not self._vision.takes(unit):
            told = ", ".join(f"{name} {list(value.shape)}" for name, value in unit.items())
            raise InputError(
                f"an image has {told}, the program was compiled for {self._vision.told}; resize the image, or compile with its "
                "height and width"
            )

    def _processed(self, processor: Any, images: Sequence[Any], prompts: Sequence[str] | str | None) -> dict[str, Any]:
        given = list(images) if isinstance(images, (list, tuple)) else [images]
        given = [each[0] if isinstance(each, (list, tuple)) and len(each) == 1 else each for each in given]
        if any(each is None or isinstance(each, (list, tuple)) for each in given):
            raise InputError("such a model reads one image for each text; give one, not none or several")
        texts = None if prompts is None else [prompts] if isinstance(prompts, str) else list(prompts)
        if texts is not None and len(texts) != len(given):
            raise InputError(f"{len(texts)} prompts and {len(given)} images were given; give one prompt for each image")
        try:
            processed = dict(getattr(processor, "image_processor", processor)(images=given, return_tensors="np"))
        except Exception as error:
            raise InputError(f"the processor does not take the {len(given)} images: {error}") from error
        if texts is not None:
            if self.tokenizer is None:
                raise InputError(self.no_tokenizer)
            processed[_PROMPT] = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return processed

    def _prompts(self, given: Any, count: int, settings: GenerationSettings) -> list[list[int]]:
        """What each decoder starts with. As in Transformers the start token comes first unless the prompts begin with it."""
        start = settings.decoder_start_token_id
        start = self._defaults.get("bos_token_id") if start is None else start
        prompts = [[] for _ in range(count)] if given is None else [[int(token) for token in row] for row in given]
        if len(prompts) != count:
            raise InputError(f"decoder_input_ids has {len(prompts)} rows for {count} images")
        if all(row and row[0] == start for row in prompts):
            return prompts
        if start is None:
            raise InputError(
                "nothing says what the decoder starts with: the checkpoint names neither a decoder_start_token_id nor a "
                "bos_token_id; give decoder_start_token_id=..."
            )
        return [[int(start), *row] for row in prompts]

    def _on_token(self, count: int, settings: GenerationSettings, *, stream: bool, streamer: Any) -> OnToken:
        """What is called with each token of a row."""
        from qeff_framework.generation.streaming import Printer

        if stream and self.tokenizer is None:
            raise InputError(f"{self.no_tokenizer}; or leave stream=True out")
        if streamer is not None and (count != 1 or settings.num_beams > 1):
            raise InputError(
                f"a streamer gets the tokens of one image as they are chosen; {count} images and num_beams={settings.num_beams} "
                "were given: call generate for each image, with num_beams=1"
            )
        printer = Printer(self.tokenizer, count, sys.stdout) if stream and self.tokenizer is not None else None

        def tell(row: int, token: int, is_last: bool) -> None:
            if printer is not None:
                printer.add(row, token, is_last=is_last)
            if streamer is not None:
                streamer.put(_tensor([token]))

        return tell

    def _generated(
        self,
        units: Sequence[Unit],
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings,
        on_token: OnToken,
    ) -> GenerationOutput:
        begun = time.perf_counter()
        first: list[float] = []
        steps: list[float] = []

        def note(rows: Sequence[Row]) -> None:
            steps.append(time.perf_counter())
            for row in rows:
                on_token(row.index, row.generated[-1], row.finish_reason is not None)

        tokens: list[list[int]] = []
        size = self._decoder.batch_size // settings.num_beams
        for begin in range(0, len(units), size):
            group, of_group = units[begin : begin + size], prompts[begin : begin + size]
            encoded = np.stack([self._vision(unit) for unit in group])
            lengths = [self._length(unit, encoded.shape[1]) for unit in group]
            questions = [
                Question(prompt=prompt, limit=self._limit(len(prompt), settings), clip=begin + row)
                for row, prompt in enumerate(of_group)
            ]
            before = len(steps)
            answers = self._decoder.decode(encoded, lengths, questions, settings, on_step=note)
            tokens += [answer.tokens for answer in answers]
            if settings.num_beams > 1:  # which text is the best is known at its end
                for number, answer in enumerate(answers, begin):
                    for place, token in enumerate(answer.tokens, 1):
                        on_token(number, token, place == len(answer.tokens))
            first.append(steps[before + max(map(len, of_group)) - 1])
        total, count = time.perf_counter() - begun, sum(map(len, tokens))
        prefill = first[0] - begun if len(first) == 1 else 0.0
        tokenizer = self.tokenizer
        return GenerationOutput(
            batch_size=size,
            prompts=[tokenizer.decode(list(prompt)) for prompt in prompts] if tokenizer else [],
            prompt_lengths=[len(prompt) for prompt in prompts],
            generated_ids=tokens,
            generated_texts=[tokenizer.decode(row) for row in tokens] if tokenizer else [],
            finish_reasons=["eos" if row and row[-1] in settings.eos_token_ids else "length" for row in tokens],
            perf_metrics=PerfMetrics(
                prefill_time=prefill,
                decode_perf=(count - len(tokens)) / (total - prefill) if total > prefill else 0.0,
                total_perf=count / total if total > 0 else 0.0,
                total_time=total,
                decode_steps=len(steps),
                time_to_first_token=first[0] - begun,
                note=self.session.info.get("note", ""),
            ),
        )

    @staticmethod
    def _length(unit: Unit, tokens: int) -> int:
        """The vectors of an image that are no padding."""
        mask = unit.get(_MASK)
        return tokens if mask is None or mask.size != tokens else int(mask.sum())

    def _limit(self, started: int, settings: GenerationSettings) -> int:
        """New tokens behind `started` start tokens."""
        room = self._decoder.ctx_len - started
        wanted = settings.max_new_tokens
        if wanted is None:
            return room if settings.max_length is None else max(1, min(settings.max_length - started, room))
        if room < 1 or (wanted > room and not settings.limit_is_advice):
            raise InputError(
                f"{started} start tokens and {wanted} new ones are more than the compiled ctx_len={self._decoder.ctx_len}; ask "
                f"for at most {max(room, 0)}, or compile with a greater ctx_len"
            )
        return min(wanted, room)


def _tensor(values: list[Any]) -> Any:
    """As Transformers' streamers take tokens."""
    import torch

    return torch.tensor(values)
