"""The loaded program of an image encoder, for one size of image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.images.rope_positions import RopeLayout
from qeff_framework.images.rows import VISION_EMBEDS
from qeff_framework.images.units import PIXELS, TIMES
from qeff_framework.session_use import use_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qeff_framework.images.units import Unit


class ImageProgram:
    """The program for one size of image."""

    def __init__(self, session: ExecutionSession) -> None:
        self.session = session
        self._use = use_of(session)
        #: What the unit that it was made for looked like. Values of `None`: any.
        self._example: Mapping[str, Any] = session.compiled.metadata["image"]
        self.names = tuple(self._example)
        #: What it encodes: ``image`` or ``video``.
        self.modality = str(session.compiled.metadata.get("modality", "image"))
        layout = session.compiled.metadata.get("rope_layout")
        #: Tokens of an image.
        self.tokens = int(session.compiled.metadata["image_tokens"])
        #: Groups in which its tokens stand, with text between them.
        self.groups = int(session.compiled.metadata.get("groups", 1))
        #: Numbers of an image token.
        self.features = sum(int(size) for size in session.compiled.metadata["image_features"]["widths"])
        self._layout = RopeLayout.from_json(layout) if layout else None
        self._pixels = sorted(
            (name for name, described in self._example.items() if "values" not in described),
            key=lambda name: (name != PIXELS, name),
        )

    @property
    def told(self) -> str:
        """The size, for messages."""
        return str(self._example[self._pixels[0]]["shape"])

    def layout(self, unit: Unit) -> RopeLayout | None:
        """Where the tokens of an image stand, for models whose positions have several axes."""
        if self._layout is None:
            return None
        seconds = next((float(unit[name].reshape(-1)[0]) for name in TIMES if name in unit), 1.0)
        return self._layout.at(seconds)

    def takes(self, unit: Unit) -> bool:
        """Whether the unit differs from the example in its pixels only."""
        return all(_equals(example, unit.get(name)) for name, example in self._example.items())

    def pixels(self, unit: Unit) -> dict[str, NDArray[Any]]:
        """What the program reads of an image; the rest is a part of it."""
        kinds = {
            name: np.float32 if np.issubdtype(unit[name].dtype, np.floating) else np.int64 for name in self._pixels
        }
        return {name: np.ascontiguousarray(unit[name], dtype=kind) for name, kind in kinds.items()}

    def __call__(self, unit: Unit) -> NDArray[np.float32]:
        """Features ``[N, F]``, a copy."""
        with self._use.turn:
            outputs = self.session.run(self.pixels(unit))
            return np.array(outputs[VISION_EMBEDS], dtype=np.float32)


def _equals(example: Mapping[str, Any], value: Any) -> bool:
    if value is None or list(value.shape) != example["shape"]:
        return value is None and "values" in example and example["values"] is None
    if (values := example.get("values")) is None:
        return True
    return bool((np.asarray(value) == values).all()) if not isinstance(values, list) else value.tolist() == values
