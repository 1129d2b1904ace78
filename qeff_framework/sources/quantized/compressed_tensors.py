"""compressed-tensors: integers and 8- or 4-bit floating-point numbers with scales, packed or not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.quantized.floats import check_scales, float_scales, pairs_unpacked, scaled, unpack_e2m1
from qeff_framework.sources.quantized.integers import unpack_words
from qeff_framework.sources.quantized.parts import (
    FLOATS,
    INDICES,
    NUMBERS,
    SCALES,
    SMALL_SCALES,
    WORDS,
    check_count,
    check_type,
    part_shape,
)
from qeff_framework.sources.quantized.stored import StoredTensors
from qeff_framework.sources.quantized.weights import GroupedLevels, GroupLayout, StoredWeight, adjacent_block_size

#: Beside a weight, for the activations, which the portable graph computes as floating-point numbers.
_ACTIVATIONS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point")
#: Values of ``actorder`` with which groups are no blocks of adjacent inputs.
_ORDERS = (True, "group", "dynamic")
#: Adjacent inputs that share a scale.
_NVFP4_BLOCK, _MXFP4_BLOCK = 16, 32
_REMEDY = "give a checkpoint in a format without it, or the model without quantisation"


def weights(settings: Mapping[str, Any], stored: StoredTensors) -> Iterator[StoredWeight]:
    """The weights that have scales. `settings`: the ``quantization_config``.

    Raises:
        CheckpointError: weights are stored sparse, in the layout of one kernel, or are to be rotated while the model runs.
    """
    if settings.get("transform_config"):
        raise CheckpointError(
            f"{stored.name} is quantised by compressed-tensors with a transform_config, rotations that the model must compute "
            f"while it runs; {_REMEDY}"
        )
    layout = str(settings.get("format", ""))
    sparse = next((key for key in stored if key.endswith((".bitmask", ".compressed"))), None)
    if layout.startswith("marlin") or sparse is not None:
        what = f"the format '{layout}'" if sparse is None else "a sparse format"
        raise CheckpointError(
            f"{stored.name} is quantised by compressed-tensors in {what}, which is not read here; {_REMEDY}"
        )
    schemes = _schemes(settings)
    for key in stored:
        module, _, last = key.rpartition(".")
        if last == "weight_packed":
            yield _packed(stored, module, schemes)
        elif last == "weight" and f"{module}.weight_scale" in stored:
            if stored.dtype(key) in ("F64", "F32", "F16", "BF16"):
                raise CheckpointError(
                    f"{stored.name} is quantised by compressed-tensors, and holds {key} as floating-point numbers beside its "
                    "scale, to be rounded while the model runs; save it compressed (save_compressed=True), or give the "
                    "model without quantisation"
                )
            _check_plain(stored, key, schemes)
            yield StoredWeight(
                name=key,
                sources=_sources(stored, module),
                needed=_needed(schemes, module, ("weight", "weight_scale")),
                read=partial(_plain, stored, module, schemes),
                shape=stored.shape(key),
            )


def leaves_weights(settings: Mapping[str, Any]) -> bool:
    """Whether the config says that no weights are quantised, but only the cache."""
    return bool(settings.get("kv_cache_scheme")) and not _schemes(settings)


def _schemes(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How weights are quantised, in each of the config's groups."""
    groups = settings.get("config_groups") or {}
    return [group["weights"] for group in groups.values() if isinstance(group, Mapping) and group.get("weights")]


def _sources(stored: StoredTensors, module: str) -> tuple[str, ...]:
    parts = ("weight", "packed", "scale", "shape", "zero_point", "global_scale", "g_idx")
    own = (f"{module}.weight" if part == "weight" else f"{module}.weight_{part}" for part in parts)
    beside = (f"{module}.{part}" for part in _ACTIVATIONS)
    return tuple(key for key in (*own, *beside) if key in stored)


