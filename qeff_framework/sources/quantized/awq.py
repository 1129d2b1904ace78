"""AWQ: 4-bit levels in groups of inputs, as AutoAWQ and its successors pack them for two of their kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.quantized.integers import unpack_words
from qeff_framework.sources.quantized.parts import FLOATS, WORDS, has_all, part_shape
from qeff_framework.sources.quantized.stored import StoredTensors
from qeff_framework.sources.quantized.weights import (
    GroupedLevels,
    GroupLayout,
    StoredWeight,
    adjacent_block_size,
    stated_size,
)

#: Which of eight columns stands at which place of a word, in the layout for matrix products.
_GEMM_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_BITS = 4
_PER_WORD = 8


def weights(settings: Mapping[str, Any], stored: StoredTensors) -> Iterator[StoredWeight]:
    """The weights that are packed. `settings`: the ``quantization_config``.

    Raises:
        CheckpointError: a layout other than "gemm" and "gemv", or other than 4 bits.
    """
    version = str(settings.get("version", settings.get("format", "gemm"))).lower()
    bits = settings.get("bits", settings.get("w_bit", _BITS))
    if version not in _READERS or settings.get("backend") == "llm-awq" or bits != _BITS:
        layout = "llm-awq" if settings.get("backend") == "llm-awq" else version
        raise CheckpointError(
            f"{stored.name} is quantised by AWQ with {bits} bits in the layout '{layout}'; those read here are 4 bits in 'gemm' "
            "and 'gemv': give a checkpoint in one of them (most repositories of AWQ are 'gemm'), or the model without "
            "quantisation"
        )
    reader = _READERS[version]
    group_size = stated_size(settings.get("group_size", settings.get("q_group_size", 128)), -1)
    for key in stored:
        module, _, last = key.rpartition(".")
        if last == "qweight":
            _check_parts(stored, module, version, group_size)
            levels = partial(reader, stored, module, group_size)
            yield StoredWeight(
                name=f"{module}.weight",
                sources=tuple(f"{module}.{part}" for part in ("qweight", "qzeros", "scales")),
                needed=tuple(f"{module}.{part}" for part in ("qweight", "qzeros", "scales")),
                read=lambda levels=levels: levels().dequantised(),  # type: ignore[misc]
                levels=levels,
                layout=partial(_LAYOUTS[version], stored, module, group_size),
                shape=_shape(stored, module, version),
            )


def _check_parts(stored: StoredTensors, module: str, version: str, group_size: int) -> None:
    """Raises `CheckpointError` where the shapes or types of the parts of a weight do not fit together."""
    qweight, qzeros, scales = (f"{module}.{part}" for part in ("qweight", "qzeros", "scales"))
    if not has_all(stored, (qweight, qzeros, scales)):
        return
    name = f"{module}.weight"
    if version == "gemm":
        inputs, words = part_shape(stored, qweight, name, (None, None), WORDS)
        count, _ = part_shape(stored, scales, name, (None, words * _PER_WORD), FLOATS)
        part_shape(stored, qzeros, name, (count, words), WORDS)
        adjacent_block_size(inputs, count, group_size, name)
        return
    outputs, words = part_shape(stored, qweight, name, (None, None), WORDS)
    groups = 1 if group_size == -1 else -(-words * _PER_WORD // group_size)
    # Both are filled up to the kernel's width.
    for key, least, types in ((scales, groups, FLOATS), (qzeros, -(-groups // _PER_WORD), WORDS)):
        _, width = part_shape(stored, key, name, (outputs, None), types)
        if width < least:
            part_shape(stored, key, name, (outputs, least))


def _shape(stored: StoredTensors, module: str, version: str) -> tuple[int, ...] | None:
    key = f"{module}.qweight"
    if len(stored.shape(key)) != 2:
        return None
    first, words = stored.shape(key)
    return (words * _PER_WORD, first) if version == "gemm" else (first, words * _PER_WORD)


def _gemm(stored: StoredTensors, module: str, group_size: int) -> GroupedLevels:
    """Packed along the outputs: ``qweight`` is ``[in, out / 8]``."""
    scales = stored.read(f"{module}.scales").float().T.contiguous()
    outputs = scales.shape[0]
    qweight, qzeros = (stored.read(f"{module}.{part}") for part in ("qweight", "qzeros"))
    block_size = adjacent_block_size(qweight.shape[0], scales.shape[1], group_size, f"{module}.weight")
    return GroupedLevels(
        levels=unpack_words(qweight, _BITS, outputs, order=_GEMM_ORDER).T.contiguous(),
        scales=scales,
        zero_points=unpack_words(qzeros, _BITS, outputs, order=_GEMM_ORDER).T.contiguous(),
        bits=_BITS,
        block_size=block_size,
    )


def _gemv(stored: StoredTensors, module: str, group_size: int) -> GroupedLevels:
    """Packed along the inputs: ``qweight`` is ``[out, in / 8]``; scales and zero points are padded to the kernel's width."""
    qweight = stored.read(f"{module}.qweight")
    inputs = qweight.shape[1] * _PER_WORD
    groups = 1 if group_size == -1 else -(-inputs // group_size)
    return GroupedLevels(
        levels=unpack_words(qweight, _BITS, inputs),
        scales=stored.read(f"{module}.scales")[:, :groups].float(),
        zero_points=unpack_words(stored.read(f"{module}.qzeros"), _BITS, groups),
        bits=_BITS,
        block_size=inputs if group_size == -1 else group_size,
    )


def _gemm_layout(stored: StoredTensors, module: str, group_size: int) -> GroupLayout:
    inputs, count = stored.shape(f"{module}.qweight")[0], stored.shape(f"{module}.scales")[0]
    block_size = adjacent_block_size(inputs, count, group_size, f"{module}.weight")
    return GroupLayout(bits=_BITS, block_size=block_size, count=count)


def _gemv_layout(stored: StoredTensors, module: str, group_size: int) -> GroupLayout:
    inputs = stored.shape(f"{module}.qweight")[1] * _PER_WORD
    block_size = inputs if group_size == -1 else group_size
    return GroupLayout(bits=_BITS, block_size=block_size, count=-(-inputs // block_size))


_READERS = {"gemm": _gemm, "gemv": _gemv}
_LAYOUTS = {"gemm": _gemm_layout, "gemv": _gemv_layout}
