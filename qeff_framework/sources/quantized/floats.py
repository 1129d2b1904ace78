"""4- and 8-bit floating-point numbers, and scales over blocks of a matrix."""

from __future__ import annotations

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


def _expanded(scales: torch.Tensor, shape: torch.Size, name: str, block: tuple[int, int] | None) -> torch.Tensor:
    if scales.dim() == 1 and len(shape) == 2 and len(scales) == shape[0]:
        return scales.unsqueeze(1)
    # Experts in one tensor may have one scale each.
    while scales.dim() < len(shape):
        scales = scales.unsqueeze(-1)
    if scales.shape[:-2] != shape[:-2]:
        raise _unfit(scales, shape, name)
    for axis, size in ((-2, None if block is None else block[0]), (-1, None if block is None else block[1])):
        length, count = shape[axis], scales.shape[axis]
        if count in (1, length):
            continue
        if size is not None and -(-length // size) == count:
            width = size
        elif size is None and length % count == 0:
            width = length // count
        else:
            raise _unfit(scales, shape, name)
        scales = scales.index_select(axis, torch.arange(length) // width)
    return scales


def _unfit(scales: torch.Tensor, shape: torch.Size, name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is {list(shape)} and its scales are {list(scales.shape)}, which no size of blocks fits; the config.json or the "
        "weights are those of another checkpoint: download both again"
    )
