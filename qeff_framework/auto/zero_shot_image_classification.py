"""Embeddings of images and texts in one space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from qeff_framework.auto.image_classification import ImageModel
from qeff_framework.contracts import Specialization, Task
from qeff_framework.errors import OptionError
from qeff_framework.plans import Program
from qeff_framework.shapes import ImageAndTextShapes

if TYPE_CHECKING:
    from qeff_framework.relay import Relay


class QEFFAutoModelForZeroShotImageClassification(ImageModel):
    """A model that embeds images and texts in one space, as two programs in one artifact: CLIP, SigLIP and others.

    ``compile`` takes ``img_size`` (or ``height`` and ``width``; by default what the processor makes), ``seq_len`` of the texts
    (by default as many tokens as the model has positions for) and ``batch_size=1``. ``generate`` takes what the processor returns
    for images and texts, and returns scores and both embeddings; see
    `qeff_framework.runtime.image_classifiers.CompiledZeroShotImageClassifier`.

    Args:
        model: a Transformers module in float32, or a source that can load one.
        processor: the processor of a module that was built in memory; a checkpoint brings its own.

    Example::

        model = QEFFAutoModelForZeroShotImageClassification.from_pretrained("openai/clip-vit-base-patch32")
        model.compile(backend="ort_sim")
        scores = model.load().classify([photo], ["a photo of a cat", "a photo of a dog"]).logits_per_image
    """

    task: ClassVar[Task] = "zero-shot-image-classification"
    transformers_class = "AutoModelForZeroShotImageClassification"
    shapes = ImageAndTextShapes

    def _programs(self, relay: Relay, options: object, shapes: Any) -> list[Program]:
        lengths = shapes.lengths or (self._positions(),)
        if self._reads_mask():
            text: dict[str, Any] = {"name": "input_ids", "shape": [None]}
            entries = [
                Specialization(name=f"text_{length}", dims={"batch_size": shapes.batch_size, "seq_len": length})
                for length in lengths
            ]
        else:
            # Padding is text to such a model, so that there is one length.
            if len(lengths) > 1:
                raise OptionError(f"{self.name} hides no padding, so its texts have one length; give one seq_len")
            text = {"name": "input_ids", "shape": [lengths[0]]}
            entries = [Specialization(name="text", dims={"batch_size": shapes.batch_size})]
        image = self.image_inputs(shapes.image_size)
        return [
            Program(
                name="text",
                plan=self._plan_export(relay, options, program="text", program_inputs=text),
                specializations=tuple(entries),
            ),
            Program(
                name="image",
                plan=self._plan_export(relay, options, program="image", program_inputs=image),
                specializations=(Specialization(name="image", dims={"batch_size": shapes.batch_size}),),
            ),
        ]

    def _reads_mask(self) -> bool:
        """Whether the tokenizer tells padding from text."""
        if not self._has_processor:
            return True
        return "attention_mask" in self.processor.tokenizer.model_input_names

    def _positions(self) -> int:
        """Tokens of a text that the model has positions for."""
        found = (self.config.get("text_config") or {}).get("max_position_embeddings")
        if not isinstance(found, int):
            raise OptionError(f"the config of {self.name} does not say how long a text may be; give seq_len=")
        return found
