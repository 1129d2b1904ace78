"""Moonshine: it counts its frames with ``int(length / stride)``, which a tracer answers with the frames of the example."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


def adapt(model: PreTrainedModel) -> None:
    """Counts the frames of the encoder's three convolutions in whole numbers."""
    module: Any
    for module in model.modules():
        if all(hasattr(module, name) for name in ("_get_feat_extract_output_lengths", *_CONVOLUTIONS)):
            module._get_feat_extract_output_lengths = _Frames(module)  # noqa: SLF001 - its name in the library


_CONVOLUTIONS = ("conv1", "conv2", "conv3")


class _Frames:
    """Stands for the method: the frames of a number of samples."""

    def __init__(self, encoder: Any) -> None:
        convolutions: list[torch.nn.Conv1d] = [getattr(encoder, name) for name in _CONVOLUTIONS]
        self._sizes = [(layer.kernel_size[0], layer.stride[0]) for layer in convolutions]

    def __call__(self, length: Any) -> Any:
        for window, stride in self._sizes:
            length = (length - window) // stride + 1
        return length
