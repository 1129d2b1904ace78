"""Classes of images, and how well texts fit them, with loaded programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import InputError
from qeff_framework.runtime.classifiers import CompiledClassifier
from qeff_framework.runtime.processed import ProcessedRunner, check_mapping, processor_output
from qeff_framework.runtime.program_sessions import ProgramSessions
from qeff_framework.single_pass.signal_runner import SignalRunner

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ImageRunner(ProcessedRunner):
    """A loaded program with a processor that prepares images for it."""

    def processed_images(self, images: Any, *, processor: Any = None) -> Mapping[str, Any]:
        """What the processor makes of images (PIL images, arrays ``[H, W, 3]``), in NumPy; the artifact's by default."""
        chosen = processor if processor is not None else self.processor
        made = getattr(chosen, "image_processor", chosen)(images=images, return_tensors="np")
        return {"pixel_values": made["pixel_values"]}


class CompiledImageClassifier(ImageRunner, CompiledClassifier):
    """Class scores of images with a loaded program."""

    def generate(self, inputs: Mapping[str, Any] | None = None, **tensors: Any) -> NDArray[Any]:
        """Classifies what an image processor returns, ``pixel_values [N, channels, height, width]``.

        Returns:
            Logits, float32 ``[N, labels]``.

        Raises:
            InputError: no inputs, or images of another size than was compiled for.
        """
        outputs, _ = self._signals(processor_output(inputs, tensors))
        return outputs["logits"]


class ImageTextScores(NamedTuple):
    """How well texts fit images."""

    #: float32 ``[images, texts]``, as in Transformers.
    logits_per_image: NDArray[Any]
    #: ``[images, E]`` and ``[texts, E]``, of length 1.
    image_embeds: NDArray[Any]
    text_embeds: NDArray[Any]


class CompiledZeroShotImageClassifier(ImageRunner):
    """Embeddings of images and of texts in one space, with two loaded programs."""

    def __init__(self, session: ExecutionSession) -> None:
        super().__init__(session)
        if not isinstance(session, ProgramSessions) or {*session.sessions} != {"text", "image"}:
            raise InputError(f"{session.compiled.directory} does not hold the programs text and image")
        self._texts = SignalRunner(session.sessions["text"])
        self._images = SignalRunner(session.sessions["image"])
        self._text_inputs = [spec.name for spec in session.sessions["text"].compiled.inputs]

    def generate(self, inputs: Mapping[str, Any] | None = None, **tensors: Any) -> ImageTextScores:
        """Scores every image with every text of what a processor returns for both.

        Args:
            inputs: ``pixel_values``, ``input_ids`` and, where the model reads it, ``attention_mask``.
            **tensors: the same as keywords (``generate(**processor(text=texts, images=images, padding=True))``).

        Raises:
            InputError: no inputs, or of another size than was compiled for.
        """
        given = processor_output(inputs, tensors)
        check_mapping(given, "pixel_values and input_ids")
        # What tokenizers return for models that have no use for it.
        unknown = sorted({*given} - {*self._text_inputs, "pixel_values", "attention_mask", "token_type_ids"})
        if unknown:
            raise InputError(
                f"the programs do not take {', '.join(unknown)}, only pixel_values and {', '.join(self._text_inputs)}; leave the "
                "others out"
            )
        texts = self.text_embeds({name: value for name, value in given.items() if name != "pixel_values"})
        images = self.image_embeds({"pixel_values": given.get("pixel_values")})
        facts = self.compiled.metadata
        logits = images @ texts.T * np.float32(facts["logit_scale"]) + np.float32(facts["logit_bias"])
        return ImageTextScores(logits, images, texts)

    def image_embeds(self, inputs: Mapping[str, Any]) -> NDArray[Any]:
        """Embeddings ``[N, E]`` of what the image processor returns, of length 1."""
        outputs, _ = self._images(inputs)
        return outputs["image_embeds"]

    def text_embeds(self, inputs: Mapping[str, Any]) -> NDArray[Any]:
        """Embeddings ``[N, E]`` of what the tokenizer returns, of length 1."""
        outputs, _ = self._texts({name: value for name, value in inputs.items() if name in self._text_inputs})
        return outputs["text_embeds"]

    def classify(self, images: Any, texts: Sequence[str], *, processor: Any = None) -> ImageTextScores:
        """Scores every image with every text, read by the artifact's processor by default."""
        chosen = processor if processor is not None else self.processor
        padding = True if "attention_mask" in self._text_inputs else "max_length"
        made = chosen.tokenizer(list(texts), padding=padding, return_tensors="np")
        return self.generate({**made, **self.processed_images(images, processor=chosen)})
