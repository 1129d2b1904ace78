"""Text from images and text, with vision-language models."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from qeff_framework.auto.given_prompts import require_beams, require_plain_loop, require_room
from qeff_framework.auto.processed_model import ProcessedModel
from qeff_framework.contracts import Specialization, Task
from qeff_framework.errors import InputError, OptionError, UnsupportedModelError
from qeff_framework.model import GivenInput
from qeff_framework.plans import Program
from qeff_framework.shapes import ImageTextShapes
from qeff_framework.sources import CheckpointSource, ModelSource

if TYPE_CHECKING:
    import torch

    from qeff_framework.images.units import Unit
    from qeff_framework.relay import Relay

#: The program of the language model, and that of the images; of several sizes each has a program of its own.
LANGUAGE, VISION, VIDEO = "language", "vision", "video"
#: The last axis of an image counts channels if it is no longer, else pixels.
_CHANNELS = 3


class QEFFAutoModelForImageTextToText(ProcessedModel):
    """A vision-language model, as two programs in one artifact: ``vision`` encodes an image, ``language`` generates text.

    With ``kv_offload=False`` one program does both: the features of the images stay on the device, as a retained state.

    ``compile`` takes ``img_size`` (or ``height`` and ``width``; lists for several sizes), ``num_images=1`` of a prompt at most,
    and what causal LMs take: ``prefill_seq_len=32, ctx_len=128, batch_size=1, full_batch_size``. With ``skip_vision`` or
    ``skip_lang`` the artifact holds one of the two programs. ``generate`` takes what the
    checkpoint's processor returns, or images and prompts; see
    `qeff_framework.runtime.image_text.CompiledImageTextToText.generate`.

    Args:
        model: a Transformers module in float32, or a source that can load one.
        processor: the processor of a module that was built in memory, for the sizes of its tensors; a checkpoint brings its own.
        kv_offload: two programs; `False`: one, for images of one size.

    Example::

        model = QEFFAutoModelForImageTextToText.from_pretrained("llava-hf/llava-1.5-7b-hf")
        model.compile(backend="ort_sim", prefill_seq_len=128, ctx_len=1024)
        print(model.generate(images=[photo], prompts=["What is this?"]).generated_texts)
    """

    task: ClassVar[Task] = "image-text-to-text"
    transformers_class = "AutoModelForImageTextToText"
    shapes = ImageTextShapes
    cut_programs = frozenset({LANGUAGE})

    def __init__(self, model: torch.nn.Module | ModelSource, *, processor: Any = None, kv_offload: bool = True) -> None:
        super().__init__(model, processor=processor)
        self._kv_offload = kv_offload

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        processor: Any = None,
        kv_offload: bool = True,
        **hf_kwargs: Any,
    ) -> Self:
        """Takes a checkpoint; see `QEFFBaseModel.from_pretrained` and the class."""
        source = CheckpointSource(pretrained_model_name_or_path, hf_kwargs)
        cls._check_architecture(source)
        return cls(source, processor=processor, kv_offload=kv_offload)

    def _programs(self, relay: Relay, options: object, shapes: ImageTextShapes) -> list[Program]:
        from qeff_framework.seam.image_features import decoder_attends

        sizes = shapes.image_sizes or (self._own_image_size(),)
        if decoder_attends(self._model_class()):
            return self._encoder_and_decoder(relay, options, shapes, sizes)
        if not self._kv_offload:
            return [self._one_program(relay, options, shapes, sizes)]
        self._check_sizes(shapes.image_sizes)
        found: dict[str, Program] = {}
        forms: list[Mapping[str, Any]] = []
        most = 0
        for height, width in sizes:
            units = self._image_units(height, width)
            plan = self._plan_export(relay, options, program=VISION, program_inputs=_tensors(units[0]))
            # What the language model is made for is known once an image has been encoded.
            exported = self._export(plan)
            forms.append(exported.metadata["image_features"])
            most = max(most, len(units) * int(exported.metadata["image_tokens"]))
            entry = _image_specialization(exported.metadata["image_tokens"])
            name = VISION if len(sizes) == 1 else f"{VISION}-{height}x{width}"
            found[name] = Program(name=name, plan=plan, specializations=(entry,))
        if any(form != forms[0] for form in forms):
            raise UnsupportedModelError("its image features have another form for each size of image")
        room = most * shapes.num_images
        of_language = dict(forms[0])
        if shapes.video_lengths:
            videos, of_language["video"], longest = self._video_programs(relay, options, shapes, sizes)
            found |= videos
            room += longest
        language = self._plan_export(
            relay, options, extra_inputs=shapes.extra_inputs(), program=LANGUAGE, program_inputs=of_language
        )
        self._check_blocks(shapes, most)
        entries = shapes.language_specializations(room)
        if tile_tokens := forms[0].get("tile_tokens", 0):
            if len(sizes) > 1:
                raise OptionError(
                    f"{self.name} attends to images that its processor has brought to one size; give one size, not {len(sizes)}"
                )
            entries = shapes.joint_specializations(most * shapes.num_images, most, tile_tokens)
        main = Program(name=LANGUAGE, plan=language, specializations=entries)
        return [*([] if shapes.skip_vision else found.values()), *([] if shapes.skip_lang else [main])]

    def _cut_problem(self, shapes: ImageTextShapes) -> str:
        from qeff_framework.seam.attended_images import attends_beside_text
        from qeff_framework.seam.image_features import decoder_attends

        if shapes.skip_lang:
            return "cuts the language model, which skip_lang leaves out"
        if not self._kv_offload:
            return "cuts the language model, and with kv_offload=False images are in its program as well"
        if decoder_attends(self._model_class()):
            return f"is for decoders without an encoder, and that of {self.name} attends to one"
        if attends_beside_text(self._model_class()):
            return f"is for layers that read text, and some of {self.name} attend to images"
        return ""

    def _video_programs(
        self, relay: Relay, options: object, shapes: ImageTextShapes, sizes: Sequence[tuple[int, int]]
    ) -> tuple[dict[str, Program], Mapping[str, Any], int]:
        """A program for each size and number of frames, the form of its features, and the most tokens of a video."""
        found: dict[str, Program] = {}
        forms: list[Mapping[str, Any]] = []
        longest = 0
        for height, width in sizes:
            for frames in shapes.video_lengths:
                unit = self._video_unit(frames, height, width)
                plan = self._plan_export(relay, options, program=VIDEO, program_inputs=_tensors(unit))
                facts = self._export(plan).metadata
                forms.append(facts["image_features"])
                longest = max(longest, int(facts["image_tokens"]))
                name = f"{VIDEO}-{frames}" if len(sizes) == 1 else f"{VIDEO}-{frames}x{height}x{width}"
                entry = _image_specialization(facts["image_tokens"])
                found[name] = Program(name=name, plan=plan, specializations=(entry,))
        if any(form != forms[0] for form in forms):
            raise UnsupportedModelError("the features of its videos have another form for each size")
        return found, forms[0], longest

    def _video_unit(self, frames: int, height: int, width: int) -> Unit:
        """What the processor makes of a video of this size."""
        import numpy as np

        from qeff_framework.images.units import VIDEO_PIXELS, image_units
        from qeff_framework.seam.image_features import video_inputs

        processor, names = self.processor, video_inputs(self._model_class())
        if VIDEO_PIXELS not in names:
            raise OptionError(
                f"{self.name} has no program for videos; leave num_frames out. Where the frames of a video are images to it, "
                "num_images is the number of frames"
            )
        video = np.zeros((frames, height, width, 3), dtype=np.uint8)
        given: dict[str, Any] = {"videos": [video], "return_tensors": "pt"}
        if (token := getattr(processor, "video_token", None)) is not None:
            given |= {"text": [token], "do_sample_frames": False}
        tensors = dict(processor(**given))
        units = image_units({name: tensors[name] for name in names if tensors.get(name) is not None})
        if len(units) != 1:
            raise UnsupportedModelError("its processor returns videos in a form that is not known")
        return units[0]

    def _encoder_and_decoder(
        self, relay: Relay, options: object, shapes: ImageTextShapes, sizes: Sequence[tuple[int, int]]
    ) -> list[Program]:
        """An encoder of images, and a decoder that reads its own prompt token by token."""
        asked = {
            "kv_offload=False": not self._kv_offload,
            "skip_vision or skip_lang": shapes.skip_vision or shapes.skip_lang,
            "full_batch_size": shapes.full_batch_size is not None,
            "num_images": shapes.num_images > 1,
            "several sizes of images": len(sizes) > 1,
            "num_frames": bool(shapes.video_lengths),
        }
        if wrong := [name for name, is_given in asked.items() if is_given]:
            raise OptionError(
                f"{self.name} has an encoder that reads one image for each row, and a decoder that attends to it: "
                f"{', '.join(wrong)} does not apply; leave it out"
            )
        self._check_sizes(shapes.image_sizes)
        (unit,) = self._image_units(*sizes[0])
        vision = self._plan_export(relay, options, program=VISION, program_inputs=_tensors(unit))
        facts = self._export(vision).metadata
        tokens = int(facts["image_tokens"])
        if tokens < 2:
            raise UnsupportedModelError(
                f"its encoder makes one vector of an image of {sizes[0][0]}x{sizes[0][1]}, so that the step which reads it looks "
                "like any other; take larger images"
            )
        language = self._plan_export(relay, options, program=LANGUAGE, program_inputs=facts["image_features"])
        rows = {"batch_size": shapes.batch_size, "seq_len": 1, "ctx_len": shapes.ctx_len, "encoder_ctx_len": tokens}
        steps = [
            Specialization(name=name, dims={**rows, "encoder_seq_len": count})
            for name, count in ((f"read_{tokens}", tokens), ("decode", 1))
        ]
        return [
            Program(name=VISION, plan=vision, specializations=(_image_specialization(tokens),)),
            Program(name=LANGUAGE, plan=language, specializations=tuple(steps)),
        ]

    def _one_program(
        self, relay: Relay, options: object, shapes: ImageTextShapes, sizes: Sequence[tuple[int, int]]
    ) -> Program:
        if shapes.skip_vision or shapes.skip_lang:
            raise OptionError(
                "skip_vision and skip_lang leave out one of two programs, and kv_offload=False asks for one; leave them out, or "
                "take kv_offload=True"
            )
        if shapes.video_lengths:
            raise OptionError(
                "one program (kv_offload=False) reads images and no videos; leave num_frames out, or take kv_offload=True"
            )
        if len(sizes) > 1:
            raise OptionError(
                f"one program (kv_offload=False) reads images of one size, and {len(sizes)} were given; give one, or take "
                "kv_offload=True, which compiles an image program for each"
            )
        self._check_sizes(shapes.image_sizes)
        units = self._image_units(*sizes[0])
        plan = self._plan_export(relay, options, extra_inputs=shapes.extra_inputs(), program_inputs=_tensors(units[0]))
        # How many tokens an image has is known once it has been encoded.
        facts = self._export(plan).metadata
        tokens = int(facts["image_tokens"])
        most = len(units) * tokens
        self._check_blocks(shapes, most)
        entries = shapes.joint_specializations(most * shapes.num_images, tokens, facts.get("tile_tokens", 0))
        return Program(name="", plan=plan, specializations=entries)

    def _program_inputs(self) -> Mapping[str, Any]:
        """Of one program: an image of the config's size."""
        from qeff_framework.seam.image_features import decoder_attends

        attends = decoder_attends(self._model_class())
        if self._kv_offload or attends:
            advice = "call compile()" if attends else "call compile(), or export one program (kv_offload=False)"
            raise OptionError(f"{self.name} becomes several programs, which compile() exports one by one; {advice}")
        return _tensors(self._image_units(*self._own_image_size())[0])

    def _check_blocks(self, shapes: ImageTextShapes, tokens: int) -> None:
        """The tokens of an image that see each other must be read in one step."""
        from qeff_framework.seam.image_inputs import sees_image_tokens_ahead

        if sees_image_tokens_ahead(self._model_class()) and tokens > shapes.longest_prefill:
            raise OptionError(
                f"prefill_seq_len={shapes.longest_prefill} is less than the {tokens} tokens of an image, which see each other in "
                f"{self.name} and must be read in one step; give prefill_seq_len={tokens} or more"
            )

    def require_input(self, given: GivenInput, sizes: Mapping[str, Any]) -> None:
        """Adds images and videos whose number or size does not fit."""
        if any(given.videos):
            from qeff_framework.runtime.video_prompts import check_torchvision

            check_torchvision()
        from qeff_framework.seam.image_features import decoder_attends

        super().require_input(given, sizes)
        shapes = self._sizes_among(sizes)
        if given.settings and decoder_attends(self._model_class()):
            require_plain_loop(given.settings, self.task)
        require_beams(given.settings, shapes, self._checkpoint_beams())
        if given.images:
            self._require_images(given.images, shapes)
        if any(given.videos):
            self._require_videos(given.videos, shapes)

    def _require_room(self, given: GivenInput, shapes: ImageTextShapes) -> None:
        from qeff_framework.seam.image_features import decoder_attends

        if decoder_attends(self._model_class()):
            return
        texts = [prompt for prompt in given.prompts if isinstance(prompt, str)]
        if not given.images and not given.videos:
            for index, ids in enumerate(self._prompt_ids(dataclasses.replace(given, prompts=texts))):
                require_room(index, len(ids), given.settings, shapes.ctx_len)
            return
        from qeff_framework.runtime.image_text import prompt_with_images

        none: list[Any] = []
        for index, text in enumerate(texts):
            images, videos = (of_all[index] if of_all else none for of_all in (given.images, given.videos))
            processed = prompt_with_images(
                self.processor, text, images, videos, shapes.video_lengths, shapes.num_images
            )
            require_room(index, len(processed["input_ids"][0]), given.settings, shapes.ctx_len)

    def _require_videos(self, videos: Sequence[Sequence[Any]], shapes: ImageTextShapes) -> None:
        """Refuses videos of which the processor makes what no program would take."""
        from qeff_framework.images.units import VIDEO_PIXELS, image_units
        from qeff_framework.runtime.video_prompts import chosen_length, video_options
        from qeff_framework.seam.image_features import decoder_attends, video_inputs

        names = video_inputs(self._model_class())
        if decoder_attends(self._model_class()) or getattr(self.processor, "video_processor", None) is None:
            raise InputError(f"{self.name} reads no videos; leave them out")
        if VIDEO_PIXELS not in names:
            return  # frames are images, as many as there is room for
        if not shapes.video_lengths:
            raise OptionError(
                f"how many frames of a video {self.name} is to read must be said; give num_frames=8, or another number "
                "(-O num_frames=8)"
            )
        sizes = shapes.image_sizes or (self._own_image_size(),)
        forms = [_form(self._video_unit(frames, *size)) for frames in shapes.video_lengths for size in sizes]
        for number, of_prompt in enumerate(videos):
            if len(of_prompt) > 1:
                raise InputError(
                    f"prompt {number} has {len(of_prompt)} videos, and the program would have room for one"
                )
            for video in of_prompt:
                frames = chosen_length([video], shapes.video_lengths)
                reader, options = video_options(self.processor, [video], frames)
                tensors = dict(reader.video_processor(return_tensors="np", **options))
                for unit in image_units({name: tensors[name] for name in names if tensors.get(name) is not None}):
                    if _form(unit) not in forms:
                        told = " or ".join(map(_told, forms))
                        raise InputError(
                            f"the video {video.file} has {video.total_frames} frames of {video.height} x {video.width} pixels, "
                            f"of which the processor makes {_told(_form(unit))}, and the programs would take {told}; give its "
                            f"height and width (-O height={video.height} -O width={video.width}), or another num_frames"
                        )

    def _require_images(self, images: Sequence[Sequence[Any]], shapes: ImageTextShapes) -> None:
        from qeff_framework.images.units import image_units, pixel_names
        from qeff_framework.seam.image_features import encoder_inputs

        for number, of_prompt in enumerate(images):
            if len(of_prompt) > shapes.num_images:
                raise InputError(
                    f"prompt {number} has {len(of_prompt)} images, and num_images is {shapes.num_images}; compile with "
                    f"num_images={len(of_prompt)} (-O num_images={len(of_prompt)})"
                )
        forms = [_form(self._image_units(*size)[0]) for size in shapes.image_sizes or (self._own_image_size(),)]
        processor = getattr(self.processor, "image_processor", self.processor)
        names = encoder_inputs(self._model_class())
        for number, image in enumerate(image for of_prompt in images for image in of_prompt):
            tensors = dict(processor(images=[image], return_tensors="np"))
            for unit in image_units({name: tensors[name] for name in tensors if name in names}):
                if _form(unit) not in forms:
                    pixels = pixel_names(unit)[0]
                    told = ", ".join(str(list(shape)) for form in forms for name, shape, _ in form if name == pixels)
                    raise InputError(
                        f"image {number} has {image.height} x {image.width} pixels, of which the processor makes {pixels} "
                        f"{list(unit[pixels].shape)}, and the programs would take {told}; resize the image, or give its height "
                        "and width (-O height=... -O width=...)"
                    )

    def _own_image_size(self) -> tuple[int, int]:
        """The size of images that the config of the image encoder names."""
        size = (self.config.get("vision_config") or {}).get("image_size")
        if isinstance(size, int):
            return size, size
        if isinstance(size, (list, tuple)) and len(size) == 2:
            return int(size[0]), int(size[1])
        raise OptionError(
            f"{self.name} takes images of any size, so the program's must be said; give height= and width=, or img_size="
        )

    def _check_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Refuses a size that the processor makes of no image: where it brings all images to one size, the choice is its own."""
        from qeff_framework.images.units import PIXELS

        for height, width in sizes:
            made = self._image_units(height, width)
            pixels = made[0].get(PIXELS)
            if pixels is None or pixels.ndim < 4 or pixels.shape[-1] <= _CHANNELS:
                continue  # patches
            own = tuple(int(size) for size in pixels.shape[-2:])
            others = ((3 * height, width), (height, 3 * width), (2 * height, 2 * width))
            if own == (height, width) or any(self._makes_another(made, *other) for other in others):
                continue
            raise OptionError(
                f"images of {height} x {width} pixels were asked for, and the processor of {self.name} makes {own[0]} x {own[1]} "
                "of every image; leave img_size (or height and width) out, or give a processor that makes other ones "
                "(processor=...)"
            )

    def _makes_another(self, made: Sequence[Unit], height: int, width: int) -> bool:
        """Whether the processor makes another form of an image of this size, or none."""
        try:
            other = self._image_units(height, width)
        except Exception:  # noqa: BLE001 - the processor's own rules for sizes
            return True
        return len(other) != len(made) or _form(other[0]) != _form(made[0])

    def _image_units(self, height: int, width: int) -> list[Unit]:
        """What the processor makes of an image of this size."""
        import numpy as np

        from qeff_framework.images.units import image_units, pixel_names
        from qeff_framework.seam.image_features import encoder_inputs

        processor = getattr(self.processor, "image_processor", self.processor)
        image = np.zeros((height, width, 3), dtype=np.uint8)
        # A shade: units that are empty are told apart from fillings by their contents.
        image[:, :, 0] = np.arange(width, dtype=np.uint8)[None]
        try:
            tensors = dict(processor(images=[image], return_tensors="pt"))
        except Exception as error:
            raise OptionError(
                f"the processor of {self.name} takes no image of {height} x {width} pixels ({type(error).__name__}: {error}); "
                "give another size, or restore the checkpoint's files for the processor"
            ) from error
        names = encoder_inputs(self._model_class())
        try:
            units = image_units({name: tensors[name] for name in tensors if name in names})
        except InputError as error:
            raise UnsupportedModelError(f"its processor returns images in a form that is not known: {error}") from error
        if not units or len({unit[name].shape for unit in units for name in pixel_names(units[0])[:1]}) != 1:
            raise UnsupportedModelError(
                f"its processor makes of an image of {height}x{width} tensors of several shapes, which one program cannot take"
            )
        return units

    def _model_class(self) -> Any:
        """The class of Transformers, without its weights."""
        if not isinstance(self._source, CheckpointSource):
            return type(self._loaded_module())
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MAPPING

        names = [*(self.config.get("architectures") or ()), MAPPING.get(str(self.config.get("model_type")))]
        found = next((getattr(transformers, name) for name in names if name and hasattr(transformers, name)), None)
        # Code that the checkpoint brings along is known once it is loaded.
        return found if found is not None else type(self._loaded_module())


def _tensors(unit: Unit) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(value.copy()) for name, value in unit.items()}


def _form(unit: Unit) -> list[tuple[str, tuple[int, ...], Any]]:
    """What an image must have in common with the one that a program is made for: shapes, and the values that say how it lies."""
    from qeff_framework.images.units import TIMES, pixel_names

    contents = pixel_names(unit)
    return [
        (name, tuple(value.shape), None if name in contents else value.tolist())
        for name, value in sorted(unit.items())
        if name not in TIMES
    ]


def _told(form: list[tuple[str, tuple[int, ...], Any]]) -> str:
    """A form, for messages: shapes of pixels, and the values that say how they lie."""
    return ", ".join(f"{name} {list(shape) if values is None else values}" for name, shape, values in form)


def _image_specialization(tokens: int) -> Specialization:
    return Specialization(name="image", dims={"batch_size": 1, "image_tokens": tokens})
