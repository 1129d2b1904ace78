"""Pooling of an encoder's last hidden state inside the graph. Padding never takes part."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

import torch

from qeff_framework.errors import OptionError

#: Takes the last hidden state ``[B, S, H]`` and the attention mask ``[B, S]``, returns ``[B, H]``.
Pooling = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def resolve_pooling(pooling: str | Pooling | None) -> Pooling | None:
    """The pooling function of that name; functions pass through. Raises `OptionError` for an unknown name."""
    if pooling is None or callable(pooling):
        return pooling
    try:
        return _POOLINGS[pooling]
    except KeyError:
        nearest = get_close_matches(str(pooling), _POOLINGS, n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        raise OptionError(
            f"pooling '{pooling}' is unknown: choose one of {', '.join(sorted(_POOLINGS))} or pass a function{hint}"
        ) from None


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def _max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    lowest = torch.finfo(hidden.dtype).min
    return torch.where(mask.unsqueeze(-1) != 0, hidden, lowest).amax(dim=1)


def _first(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _token(hidden, mask.argmax(dim=1))


def _last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    places = torch.arange(mask.shape[1]) * mask
    return _token(hidden, places.argmax(dim=1))


def _token(hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    places = index.unsqueeze(1).unsqueeze(2).expand(-1, 1, hidden.shape[2])
    return hidden.gather(1, places).squeeze(1)


_POOLINGS: dict[str, Pooling] = {"mean": _mean, "max": _max, "cls": _first, "lasttoken": _last}
