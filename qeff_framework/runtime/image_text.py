"""Text from images and text, with loaded programs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import InputError, QEFFError
from qeff_framework.images.rows import NO_BLOCK, ROPE_POSITIONS, TILES_SEEN, VISION_EMBEDS, RowImages
from qeff_framework.images.units import PIXELS, VIDEO_PIXELS, image_units
from qeff_framework.options import check_switches
from qeff_framework.runtime.image_program import ImageProgram
from qeff_framework.runtime.processed import check_mapping
from qeff_framework.runtime.program_sessions import ProgramSessions
from qeff_framework.runtime.runner import CompiledRunner
from qeff_framework.runtime.text_generation import generation_defaults
from qeff_framework.session_use import use_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qeff_framework.generation import GenerationOutput, GenerationSettings, TextGenerator
    from qeff_framework.images.units import Unit
    from qeff_framework.tokenization import ChatOptions
    from qeff_framework.tokenization.chat import Conversation

#: Input of a decoder that attends to what an encoder in another program has made of its source.
HIDDEN_STATES = "encoder_hidden_states"
_LANGUAGE, _VISION = "language", ("vision", "video")
_OF_TEXT = ("input_ids", "attention_mask")
#: Keys of the parts of messages that hold what is seen.
_SEEN = ("image", "video")
_PARTS = frozenset({"text", "image", "video"})
#: Beginnings of the names of tensors that hold what is seen or heard.
_CONTENTS = ("pixel_values", "input_features", "input_values")
#: What a processor returns for any model.
_ALWAYS_KNOWN = (PIXELS, "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True, kw_only=True)
class ImagePrompt:
    """A prompt as the processor has prepared it. Its images have not been through the program."""

    ids: list[int]
    units: list[Unit]
    #: ``[P, G]``: which tiles each token sees, where the processor tells.
    sees: NDArray[np.int64] | None = None


class CompiledImageTextToText(CompiledRunner):
    """Text generation from images and text."""

    def __init__(self, session: ExecutionSession) -> None:
        from qeff_framework.generation import TextGenerator

        super().__init__(session)
        #: The programs by name; one that does both stands for the language model, and has the image's size.
        sessions = session.sessions if isinstance(session, ProgramSessions) else {_LANGUAGE: session}
        self._is_one = not isinstance(session, ProgramSessions)
        self._vision = [
            ImageProgram(program) for name, program in sessions.items() if name.startswith(_VISION) or self._is_one
        ]
        self._video_lengths = _video_lengths(sessions)
        #: A processor's tokenizer is for one thread.
        self._processing = threading.Lock()
        self._language: TextGenerator | None = None
        language = sessions.get(_LANGUAGE)
        if language is None:
            return
        self._facts: Mapping[str, Any] = language.compiled.metadata
        fed = {each.name: each.shape for each in language.compiled.inputs}
        #: The ids that stand for features, by what is seen.
        self._tokens = {"image": int(self._facts["image_token_id"])}
        if (video := self._facts.get("video_token_id")) is not None:
            self._tokens["video"] = int(video)
        #: Numbers of an image token; of one program that attends to images nobody else needs them.
        self._features = int(fed[VISION_EMBEDS][-1]) if VISION_EMBEDS in fed else 0
        #: Image tokens of a tile, where layers attend to images beside the text; 0 where image tokens are read like text.
        self._tile_tokens = int(self._facts.get("tile_tokens", 0))
        self._rope_axes = int(fed[ROPE_POSITIONS][0]) if ROPE_POSITIONS in fed else 1
        self._language = TextGenerator(language, generation_defaults=generation_defaults(session.compiled.directory))

    @property
    def _generator(self) -> TextGenerator:
        if self._language is None:
            raise InputError(
                f"{self.compiled.directory} was compiled with skip_lang and generates no text; load it beside an artifact of the "
                "language model: language.take_images_from(vision)"
            )
        return self._language

    def take_images_from(self, vision: CompiledImageTextToText) -> None:
        """Encodes images with the programs of another artifact of the same model, which may be loaded on another device.

        Args:
            vision: an artifact that holds ``vision`` programs. It stays the caller's to close.

        Raises:
            InputError: it holds none, or their features are of another size.
        """
        if not vision._vision:
            raise InputError(f"{vision.compiled.directory} was compiled with skip_vision and encodes no images")
        for part in (self, vision):
            if part._is_one:  # noqa: SLF001 - of this class
                raise InputError(
                    f"{part.compiled.directory} is one program for images and text (kv_offload=False), whose image features stay "
                    "inside; compile two programs (kv_offload=True)"
                )
        self._generator  # noqa: B018 - raises where there is no language model
        widths = {program.features for program in vision._vision}
        if widths != {self._features}:
            raise InputError(
                f"the programs of {vision.compiled.directory} return {sorted(widths)} numbers for an image token, and the "
                f"language model takes {self._features}; compile both from one checkpoint"
            )
        self._vision, self._video_lengths = list(vision._vision), vision._video_lengths

    @cached_property
    def processor(self) -> Any:
        """The processor that the artifact carries. Needs Transformers, and what the processor itself needs, such as Pillow."""
        directory = self.compiled.directory / "processor"
        if not directory.is_dir():
            raise InputError(f"{self.compiled.directory} carries no processor; pass processor=..., or what one returns")
        from transformers import AutoProcessor

        try:
            load: Any = AutoProcessor.from_pretrained
            return load(directory)
        except ImportError as error:
            from qeff_framework.sources.quiet import missing_library

            raise InputError(
                f"the processor in {self.compiled.directory} cannot be loaded here: {missing_library(error)}; or pass what a "
                "processor returns"
            ) from error

    def text_generator(self) -> TextGenerator:
        """The generator over the language program, with the tokenizer that the artifact carries."""
        self._generator.tokenizer = self.tokenizer
        return self._generator

    def conversation(self, messages: Conversation, chat: ChatOptions | None = None) -> ImagePrompt:
        """Renders messages by the processor's chat template and prepares their images; any thread may call it.

        Args:
            messages: the content of each is a text, or parts: ``{"type": "text", "text": ...}``, ``{"type": "image",
                "image": ...}`` with what the processor takes as an image, and ``{"type": "video", "video": ...}`` with a path or
                frames.
            chat: how they are rendered.

        Raises:
            InputError: messages that the template or the processor refuses, or images of a size that no program was compiled for.
        """
        from qeff_framework.tokenization import ChatOptions
        from qeff_framework.tokenization.chat import chosen_template, render_chat

        chat = chat if chat is not None else ChatOptions()
        # Templates of such models look for the images in lists of parts, and some read nothing else.
        told = [{**message, "content": _parts(message.get("content"))} for message in messages]
        parts = [part for message in told for part in message["content"] if isinstance(part, dict)]
        images, videos = ([part[kind] for part in parts if kind in part] for kind in _SEEN)
        plain = [{**message, "content": [_without_pixels(part) for part in message["content"]]} for message in told]
        processor = self.processor
        tokenizer = getattr(processor, "tokenizer", None)
        templates = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
        tokens = getattr(tokenizer, "special_tokens_map", {})
        text = render_chat(chosen_template(templates, chat), plain, chat, tokens, parts=_PARTS)
        try:
            with self._processing:
                processed = self._processed_text(processor, text, images, videos)
        except QEFFError:
            raise
        except Exception as error:
            raise InputError(
                f"the processor does not take the conversation with {_counted(images, videos)}: {error}"
            ) from error
        self._refuse_other_contents(processed)
        prompt = ImagePrompt(
            ids=(ids := self._ids(processed)[0]),
            units=self._units(processed),
            sees=self._sees(processed, [ids])[0],
        )
        for unit in prompt.units:
            self._program_for(unit)
        return prompt

    def row_images(self, prompt: ImagePrompt) -> RowImages:
        """What the programs make of the images of a prompt. For the thread of the session.

        Raises:
            InputError: more images than fit, or other image tokens than the images give.
        """
        ((_, images),) = self._matched([prompt.ids], prompt.units, [prompt.sees])
        return images

    def generate(
        self,
        processor: Any = None,
        prompts: Sequence[str] | str | None = None,
        *,
        images: Sequence[Any] | None = None,
        videos: Sequence[Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        stream: bool = False,
        streamer: Any = None,
        generation_len: int | None = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        **settings: Any,
    ) -> GenerationOutput:
        """Generates text for prompts with images.

        Args:
            processor: the checkpoint's processor; `None` takes the one that the artifact carries. What a processor returns may
                stand here too.
            prompts: a text for each prompt.
            images: the images of each prompt: one (a PIL image, an array ``[H, W, 3]``, a path or an address), a list, or `None`.
                Of a single prompt the images alone.
            videos: the videos of each prompt: one, a list, or `None`; a path, whose frames the processor chooses, or frames:
                an array ``[T, H, W, 3]`` or a list of images. They stand behind the images of their prompt.
            inputs: instead of all three, what a processor returns for one prompt or several: ``input_ids``, ``attention_mask``,
                ``pixel_values`` and what belongs to it. It may be spread over keywords too.
            stream: print the text while it is generated; of several prompts each when it is complete.
            streamer: a Transformers streamer; one prompt only.
            generation_len: new tokens per prompt at most; by default the checkpoint's limit, else what is left of ``ctx_len``.
            generation_config: a Transformers `GenerationConfig`.
            logits_processor: a Transformers `LogitsProcessorList`.
            stopping_criteria: a Transformers `StoppingCriteriaList`.
            **settings: single settings of a generation config, such as ``do_sample=True``.

        Raises:
            InputError: nothing to generate from, images of a size that no program was compiled for, more images than fit, or
                image tokens without images.
        """
        if inputs is None and isinstance(processor, Mapping):
            processor, inputs = None, processor
        tensors = {
            name: settings.pop(name) for name in list(settings) if name in _OF_TEXT or self._is_image_input(name)
        }
        check_switches("generate", stream=stream)
        if inputs is not None:
            check_mapping(inputs, "input_ids and pixel_values")
        given = [inputs] if inputs is not None else [tensors] if tensors else []
        if (prompts is not None) + len(given) != 1:
            raise InputError("give prompts=[...] with images=[...], or what a processor returns, and not both")
        if prompts is None and (images is not None or videos is not None):
            raise InputError("images and videos belong to prompts=[...]; what a processor returns holds its own")
        generator = self._generator
        generator.tokenizer = self.tokenizer
        if generation_len is not None:
            settings["generation_len"] = generation_len
        # Settings that cannot be honoured are told before an image is prepared.
        resolved = generator.settings(generation_config, **settings)
        if prompts is not None:
            given = self._processed(processor or self.processor, prompts, images, videos)
        rows = [row for each in given for row in self._rows(each, resolved)]
        return generator.generate_ids(
            [ids for ids, _ in rows],
            resolved,
            images=[of_row for _, of_row in rows],
            streamer=streamer,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            on_step=self._printer(len(rows) * resolved.num_return_sequences) if stream else None,
        )

    def image_embeddings(self, inputs: Mapping[str, Any]) -> list[NDArray[np.float32]]:
        """What the ``vision`` program makes of each image, or tile of one: ``[N, F]`` for N image tokens.

        F is the width of the language model, and as much again for each set of features that goes to a later layer.

        Args:
            inputs: what a processor returns: ``pixel_values`` and what belongs to it.

        Raises:
            InputError: images of a size that no program was compiled for.
        """
        return [self._encoded(unit) for unit in self._units(inputs)]

    def _printer(self, count: int) -> Any:
        import sys

        from qeff_framework.generation.streaming import Printer

        if self.tokenizer is None:
            raise InputError(f"{self.no_tokenizer}; or leave stream=True out")
        return Printer(self.tokenizer, count, sys.stdout).put

    def _is_image_input(self, name: str) -> bool:
        return name in (*_ALWAYS_KNOWN, TILES_SEEN) or any(name in program.names for program in self._vision)

    # --- what a processor makes of images and texts --------------------------------------------------------------------

    def _processed(
        self, processor: Any, prompts: Sequence[str] | str, images: Any, videos: Any
    ) -> list[Mapping[str, Any]]:
        from qeff_framework.runtime.video_prompts import of_each_prompt, opened_videos

        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        per_prompt = _images_per_prompt(images, len(texts))
        films = [opened_videos(of_text) for of_text in of_each_prompt(videos, len(texts))]
        processed = []
        for number, (text, of_text, of_time) in enumerate(zip(texts, per_prompt, films, strict=True)):
            try:
                rendered = _rendered(processor, text, len(of_text), len(of_time))
                processed.append(self._processed_text(processor, rendered, of_text, of_time))
            except QEFFError:
                raise
            except Exception as error:
                raise InputError(
                    f"the processor does not take prompt {number} with {_counted(of_text, of_time)}: {error}"
                ) from error
        return processed

    def _processed_text(
        self, processor: Any, text: str, images: Sequence[Any], videos: Sequence[Any]
    ) -> Mapping[str, Any]:
        """What the processor makes of a rendered text with images and videos."""
        # Frames that are images: as many as the prompt has room for.
        room = 0 if self._language is None or not self._vision else self._language.shape.prefill.vision
        frames = room // self._vision[0].tokens - len(images) if room else 1
        return _with_videos(processor, text, images, videos, self._video_lengths, frames)

    # --- rows ----------------------------------------------------------------------------------------------------------

    def _rows(self, inputs: Mapping[str, Any], settings: GenerationSettings) -> list[tuple[list[int], RowImages]]:
        """Token ids and images of each prompt of a processor's output."""
        self._refuse_other_contents(inputs)
        # Padding that no mask tells is found as that of prompts of text is.
        of_text = {name: inputs[name] for name in _OF_TEXT if inputs.get(name) is not None}
        prompts = [list(row) for row in self._generator.tokenized(of_text, settings).ids]
        return self._matched(prompts, self._units(inputs), self._sees(inputs, prompts))

    @staticmethod
    def _ids(inputs: Mapping[str, Any]) -> list[list[int]]:
        from qeff_framework.tokenization import normalize_inputs

        return normalize_inputs({name: inputs[name] for name in _OF_TEXT if inputs.get(name) is not None}, None)

    def _sees(self, inputs: Mapping[str, Any], prompts: Sequence[Sequence[int]]) -> list[NDArray[np.int64] | None]:
        """Which tiles each token of each prompt sees, ``[P, G]``; `None` where the processor does not tell."""
        given = inputs.get(TILES_SEEN)
        if given is None or not self._tile_tokens:
            return [None] * len(prompts)
        of_rows = np.asarray(given)
        mask = inputs.get("attention_mask")
        is_token = np.ones(of_rows.shape[:2], dtype=bool) if mask is None else np.asarray(mask).astype(bool)
        found = [of_row[kept].reshape(int(kept.sum()), -1) for of_row, kept in zip(of_rows, is_token, strict=True)]
        if [len(row) for row in found] != [len(prompt) for prompt in prompts]:
            raise InputError(
                f"{TILES_SEEN} has not a row for each token of input_ids; pass what the processor returns as it is, with its "
                "attention_mask"
            )
        return found

    def _matched(
        self, prompts: Sequence[list[int]], units: Sequence[Unit], sees: Sequence[NDArray[np.int64] | None]
    ) -> list[tuple[list[int], RowImages]]:
        """The prompts, each with the features of its images: as many as its image tokens need, in order."""
        # A token stands for an image where layers attend to it, else for one of its features.
        counts = [1 if self._tile_tokens else self._program_for(unit).tokens for unit in units]
        rows: list[tuple[list[int], RowImages]] = []
        of_rows: list[Sequence[Unit]] = []
        left = {
            modality: deque(
                (unit, count)
                for unit, count in zip(units, counts, strict=True)
                if self._program_for(unit).modality == modality
            )
            for modality in self._tokens
        }
        for number, ids in enumerate(prompts):
            own: list[tuple[int, Unit]] = []
            for modality, token_id in self._tokens.items():
                places = [place for place, token in enumerate(ids) if token == token_id]
                count = 0
                while count < len(places) and left[modality]:
                    unit, tokens = left[modality].popleft()
                    own.append((places[count], unit))
                    count += tokens
                if count != len(places):
                    raise InputError(
                        f"prompt {number} has {len(places)} {modality} tokens (id {token_id}), and the {modality}s that are left "
                        f"give {count}; pass the processor's output as it is, with all its tensors"
                    )
            of_row = [unit for _, unit in sorted(own, key=lambda each: each[0])]
            rows.append((ids, self._row(ids, of_row, sees[number])))
            of_rows.append(of_row)
        for modality, units_left in left.items():
            if units_left:
                given = sum(self._program_for(unit).modality == modality for unit in units)
                raise InputError(
                    f"{given} {modality}s (or tiles of {modality}s) were given, and the prompts have places for "
                    f"{given - len(units_left)}"
                )
        if self._is_one:
            return rows  # the program encodes images when their prompt is read
        # Whatever does not fit is known before the first image is encoded.
        if self._tile_tokens:
            return [
                (ids, replace(row, pixels=[{VISION_EMBEDS: self._encoded(unit)} for unit in own]))
                for (ids, row), own in zip(rows, of_rows, strict=True)
            ]
        return [
            (ids, replace(row, embeds=np.concatenate([self._encoded(unit) for unit in own])) if own else row)
            for (ids, row), own in zip(rows, of_rows, strict=True)
        ]

    def _refuse_other_contents(self, inputs: Mapping[str, Any]) -> None:
        """A video or sound whose tensors no program takes must not become text."""
        known = {PIXELS, *(name for program in self._vision for name in program.names)}
        lost = [
            name
            for name, value in inputs.items()
            if value is not None and name not in known and name.startswith(_CONTENTS)
        ]
        if lost and self._vision:
            raise InputError(
                f"no program of {self.compiled.directory} takes {', '.join(lost)}: leave it out, or compile with num_frames for "
                "videos; sound is not supported beside text"
            )

    def _row(self, ids: list[int], units: Sequence[Unit], sees: NDArray[np.int64] | None) -> RowImages:
        """What belongs to a prompt, but the features of its images."""
        room = self._generator.shape.prefill.vision
        tokens = sum(self._program_for(unit).tokens for unit in units)
        if tokens > room:
            raise InputError(
                f"the images of a prompt have {tokens} tokens, the program has room for {room}; compile with more num_images"
            )
        types: Mapping[str, Any] = self._facts.get("token_types", {})
        row = RowImages.of(
            ids,
            np.zeros((0, self._features), dtype=np.float32),
            list(self._tokens.values()),
            layouts=[
                layout
                for program, unit in ((self._program_for(unit), unit) for unit in units)
                if (layout := program.layout(unit)) is not None
                for _ in range(program.groups)
            ],
            rope_axes=self._rope_axes,
            block=str(types.get("block", NO_BLOCK)),
            plain_type=int(types.get("plain", 0)),
            pixels=[self._program_for(unit).pixels(unit) for unit in units] if self._is_one else (),
        )
        if self._tile_tokens:
            row = replace(row, sees=_tiles_seen(sees, len(ids), tokens // self._tile_tokens))
        width = self._generator.shape.prefill.width
        if row.longest_block > width:
            raise InputError(
                f"{row.longest_block} tokens of a prompt see each other and must be read in one step, and a step of the program "
                f"reads {width}; compile with prefill_seq_len={row.longest_block} or more"
            )
        return row

    def _units(self, inputs: Mapping[str, Any]) -> list[Unit]:
        given = [name for name in (PIXELS, VIDEO_PIXELS) if inputs.get(name) is not None]
        if not given:
            return []
        if not self._vision:
            raise InputError(
                f"{self.compiled.directory} was compiled with skip_vision and encodes no images; load it beside an artifact that "
                "does: language.take_images_from(vision)"
            )
        found: list[Unit] = []
        for modality in dict.fromkeys(program.modality for program in self._vision):
            names = {name for program in self._vision if program.modality == modality for name in program.names}
            if tensors := {name: value for name, value in inputs.items() if name in names and value is not None}:
                found += image_units(tensors)
        return found

    def _encoded(self, unit: Unit) -> NDArray[np.float32]:
        """The features of one image."""
        program = self._program_for(unit)
        if not self._is_one:
            return program(unit)
        if self._tile_tokens:
            raise InputError(
                f"{self.compiled.directory} is one program (kv_offload=False) whose layers attend to images, and keeps no "
                "features of them; compile two programs (kv_offload=True)"
            )
        scheduler = self._generator.scheduler
        empty = np.zeros((0, self._features), dtype=np.float32)
        session: Any = self._generator.session  # sessions of backends read states, see `BaseSession`
        with use_of(session).turn:
            scheduler.reset()
            scheduler.read_images(RowImages.of([], empty, [], pixels=[program.pixels(unit)]), 0)
            (held,) = session.read_states([VISION_EMBEDS]).values()
        return np.array(held[0, 0, : program.tokens], dtype=np.float32)

    def _program_for(self, unit: Unit) -> ImageProgram:
        """The program that was made for an image's size."""
        program = next((program for program in self._vision if program.takes(unit)), None)
        if program is None:
            name = PIXELS if PIXELS in unit else VIDEO_PIXELS
            told = ", ".join(program.told for program in self._vision if name in program.names)
            if name == PIXELS:
                what, advice = "an image", "resize the image, or compile with its height and width"
            else:
                what = "a video"
                advice = "resize the video or choose as many frames, or compile with its height, width and num_frames"
            raise InputError(
                f"{what} has {name} {list(unit[name].shape)}, the programs were compiled for {told}; {advice}"
            )
        return program


def _tiles_seen(sees: NDArray[np.int64] | None, tokens: int, tiles: int) -> NDArray[np.int64]:
    """``[P, G]``, for the program: tokens that see nothing of a prompt with images stand in front of them."""
    seen = np.ones((tokens, tiles), dtype=np.int64) if sees is None else (sees[:, :tiles] > 0).astype(np.int64)
    seen[~seen.any(axis=1)] = 2
    return seen


def _images_per_prompt(images: Any, prompts: int) -> list[list[Any]]:
    if images is None:
        return [[] for _ in range(prompts)]
    given = list(images) if isinstance(images, (list, tuple)) else [images]
    if prompts == 1 and not any(isinstance(each, (list, tuple)) for each in given):
        return [[each for each in given if each is not None]]
    if len(given) != prompts:
        raise InputError(
            f"{prompts} prompts and images for {len(given)} were given; give a list of images (or None) for each prompt"
        )
    lists = [list(each) if isinstance(each, (list, tuple)) else [each] for each in given]
    return [[image for image in of_prompt if image is not None] for of_prompt in lists]


def _rendered(processor: Any, text: str, images: int, videos: int = 0) -> str:
    """The prompt with places for its images and videos: by the chat template, else with the processor's tokens in front."""
    if getattr(processor, "chat_template", None):
        places = {"image_token": images, "video_token": videos}
        held = [
            token
            for name, count in places.items()
            if count and (token := str(getattr(processor, name, None) or "")) and token in text
        ]
        if held:
            raise InputError(
                f"the prompt {text[:40]!r} holds {held[0]} itself, and the chat template adds a place for each image and video; "
                "leave it out of the prompt, or give what the processor makes of the whole text (inputs=...)"
            )
        seen = [*({"type": "image"} for _ in range(images)), *({"type": "video"} for _ in range(videos))]
        rendered: str = processor.apply_chat_template(
            [{"role": "user", "content": [*seen, {"type": "text", "text": text}]}], add_generation_prompt=True
        )
        return rendered
    from qeff_framework.runtime.video_prompts import tokens_of

    return tokens_of(processor, text, {"image": images, "video": videos})


def prompt_with_images(
    processor: Any,
    text: str,
    images: Sequence[Any],
    videos: Sequence[Any],
    lengths: Sequence[int],
    most_images: int,
) -> Mapping[str, Any]:
    """What the processor makes of a prompt for programs that read videos of these lengths, and so many images at most."""
    rendered = _rendered(processor, text, len(images), len(videos))
    return _with_videos(processor, rendered, images, videos, lengths, most_images - len(images))


def _with_videos(
    processor: Any, text: str, images: Sequence[Any], videos: Sequence[Any], lengths: Sequence[int], frames: int
) -> Mapping[str, Any]:
    """What the processor makes of a rendered text; `frames` of a video are chosen where there are no programs for videos."""
    if not videos:
        return processed_text(processor, text, images)
    from qeff_framework.runtime.video_prompts import chosen_length, opened_videos, video_options

    videos = opened_videos(videos)
    chosen = chosen_length(videos, lengths) if lengths else max(1, frames)
    reader, options = video_options(processor, videos, chosen)
    return processed_text(reader, text, images, **options)


def processed_text(processor: Any, text: str, images: Sequence[Any], **options: Any) -> Mapping[str, Any]:
    """What the processor makes of a rendered text. One that begins with the start token gets no second one."""
    start = getattr(getattr(processor, "tokenizer", None), "bos_token", None)
    if start and text.startswith(start):
        options["add_special_tokens"] = False
    # Some processors work on the tensors of videos, which are torch's.
    kind = "pt" if "videos" in options else "np"
    processed: Mapping[str, Any] = processor(text=[text], images=list(images) or None, return_tensors=kind, **options)
    return processed


def _video_lengths(sessions: Mapping[str, Any]) -> tuple[int, ...]:
    """Frames of the videos that programs were compiled for: their names tell."""
    names = [name.removeprefix("video-") for name in sessions if name.startswith("video-")]
    return tuple(sorted({int(name.partition("x")[0]) for name in names}))


def _counted(images: Sequence[Any], videos: Sequence[Any]) -> str:
    return f"{len(images)} images" + (f" and {len(videos)} videos" if videos else "")


def _parts(content: Any) -> list[Any]:
    if content is None:
        return []
    return list(content) if isinstance(content, (list, tuple)) else [{"type": "text", "text": content}]


def _without_pixels(part: Any) -> Any:
    """What a chat template sees of a part: not the pixels."""
    kind = next((kind for kind in _SEEN if isinstance(part, Mapping) and kind in part), None)
    return part if kind is None else {"type": kind}


def image_text_runner(session: ExecutionSession) -> CompiledRunner:
    """The runner of an artifact: for prompts with images, or for images that a decoder attends to."""
    from qeff_framework.runtime.image_seq2seq import CompiledImageSeq2Seq

    language = session.sessions.get(_LANGUAGE) if isinstance(session, ProgramSessions) else None
    attends = language is not None and any(each.name == HIDDEN_STATES for each in language.compiled.inputs)
    return CompiledImageSeq2Seq(session) if attends else CompiledImageTextToText(session)
