"""MXFP4: 4-bit floating-point numbers (E2M1) with a power of two for 32 of them, as in the experts of GPT-OSS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.quantized.floats import float_scales, unpack_e2m1
from qeff_framework.sources.quantized.parts import BYTES, part_shape
from qeff_framework.sources.quantized.stored import StoredTensors
from qeff_framework.sources.quantized.weights import GroupedLevels, GroupLayout, StoredWeight

_BLOCKS, _SCALES = "_blocks", "_scales"
#: Experts, outputs, blocks of inputs, bytes of a block.
_AXES = 4
_BLOCK_SIZE = 32
#: Numbers are halves: level 128 stands for 0, and each step for half of the block's power of two.
_STEPS, _ZERO_POINT = 2, 128
_BITS = 8


def weights(settings: Mapping[str, Any], stored: StoredTensors) -> Iterator[StoredWeight]:
    """The weights of experts, ``[E, in, out]``. `settings`, the ``quantization_config``, adds nothing to the tensors.

    Raises:
        CheckpointError: blocks are of another shape, or have no scales.
    """
    del settings
    for key in stored:
        if not key.endswith(_BLOCKS):
            continue
        name = key.removesuffix(_BLOCKS)
        scales = name + _SCALES
        shape = stored.shape(key)
        if scales not in stored or len(shape) != _AXES or shape[-1] * 2 != _BLOCK_SIZE:
            raise CheckpointError(
                f"{stored.name} is quantised by mxfp4, and {key} is {list(shape)} "
                f"{'with' if scales in stored else 'without'} a tensor {scales}; read here are blocks [experts, outputs, blocks, "
                "16] with scales: download the checkpoint again, or give the model without quantisation"
            )
        experts, outputs, blocks, _ = part_shape(stored, key, name, shape, BYTES)
        part_shape(stored, scales, name, (experts, outputs, blocks), BYTES)
        rows = partial(_rows, stored, key, scales)
        yield StoredWeight(
            name=name,
            sources=(key, scales),
            needed=(key, scales),
            read=partial(rows, 0, experts),
            read_rows=rows,
            shape=(experts, blocks * _BLOCK_SIZE, outputs),
            levels=partial(_levels, stored, key, scales),
            layout=partial(GroupLayout, bits=_BITS, block_size=_BLOCK_SIZE, count=blocks),
            is_transposed=True,
        )


def _rows(stored: StoredTensors, key: str, scales: str, start: int, stop: int) -> torch.Tensor:
    numbers = unpack_e2m1(stored.read_rows(key, start, stop))
    numbers *= float_scales(stored.read_rows(scales, start, stop)).unsqueeze(-1)
    return numbers.flatten(-2).mT.contiguous()


def _levels(stored: StoredTensors, key: str, scales: str) -> GroupedLevels:
    """The same numbers as integers of 8 bits: E2M1 has no even steps, and its values are multiples of one half up to 6."""
    experts, outputs, blocks, _ = stored.shape(key)
    numbers = unpack_e2m1(stored.read(key)).reshape(experts * outputs, blocks * _BLOCK_SIZE)
    factors = float_scales(stored.read(scales)).reshape(experts * outputs, blocks) / _STEPS
    return GroupedLevels(
        levels=(numbers * _STEPS + _ZERO_POINT).to(torch.uint8),
        scales=factors,
        zero_points=torch.full((experts * outputs, blocks), _ZERO_POINT, dtype=torch.uint8),
        bits=_BITS,
        block_size=_BLOCK_SIZE,
    )