def _needed(schemes: list[Mapping[str, Any]], module: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    """The tensors without which there are no numbers: `parts`, and the zero points that every group of the config states."""
    if schemes and all(scheme.get("symmetric") is False for scheme in schemes):
        parts = (*parts, "weight_zero_point")
    return tuple(f"{module}.{part}" for part in parts)


def _plain(stored: StoredTensors, module: str, schemes: list[Mapping[str, Any]]) -> torch.Tensor:
    """int8 or float8 ``[out, in]``, with a scale for the tensor, each row, or each block."""
    name = f"{module}.weight"
    numbers, scales = stored.read(name), float_scales(stored.read(f"{name}_scale"))
    zero_name = f"{name}_zero_point"
    block = _block(schemes, tuple(numbers.shape), tuple(scales.shape))
    if zero_name in stored:
        zeros = scaled(torch.ones(numbers.shape), stored.read(zero_name).float(), name=name, block=block)
        return scaled(numbers.float() - zeros, scales, name=name, block=block)
    return scaled(numbers, scales, name=name, block=block)


def _check_plain(stored: StoredTensors, name: str, schemes: list[Mapping[str, Any]]) -> None:
    """Raises `CheckpointError` where scales or zero points do not fit the numbers."""
    shape, scales, zero_points = stored.shape(name), f"{name}_scale", f"{name}_zero_point"
    check_type(stored, name, name, NUMBERS)
    if schemes and all(scheme.get("strategy") == "channel" for scheme in schemes) and len(shape) > 1:
        check_count(stored, scales, name, math.prod(shape[:-1]))
    check_type(stored, scales, name, SCALES)
    for key in (scales, zero_points):
        if key in stored:
            counts = stored.shape(key)
            check_scales(counts, shape, name=name, block=_block(schemes, shape, counts))


def _block(schemes: list[Mapping[str, Any]], shape: tuple[int, ...], counts: tuple[int, ...]) -> tuple[int, int] | None:
    """The stated size of a block that gives so many scales."""
    structures = [tuple(scheme["block_structure"]) for scheme in schemes if scheme.get("block_structure")]
    default = structures[0] if structures and len(structures) == len(schemes) else None
    return next((found for found in structures if _fits(found, shape, counts)), default)


def _fits(block: tuple[int, ...], shape: tuple[int, ...], counts: tuple[int, ...]) -> bool:
    return len(block) == len(shape[-2:]) and counts[-2:] == tuple(
        -(-length // size) for length, size in zip(shape[-2:], block, strict=True)
    )


def _packed(stored: StoredTensors, module: str, schemes: list[Mapping[str, Any]]) -> StoredWeight:
    name, sources = f"{module}.weight", _sources(stored, module)
    if len(stored.shape(f"{name}_packed")) < 2:
        part_shape(stored, f"{name}_packed", name, (None, None))
    if stored.dtype(f"{name}_packed") == "U8":
        shape = pairs_unpacked(stored.shape(f"{name}_packed"))
        # NVFP4 has scales of FP8, and one for all of them; those of MXFP4 are powers of two.
        scale = f"{name}_scale"
        more = ("weight_global_scale",) if scale in stored and stored.is_float8(scale) else ()
        if scale in stored:
            size = _NVFP4_BLOCK if more else _MXFP4_BLOCK
            part_shape(stored, scale, name, (*shape[:-1], -(-shape[-1] // size)), SMALL_SCALES)
        if f"{name}_global_scale" in stored:
            check_count(stored, f"{name}_global_scale", name, 1, FLOATS)
        return StoredWeight(
            name=name,
            sources=sources,
            needed=_needed([], module, ("weight_packed", "weight_scale", *more)),
            read=partial(_float4, stored, module),
            shape=shape,
        )
    levels = partial(_levels, stored, module, schemes)
    # With one group there is no order to keep.
    is_ordered = bool(schemes) and all(scheme.get("actorder") in _ORDERS for scheme in schemes)
    has_groups = (
        f"{name}_scale" in stored and math.prod(stored.shape(f"{name}_scale")) > stored.shape(f"{name}_packed")[0]
    )
    order = ("weight_g_idx",) if is_ordered and has_groups else ()
    sizes = _sizes(stored, name)
    if sizes is not None and f"{name}_scale" in stored:
        _check_packed(stored, name, schemes, sizes)
    return StoredWeight(
        name=name,
        sources=sources,
        needed=_needed(schemes, module, ("weight_packed", "weight_scale", "weight_shape", *order)),
        read=lambda: levels().dequantised(),
        shape=sizes,
        levels=levels,
        layout=None if sizes is None else partial(_layout, stored, module, schemes, sizes[1]),
    )


def _sizes(stored: StoredTensors, name: str) -> tuple[int, int] | None:
    """Outputs and inputs, which lie in the file as two numbers; `None` where they are absent."""
    key = f"{name}_shape"
    if key not in stored:
        return None
    check_count(stored, key, name, 2, INDICES)
    outputs, inputs = (int(size) for size in stored.read(key).flatten())
    return outputs, inputs


def _check_packed(stored: StoredTensors, name: str, schemes: list[Mapping[str, Any]], sizes: tuple[int, int]) -> None:
    """Raises `CheckpointError` where the parts of a weight of packed integers do not fit its stated sizes."""
    outputs, inputs = sizes
    packed, scales, zeros, indices = (f"{name}_{part}" for part in ("packed", "scale", "zero_point", "g_idx"))
    part_shape(stored, packed, name, (outputs, None), WORDS)
    bits = _bits(stored, name, schemes, outputs, inputs)
    counts = stored.shape(scales)
    count = 1
    if math.prod(counts) == 1:
        check_type(stored, scales, name, FLOATS)
    else:
        count = counts[-1] if len(counts) > 1 else 1
        part_shape(stored, scales, name, (outputs, count) if len(counts) > 1 else (outputs,), FLOATS)
    if zeros in stored and stored.dtype(zeros) == "I32":
        part_shape(stored, zeros, name, (-(-outputs * bits // 32), count))
    elif zeros in stored and math.prod(stored.shape(zeros)) != 1:
        check_count(stored, zeros, name, outputs * count)
    if indices in stored:
        part_shape(stored, indices, name, (inputs,), INDICES)
    else:
        _groups(stored, name, schemes, inputs, count)


def _float4(stored: StoredTensors, module: str) -> torch.Tensor:
    """NVFP4 and MXFP4: two numbers in a byte, a scale for each group, and with NVFP4 a divisor for all of the scales."""
    name = f"{module}.weight"
    scales = float_scales(stored.read(f"{name}_scale"))
    if f"{name}_global_scale" in stored:
        scales = scales / stored.read(f"{name}_global_scale").float()
    return scaled(unpack_e2m1(stored.read(f"{name}_packed")), scales, name=name)


def _levels(stored: StoredTensors, module: str, schemes: list[Mapping[str, Any]]) -> GroupedLevels:
    """int32 words along the inputs; a level is the signed number plus half of their range. Zero points lie along the outputs."""
    name = f"{module}.weight"
    packed, scales = stored.read(f"{name}_packed"), stored.read(f"{name}_scale").float()
    outputs, inputs = (int(size) for size in stored.read(f"{name}_shape"))
    bits = _bits(stored, name, schemes, outputs, inputs)
    scales = scales.reshape(1, 1).expand(outputs, 1) if scales.numel() == 1 else scales.reshape(outputs, -1)
    middle = 1 << (bits - 1)
    zero_points = torch.full(scales.shape, middle, dtype=torch.uint8)
    if f"{name}_zero_point" in stored:
        zeros = stored.read(f"{name}_zero_point")
        if zeros.dtype == torch.int32:
            zero_points = unpack_words(zeros.T.contiguous(), bits, outputs).T.contiguous()
        else:
            # As older versions saved them: signed numbers, not packed.
            zeros = zeros.expand(outputs, 1) if zeros.numel() == 1 else zeros.reshape(outputs, -1)
            zero_points = (zeros.int() + middle).to(torch.uint8)
    block_size, groups = _groups(stored, name, schemes, inputs, scales.shape[1])
    return GroupedLevels(
        levels=unpack_words(packed, bits, inputs),
        scales=scales.contiguous(),
        zero_points=zero_points,
        bits=bits,
        block_size=block_size,
        groups=groups,
    )


def _layout(stored: StoredTensors, module: str, schemes: list[Mapping[str, Any]], inputs: int) -> GroupLayout:
    name = f"{module}.weight"
    outputs = stored.shape(f"{name}_packed")[0]
    count = max(1, math.prod(stored.shape(f"{name}_scale")) // outputs)
    block_size, groups = _groups(stored, name, schemes, inputs, count)
    bits = _bits(stored, name, schemes, outputs, inputs)
    return GroupLayout(bits=bits, block_size=block_size, count=count, is_adjacent=groups is None)


def _groups(
    stored: StoredTensors, name: str, schemes: list[Mapping[str, Any]], inputs: int, count: int
) -> tuple[int, torch.Tensor | None]:
    """The size of a group, and the group of each input where groups are no blocks of adjacent ones."""
    indices = f"{name}_g_idx"
    groups = stored.read(indices).long() if indices in stored else None
    # Without an order of activations every entry is -1.
    ordered = groups is not None and bool((groups >= 0).all())
    if ordered and groups is not None and int(groups.max()) >= count:
        raise CheckpointError(
            f"{stored.name} holds {indices} with groups up to {int(groups.max())}, and scales for {count}; download the "
            "checkpoint again"
        )
    sizes = [int(scheme["group_size"]) for scheme in schemes if scheme.get("group_size")] or [-1]
    stated = next((size for size in sizes if size > 0 and -(-inputs // size) == count), sizes[0])
    return adjacent_block_size(inputs, count, stated, name), groups if ordered else None


def _bits(stored: StoredTensors, name: str, schemes: list[Mapping[str, Any]], outputs: int, inputs: int) -> int:
    """Bits of a number. Raises `CheckpointError` where the words of a row hold no stated number of them."""
    words = stored.shape(f"{name}_packed")[1]
    stated_bits = sorted({int(scheme.get("num_bits", 8)) for scheme in schemes})
    bits = next((bits for bits in stated_bits if -(-inputs * bits // 32) == words), None)
    if bits is None:
        raise CheckpointError(
            f"{stored.name} is quantised by compressed-tensors, and {name} [{outputs}, {inputs}] lies in {words} "
            f"words a row, which {stated_bits} bits of its config.json do not fit; save it again with a current "
            "compressed-tensors, or give the model without quantisation"
        )
    return bits
