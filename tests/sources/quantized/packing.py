"""Packs matrices by the public definitions of the formats, one number at a time; the other half of the loaders."""

from __future__ import annotations

import torch

Packed = tuple[dict[str, torch.Tensor], torch.Tensor]

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True}
FLOAT8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [24, 20]}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True}
W4A16 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": INT4}},
}


def _levels(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels ``[out, in]`` of 0 to 15, scales and zero points ``[out, groups]``."""
    blocks = weight.unflatten(1, (-1, group_size))
    low, high = blocks.amin(2).clamp(max=0), blocks.amax(2).clamp(min=0)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    levels = (blocks / scales.unsqueeze(2) + zeros.unsqueeze(2)).round().clamp(0, 15)
    return levels.flatten(1).long(), scales, zeros.long()


def _float(levels: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    size = levels.shape[1] // scales.shape[1]
    return (levels - zeros.repeat_interleave(size, 1)) * scales.repeat_interleave(size, 1)


def _words(values: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """int32 ``[rows, columns / 8]``: place p of a word holds column ``order[p]`` of its eight."""
    words = [
        [sum(int(word[column]) << (4 * place) for place, column in enumerate(order)) for word in row.split(8)]
        for row in values
    ]
    # Numbers above 2 ** 31 stand for the same bits.
    return torch.tensor(words).to(torch.int32)


def awq(weight: torch.Tensor) -> Packed:
    """The packed tensors of ``weight [out, in]``, and what they stand for."""
    levels, scales, zeros = _levels(weight, 16)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    packed = {"qweight": _words(levels.T, order), "qzeros": _words(zeros.T, order), "scales": scales.T.half()}
    return packed, _float(levels, scales, zeros)


def gptq(weight: torch.Tensor) -> Packed:
    """As `awq`; the zero points are kept less 1."""
    levels, scales, zeros = _levels(weight, 16)
    packed = {
        "qweight": _words(levels).T,
        "qzeros": _words(((zeros - 1) % 16).T),
        "scales": scales.T.half(),
        "g_idx": (torch.arange(weight.shape[1]) // 16).int(),
    }
    return packed, _float(levels, scales, zeros)


def w4a16(weight: torch.Tensor) -> Packed:
    """As `awq`; without zero points, the level 8 is 0."""
    scales = (weight.unflatten(1, (-1, 16)).abs().amax(2) / 7).half().float()
    zeros = torch.full(scales.shape, 8)
    levels = (weight / scales.repeat_interleave(16, 1) + 8).round().clamp(0, 15).long()
    shape = torch.tensor(weight.shape)
    packed = {"weight_packed": _words(levels), "weight_scale": scales.half(), "weight_shape": shape}
    return packed, _float(levels, scales, zeros)


def float8(weight: torch.Tensor) -> Packed:
    """8-bit floating-point numbers in blocks of 24 by 20, which need not divide the matrix."""
    scales = torch.rand(-(-weight.shape[0] // 24), -(-weight.shape[1] // 20)) / 100 + 0.01
    spread = scales.repeat_interleave(24, 0)[: len(weight)].repeat_interleave(20, 1)[:, : weight.shape[1]]
    numbers = (weight / spread).to(torch.float8_e4m3fn)
    return {"weight": numbers, "weight_scale_inv": scales}, numbers.float() * spread
