"""4- and 8-bit floating-point numbers, and scales over blocks of a matrix."""

from __future__ import annotations

import math

import torch

from qeff_framework.errors import CheckpointError

#: The values of the 16 codes of E2M1.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unpack_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """float32 ``[..., 2 n]`` from bytes ``[..., n]``: the lower half of a byte comes first."""
    table = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
    codes = packed.contiguous().view(torch.uint8)
    pairs = torch.stack([table[(codes & 15).long()], table[(codes >> 4).long()]], dim=-1)
    return pairs.flatten(-2)


def pairs_unpacked(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what `unpack_e2m1` returns."""
    return (*shape[:-1], 2 * shape[-1])


def float_scales(scales: torch.Tensor) -> torch.Tensor:
    """Scales as float32; bytes are exponents of two with a bias of 127 (E8M0)."""
    if scales.dtype == torch.uint8:
        return torch.exp2(scales.float() - 127)
    return scales.float()


def scaled(
    numbers: torch.Tensor, scales: torch.Tensor, *, name: str, block: tuple[int, int] | None = None
) -> torch.Tensor:
    """float32 `numbers` times `scales`: one for all, one for each row, or one for each block of the last two dimensions.

    `block` is the size of a block where the config states it; otherwise the blocks must divide the matrix.

    Raises:
        CheckpointError: the shapes do not fit together. `name` is what the message calls the weight.
    """
    numbers = numbers.float()
    factors = scales if scales.numel() == 1 else _expanded(scales, numbers.shape, name, block)
    numbers *= factors.reshape(()) if factors.numel() == 1 else factors
    return numbers


def check_scales(
    scales: tuple[int, ...], shape: tuple[int, ...], *, name: str, block: tuple[int, int] | None = None
) -> None:
    """Raises `CheckpointError` for scales of a shape that `scaled` would refuse for numbers of `shape`."""
    if block is not None or math.prod(scales) != 1:
        _block_sizes(scales, shape, name, block)


def _expanded(scales: torch.Tensor, shape: torch.Size, name: str, block: tuple[int, int] | None) -> torch.Tensor:
    sizes = _block_sizes(tuple(scales.shape), tuple(shape), name, block)
    # Experts in one tensor may have one scale each.
    while scales.dim() < len(shape):
        scales = scales.unsqueeze(-1)
    for axis, size in zip((-2, -1), sizes, strict=True):
        # One for each, or for all, is expanded by the product.
        if scales.shape[axis] not in (1, shape[axis]):
            scales = scales.index_select(axis, torch.arange(shape[axis]) // size)
    return scales


def _block_sizes(
    scales: tuple[int, ...], shape: tuple[int, ...], name: str, block: tuple[int, int] | None
) -> tuple[int, int]:
    """Sizes of a block along the last two dimensions."""
    aligned = scales + (1,) * (len(shape) - len(scales))
    if len(shape) > 1 and len(aligned) == len(shape) and aligned[:-2] == shape[:-2]:
        counts, (rows, columns) = aligned[-2:], shape[-2:]
        per_row = (1, columns) if counts == (rows, 1) else None
        high, wide = per_row or block or _divided(counts, (rows, columns))
        if high > 0 < wide and counts == (-(-rows // high), -(-columns // wide)):
            return high, wide
    raise CheckpointError(
        f"{name} is {list(shape)} and its scales are {list(scales)}, which no size of blocks fits; the config.json or the "
        "weights are those of another checkpoint: download both again"
    )


def _divided(counts: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int]:
    """Sizes of a block where no config states them: equal parts; 0 where there is none."""
    high, wide = (
        length // count if count and length % count == 0 else 0 for count, length in zip(counts, shape, strict=True)
    )
    # A block may reach beyond the matrix along one axis. Where it is longer there than along the other one, scales were lost.
    sides = ((counts[0], shape[0], wide), (counts[1], shape[1], high))
    is_lost = any(count == 1 and length > other for count, length, other in sides)
    return (0, 0) if is_lost else (high, wide)
