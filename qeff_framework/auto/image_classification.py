"""Class scores of images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from qeff_framework.auto.processed_model import ProcessedModel
from qeff_framework.contracts import Task
from qeff_framework.errors import OptionError, UnsupportedModelError
from qeff_framework.plans import Program
from qeff_framework.shapes import ImageShapes

if TYPE_CHECKING:
    from qeff_framework.relay import Relay

PIXELS = "pixel_values"


class ImageModel(ProcessedModel):
    """A model that reads an image in one pass."""

    def _programs(self, relay: Relay, options: object, shapes: ImageShapes) -> list[Program]:
        inputs = self.image_inputs(shapes.image_size)
        plan = self._plan_export(relay, options, program_inputs=inputs)
        return [Program(name="", plan=plan, specializations=shapes.specializations())]

    def _program_inputs(self) -> Mapping[str, Any]:
        return self.image_inputs(None)

    def image_inputs(self, size: tuple[int, int] | None) -> Mapping[str, Any]:
        """Name and shape of the input for images of height and width `size`; `None`: as the processor makes them."""
        channels, *own = self._own_shape
        if size is None and not own:
            raise OptionError(
                f"{self.name} takes images of any size, so the program's must be said; give img_size=, or height= and width="
            )
        return {"name": PIXELS, "shape": [channels, *(size or own)]}

    @cached_property
    def _own_shape(self) -> tuple[int, ...]:
        """Channels, and height and width as far as processor or config tell them."""
        import numpy as np

        if not self._has_processor:
            config = self.config.get("vision_config") or self.config
            found = config.get("image_size")
            size = (found, found) if isinstance(found, int) else tuple(found or ())
            return (int(config.get("num_channels") or 3), *size)
        processor = getattr(self.processor, "image_processor", self.processor)
        shapes = set()
        for sides in ((64, 48), (300, 400)):
            made = processor(images=[np.zeros((*sides, 3), dtype=np.uint8)], return_tensors="np")
            shapes.add(tuple(np.asarray(made[PIXELS]).shape[1:]))
        (first, *others) = shapes
        if len(first) != 3:
            raise UnsupportedModelError(
                f"its processor makes tensors {list(first)} of an image instead of [channels, height, width]"
            )
        return (first[0],) if others else first


class QEFFAutoModelForImageClassification(ImageModel):
    """A classifier of images: ViT, ResNet, Swin, ConvNeXt and others.

    ``compile`` takes ``img_size`` (or ``height`` and ``width``; by default what the processor makes) and ``batch_size=1`` beside
    the backend's options. ``generate`` takes what the processor returns, and returns the logits ``[N, labels]``. The loaded
    program knows the ``labels``.

    Args:
        model: a Transformers module in float32, or a source that can load one.
        processor: the image processor of a module that was built in memory; a checkpoint brings its own.

    Example::

        model = QEFFAutoModelForImageClassification.from_pretrained("google/vit-base-patch16-224")
        model.compile(backend="ort_sim")
        logits = model.generate(**model.processor(images=[photo], return_tensors="np"))
    """

    task: ClassVar[Task] = "image-classification"
    transformers_class = "AutoModelForImageClassification"
    shapes = ImageShapes
    processor_part = "AutoImageProcessor"
