"""Pooling of an encoder's last hidden state inside the graph. Padding never takes part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches

import torch

from qeff_framework.errors import OptionError

#: Takes the last hidden state ``[B, S, H]`` and the attention mask ``[B, S]``, returns ``[B, H]``. A `torch.nn.Module` may carry
#: weights of its own.
Pooling = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def resolve_pooling(pooling: str | Sequence[str] | Pooling | None) -> Pooling | None:
    """The pooling function of that name; several names give their results side by side, functions pass through.

    Raises:
        OptionError: a name is unknown.
    """
    if pooling is None or callable(pooling):
        return pooling
    if isinstance(pooling, str):
        return _named(pooling)
    functions = [_named(name) for name in pooling]
    if not functions:
        raise OptionError(f"pooling {pooling!r} names none: choose from {', '.join(sorted(_POOLINGS))}")
    return lambda hidden, mask: torch.cat([function(hidden, mask) for function in functions], dim=-1)


def _named(name: str) -> Pooling:
    try:
        return _POOLINGS[name]
    except KeyError:
        nearest = get_close_matches(str(name), _POOLINGS, n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        raise OptionError(
            f"pooling '{name}' is unknown: choose one of {', '.join(sorted(_POOLINGS))} or pass a function{hint}"
        ) from None


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _weighted(hidden, mask.to(hidden.dtype), power=1.0)


def _mean_sqrt_len(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _weighted(hidden, mask.to(hidden.dtype), power=0.5)


def _weighted_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Token n of a text, counted from 1, has the weight n."""
    places = torch.arange(1, mask.shape[1] + 1) - mask.argmax(dim=1, keepdim=True)
    weights = (places * mask).to(hidden.dtype)
    # The largest weight is made 1: in half precision the sum of the numbers up to 512 would overflow.
    return _weighted(hidden, weights / weights.amax(dim=1, keepdim=True).clamp(min=1.0), power=1.0)


def _weighted(hidden: torch.Tensor, weights: torch.Tensor, *, power: float) -> torch.Tensor:
    total = weights.sum(dim=1, keepdim=True).clamp(min=1.0)
    shares = weights.unsqueeze(-1)
    # A selection: padding may have overflowed, and zero times infinity is NaN.
    counted = torch.where(shares != 0, hidden, torch.zeros((), dtype=hidden.dtype))
    summed = (counted * shares).sum(dim=1)
    return summed / (total if power == 1.0 else total.sqrt())


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


_POOLINGS: dict[str, Pooling] = {
    "mean": _mean,
    "max": _max,
    "cls": _first,
    "lasttoken": _last,
    "weightedmean": _weighted_mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
}
