"""FP8 with scales beside each weight: per tensor, per row, or per block as in DeepSeek; and FP4 experts beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.quantized.floats import check_scales, float_scales, pairs_unpacked, scaled, unpack_e2m1
from qeff_framework.sources.quantized.parts import SCALES, check_type
from qeff_framework.sources.quantized.stored import StoredTensors
from qeff_framework.sources.quantized.weights import StoredWeight

#: How the scales of a weight are named, after its own name.
_SUFFIXES = ("_scale_inv", "_scale")
#: How they are named in place of the last part of its name.
_SIBLINGS = ("scale", "qscale_weight", "scale_inv")
#: For the activations, which the portable graph computes as floating-point numbers.
_ACTIVATIONS = ("activation_scale", "input_scale", "qscale_act")

#: Transformers' own default.
_BLOCK = (128, 128)


def weights(settings: Mapping[str, Any], stored: StoredTensors) -> Iterator[StoredWeight]:
    """The weights of 8-bit floating-point numbers. `settings`: the ``quantization_config``.

    Raises:
        CheckpointError: such a weight has no scales.
    """
    block = _stated_block(settings.get("weight_block_size"), stored.name)
    for key in stored:
        is_float4 = stored.dtype(key) == "I8"
        if not is_float4 and not stored.is_float8(key):
            continue
        scales = _scales_of(key, stored)
        if scales is None and is_float4:
            continue
        if scales is None:
            raise CheckpointError(
                f"{stored.name} holds {key} as 8-bit numbers without scales beside it; download the checkpoint again, or give "
                "the model without quantisation"
            )
        shape = pairs_unpacked(stored.shape(key)) if is_float4 else stored.shape(key)
        chosen = _block(stored.shape(scales), shape, None if is_float4 else block)
        check_scales(stored.shape(scales), shape, name=key, block=chosen)
        check_type(stored, scales, key, SCALES)
        module = key.rpartition(".")[0]
        beside = (f"{key}_{part}" for part in _ACTIVATIONS), (f"{module}.{part}" for part in _ACTIVATIONS)
        yield StoredWeight(
            name=key,
            sources=(key, scales, *(found for names in beside for found in names if found in stored)),
            needed=(key, scales),
            read=partial(_weight, stored, key, scales, chosen),
            shape=shape,
        )


def _stated_block(stated: object, name: str) -> tuple[int, int] | None:
    if not stated:
        return None
    sizes = [size for size in stated if isinstance(size, int) and size > 0] if isinstance(stated, (list, tuple)) else []
    if not isinstance(stated, (list, tuple)) or not len(sizes) == len(stated) == 2:
        raise CheckpointError(
            f"the quantization_config of {name} states weight_block_size={stated!r}, which is no pair of sizes; correct the "
            "config.json or download the checkpoint again"
        )
    return sizes[0], sizes[1]


def _scales_of(key: str, stored: StoredTensors) -> str | None:
    module = key.rpartition(".")[0]
    candidates = (*(key + suffix for suffix in _SUFFIXES), *(f"{module}.{name}" for name in _SIBLINGS))
    return next((name for name in candidates if name in stored and name != key), None)


def _weight(stored: StoredTensors, key: str, scales: str, block: tuple[int, int] | None) -> torch.Tensor:
    numbers = stored.read(key)
    numbers = unpack_e2m1(numbers) if numbers.dtype == torch.int8 else numbers.float()
    return scaled(numbers, float_scales(stored.read(scales)), name=key, block=block)


def _block(scales: tuple[int, ...], shape: tuple[int, ...], stated: tuple[int, int] | None) -> tuple[int, int] | None:
    """The sizes of a block: those of the config, or Transformers' own where the shapes fit these."""
    counts = tuple(-(-length // size) for length, size in zip(shape[-2:], _BLOCK, strict=False))
    return _BLOCK if stated is None and scales[-2:] == counts else stated
