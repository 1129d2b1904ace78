"""NVIDIA Model Optimizer: FP8, and NVFP4 with a scale for 16 numbers and one for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.quantized.floats import check_scales, float_scales, pairs_unpacked, scaled, unpack_e2m1
from qeff_framework.sources.quantized.parts import FLOATS, SCALES, SMALL_SCALES, check_count, check_type, part_shape
from qeff_framework.sources.quantized.stored import StoredTensors
from qeff_framework.sources.quantized.weights import StoredWeight

#: Adjacent inputs that share a scale.
_NVFP4_BLOCK = 16
_REMEDY = "give a checkpoint in FP8 or NVFP4, or the model without quantisation"


def weights(settings: Mapping[str, Any], stored: StoredTensors) -> Iterator[StoredWeight]:
    """The weights that have scales. `settings`: the ``quantization_config``.

    Raises:
        CheckpointError: weights are of another kind, or their inputs are scaled as well.
    """
    algorithm = settings.get("quant_algo", "an unnamed algorithm")
    for key in stored:
        module, _, last = key.rpartition(".")
        if last == "pre_quant_scale":
            raise CheckpointError(
                f"{stored.name} is quantised by modelopt with {algorithm}, which scales the inputs of {module} as well; {_REMEDY}"
            )
        if last != "weight" or f"{key}_scale" not in stored:
            continue
        is_float4 = stored.dtype(key) == "U8" and f"{key}_scale_2" in stored
        if not is_float4 and not stored.is_float8(key):
            raise CheckpointError(
                f"{stored.name} is quantised by modelopt with {algorithm}, whose numbers of type {stored.dtype(key)} in "
                f"{key} are not read here; {_REMEDY}"
            )
        shape = pairs_unpacked(stored.shape(key)) if is_float4 else stored.shape(key)
        check_type(stored, f"{key}_scale", key, SMALL_SCALES if is_float4 else SCALES)
        if not is_float4:
            check_scales(stored.shape(f"{key}_scale"), shape, name=key)
        else:
            part_shape(stored, f"{key}_scale", key, (*shape[:-1], -(-shape[-1] // _NVFP4_BLOCK)))
            check_count(stored, f"{key}_scale_2", key, 1, FLOATS)
        parts = (key, f"{key}_scale", f"{key}_scale_2", f"{module}.input_scale")
        yield StoredWeight(
            name=key,
            sources=tuple(part for part in parts if part in stored),
            needed=parts[:2],
            read=partial(_float4 if is_float4 else _float8, stored, key),
            shape=shape,
        )


def _float8(stored: StoredTensors, key: str) -> torch.Tensor:
    return scaled(stored.read(key), float_scales(stored.read(f"{key}_scale")), name=key)


def _float4(stored: StoredTensors, key: str) -> torch.Tensor:
    scales = float_scales(stored.read(f"{key}_scale")) * stored.read(f"{key}_scale_2").float()
    return scaled(unpack_e2m1(stored.read(key)), scales, name=key)
