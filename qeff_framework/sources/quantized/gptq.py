"""GPTQ: levels of 2, 3, 4 or 8 bits, packed along the inputs, with or without an order of activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.quantized.integers import unpack_words
from qeff_framework.sources.quantized.parts import FLOATS, INDICES, WORDS, has_all, part_shape
from qeff_framework.sources.quantized.stored import StoredTensors
from qeff_framework.sources.quantized.weights import (
    GroupedLevels,
    GroupLayout,
    StoredWeight,
    adjacent_block_size,
    stated_size,
)

#: What is added to the zero points in the files.
_ZERO_POINT_OFFSETS = {"gptq": 1, "gptq_v2": 0}
_BITS = (2, 3, 4, 8)


def weights(settings: Mapping[str, Any], stored: StoredTensors) -> Iterator[StoredWeight]:
    """The weights that are packed. `settings`: the ``quantization_config``.

    Raises:
        CheckpointError: a layout that is made for one kernel, such as that of Marlin.
    """
    layout = str(settings.get("checkpoint_format") or settings.get("format") or "gptq").lower()
    layout = "marlin" if settings.get("is_marlin_format") else layout
    if layout not in _ZERO_POINT_OFFSETS:
        raise CheckpointError(
            f"{stored.name} is quantised by GPTQ in the layout '{layout}'; those read here are 'gptq' and 'gptq_v2': give a "
            "checkpoint in one of them (the original of a repacked one is), or the model without quantisation"
        )
    offset = _ZERO_POINT_OFFSETS[layout]
    for key in stored:
        module, _, last = key.rpartition(".")
        if last == "qweight":
            group_size = stated_size(settings.get("group_size"), -1)
            _refuse_lost_order(settings, stored, module)
            _check_parts(stored, module, group_size)
            levels = partial(_levels, stored, module, offset, group_size)
            yield StoredWeight(
                name=f"{module}.weight",
                sources=tuple(f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")),
                needed=tuple(f"{module}.{part}" for part in ("qweight", "qzeros", "scales")),
                read=lambda levels=levels: levels().dequantised(),  # type: ignore[misc]
                levels=levels,
                layout=partial(_layout, stored, module, group_size),
                shape=_shape(stored, module),
            )


def _refuse_lost_order(settings: Mapping[str, Any], stored: StoredTensors, module: str) -> None:
    """Raises `CheckpointError` where several groups are no blocks of adjacent inputs, and which ones they are was lost."""
    scales = f"{module}.scales"
    if (
        not settings.get("desc_act")
        or settings.get("static_groups")
        or (f"{module}.g_idx" in stored and bool(stored.read(f"{module}.g_idx").any()))
        or scales not in stored
        or stored.shape(scales)[0] == 1
    ):
        return
    raise CheckpointError(
        f"{stored.name} lacks {module}.g_idx, or it holds zeros alone, and it says to which group an input belongs: the config "
        "states desc_act=true; download the checkpoint again"
    )


def _check_parts(stored: StoredTensors, module: str, group_size: int) -> None:
    """Raises `CheckpointError` where the shapes or types of the parts of a weight do not fit together."""
    qweight, qzeros, scales, indices = (f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))
    if not has_all(stored, (qweight, qzeros, scales)):
        return
    name = f"{module}.weight"
    count, outputs = part_shape(stored, scales, name, (None, None), FLOATS)
    _, zero_words = part_shape(stored, qzeros, name, (count, None), WORDS)
    words, _ = part_shape(stored, qweight, name, (None, outputs), WORDS)
    # A module may have other bits than the config states for most.
    bits = zero_words * 32 // outputs if outputs else 0
    if bits not in _BITS or -(-outputs * bits // 32) != zero_words:
        raise CheckpointError(
            f"{stored.name} is quantised by GPTQ with {bits} bits in {module}; 2, 3, 4 and 8 bits are read here: give a "
            "checkpoint with one of them, or the model without quantisation"
        )
    packed = words * 32 // bits
    if indices not in stored:
        adjacent_block_size(packed, count, group_size, name)
        return
    (inputs,) = part_shape(stored, indices, name, (None,), INDICES)
    # The inputs of a module may be filled up to whole groups.
    if not 0 <= packed - inputs < max(32, group_size):
        part_shape(stored, qweight, name, (-(-inputs * bits // 32), outputs))


def _shape(stored: StoredTensors, module: str) -> tuple[int, ...] | None:
    names = {part: f"{module}.{part}" for part in ("qweight", "qzeros", "g_idx")}
    if names["qzeros"] not in stored or len(stored.shape(names["qweight"])) != 2:
        return None
    words, outputs = stored.shape(names["qweight"])
    if names["g_idx"] in stored:
        return (outputs, stored.shape(names["g_idx"])[0])
    bits = stored.shape(names["qzeros"])[1] * 32 // outputs
    return (outputs, words * 32 // bits) if bits else None


def _layout(stored: StoredTensors, module: str, group_size: int) -> GroupLayout:
    count, outputs = stored.shape(f"{module}.scales")
    bits = stored.shape(f"{module}.qzeros")[1] * 32 // outputs
    _, block_size, groups = _groups(stored, module, bits, group_size)
    return GroupLayout(bits=bits, block_size=block_size, count=count, is_adjacent=groups is None)


def _groups(stored: StoredTensors, module: str, bits: int, group_size: int) -> tuple[int, int, torch.Tensor | None]:
    """The number of inputs, the size of a group, and the group of each input where groups are no blocks of adjacent ones."""
    indices = f"{module}.g_idx"
    count = stored.shape(f"{module}.scales")[0]
    groups = stored.read(indices).long() if indices in stored else None
    # Zeros alone are what kernels that take adjacent inputs are given in the place of groups.
    if groups is None or (count > 1 and not groups.any()):
        inputs = stored.shape(f"{module}.qweight")[0] * 32 // bits
        return inputs, adjacent_block_size(inputs, count, group_size, f"{module}.weight"), None
    if int(groups.min()) < 0 or int(groups.max()) >= count:
        raise CheckpointError(
            f"{stored.name} holds {indices} with the groups {int(groups.min())} to {int(groups.max())}, and scales for {count}; "
            "download the checkpoint again"
        )
    # A module may have groups of another size than the config states for most.
    block_size = int((groups == groups[0]).sum())
    is_adjacent = torch.equal(groups, torch.arange(len(groups)) // block_size)
    return len(groups), block_size, None if is_adjacent else groups


def _levels(stored: StoredTensors, module: str, offset: int, group_size: int) -> GroupedLevels:
    """``qweight`` is ``[in * bits / 32, out]``, ``qzeros`` ``[groups, out * bits / 32]``, ``scales`` ``[groups, out]``."""
    scales = stored.read(f"{module}.scales").float().T.contiguous()
    outputs = scales.shape[0]
    qweight, qzeros = (stored.read(f"{module}.{part}") for part in ("qweight", "qzeros"))
    bits = qzeros.shape[1] * 32 // outputs
    inputs, block_size, groups = _groups(stored, module, bits, group_size)
    zero_points = unpack_words(qzeros, bits, outputs).T.contiguous()
    return GroupedLevels(
        levels=unpack_words(qweight.T.contiguous(), bits, inputs),
        scales=scales,
        # What was 0 before 1 was taken away is the highest level in the file.
        zero_points=(zero_points + offset) & ((1 << bits) - 1),
        bits=bits,
        block_size=block_size,
        groups=groups,
    )
