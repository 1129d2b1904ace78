"""Padding of sound that disturbs nothing.

Models of sound hide padded frames from their attention, and not from all that comes before: a group normalisation takes its mean
over all frames of a clip, and so depends on how far it was padded. This mode counts the real frames of each clip through the
convolutions that shorten it, and normalises over these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = (torch.conv1d, torch.nn.functional.conv1d)
_GROUP_NORMS = (torch.group_norm, torch.nn.functional.group_norm)


class PaddedFrames(TorchFunctionMode):
    """Answers what must not see padding, while a model runs whose input has S = `length` samples or frames.

    Args:
        length: S.
        mask: ``[B, S]``, 1 where they are none of padding; `None`: there is no padding.
    """

    def __init__(self, length: int | torch.SymInt, mask: torch.Tensor | None) -> None:
        super().__init__()
        #: By the frames of a clip with padding, as text since they may be symbols: those without, ``[B]``.
        self._lengths = {} if mask is None else {str(length): mask.sum(dim=1)}

    def real(self, count: Any) -> torch.Tensor | None:
        """Which of `count` frames, a number or a symbol, are none of padding: bool ``[B, count]``.

        `None` where no convolution has made as many.
        """
        lengths = self._lengths.get(str(count))
        return None if lengths is None else torch.arange(count)[None] < lengths[:, None]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Sees every call of the library while the mode is on."""
        del types
        given = dict(kwargs or {})
        if func in _GROUP_NORMS:
            return self._group_norm(func, args, given)
        if func is torch.Tensor.__setitem__ and _fills_by_mask(*args[1:]):
            return _fill(*args)
        if func in _CONVOLUTIONS:
            return self._convolution(func, args, given)
        return func(*args, **given)

    def _convolution(self, func: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> torch.Tensor:
        """One that pads its input with zeros sees zeros behind the last real frame, too."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        call = {**dict(zip(names, args, strict=False)), **given}
        sizes = zip(names[3:6], (1, 0, 1), strict=True)
        stride, padding, dilation = (_number(call.get(name, default)) for name, default in sizes)
        frames = call["input"]
        lengths = self._lengths.get(str(frames.shape[-1]))
        if lengths is None or stride is None or padding is None or dilation is None:
            result: torch.Tensor = func(*args, **given)
            return result
        if padding and (is_real := self.real(frames.shape[-1])) is not None:
            call["input"] = frames.where(is_real[:, None], 0.0)
        result = func(**call)
        window = dilation * (call["weight"].shape[-1] - 1) + 1
        self._lengths.setdefault(str(result.shape[-1]), (lengths + 2 * padding - window) // stride + 1)
        return result

    def _group_norm(self, func: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> torch.Tensor:
        names = ("input", "num_groups", "weight", "bias", "eps")
        call: dict[str, Any] = {
            "weight": None,
            "bias": None,
            "eps": 1e-5,
            **dict(zip(names, args, strict=False)),
            **given,
        }
        frames, groups = call["input"], int(call["num_groups"])
        lengths = self._lengths.get(str(frames.shape[-1])) if frames.dim() == 3 else None
        if lengths is None:
            result: torch.Tensor = func(*args, **given)
            return result
        batch, channels, count = frames.shape
        is_real = (torch.arange(count)[None] < lengths[:, None])[:, None, None]
        size = (lengths * (channels // groups)).clamp(min=1).to(frames.dtype)[:, None, None, None]
        values = frames.reshape(batch, groups, channels // groups, count)
        mean = values.where(is_real, 0.0).sum(dim=(2, 3), keepdim=True) / size
        centred = (values - mean).where(is_real, 0.0)
        variance = (centred * centred).sum(dim=(2, 3), keepdim=True) / size
        normed: torch.Tensor = (centred * torch.rsqrt(variance + call["eps"])).reshape(batch, channels, count)
        for parameter, apply in ((call["weight"], torch.mul), (call["bias"], torch.add)):
            normed = normed if parameter is None else apply(normed, parameter[:, None])
        return normed


def _number(value: Any) -> int | None:
    first = value[0] if isinstance(value, (tuple, list)) else value
    return first if isinstance(first, int) else None


def _fills_by_mask(index: Any, value: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool and isinstance(value, (int, float))


def _fill(tensor: torch.Tensor, index: torch.Tensor, value: float) -> None:
    """``tensor[index] = value`` in a form that needs no count of the chosen elements."""
    while index.dim() < tensor.dim():
        index = index.unsqueeze(-1)
    tensor.masked_fill_(index, value)
