"""bitsandbytes: 8-bit rows, and 4-bit codes (NF4 or FP4) whose scales may be 8-bit codes themselves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.quantized.parts import BYTES, FLOATS, check_count, check_type, has_all, part_shape
from qeff_framework.sources.quantized.stored import StoredTensors
from qeff_framework.sources.quantized.weights import StoredWeight

#: The name, without the kind of code, under which the shape and the sizes of blocks are kept as JSON.
_STATE = "quant_state.bitsandbytes__"
_HIGHEST = 127
#: Types in which 4-bit codes are stored, with their bytes.
_STORAGES = {"U8": 1, "I8": 1, "BF16": 2, "F16": 2, "F32": 4}
_ROWS = frozenset({"I8"})


def weights(settings: Mapping[str, Any], stored: StoredTensors) -> Iterator[StoredWeight]:
    """The weights that are packed. `settings`, the ``quantization_config``, adds nothing to what lies beside each weight."""
    del settings
    for key in stored:
        module, _, last = key.rpartition(".")
        if last == "SCB":
            if f"{module}.weight_format" in stored:
                check_count(stored, f"{module}.weight_format", f"{module}.weight", 1)
            if f"{module}.weight" in stored:
                outputs, _ = part_shape(stored, f"{module}.weight", f"{module}.weight", (None, None), _ROWS)
                check_count(stored, key, f"{module}.weight", outputs, FLOATS)
            yield StoredWeight(
                name=f"{module}.weight",
                sources=(f"{module}.weight", key, f"{module}.weight_format"),
                needed=(f"{module}.weight",),
                read=partial(_rows, stored, module),
                shape=stored.shape(f"{module}.weight") if f"{module}.weight" in stored else None,
            )
        elif last.startswith(_STATE.rpartition(".")[2]):
            # module.weight.quant_state.bitsandbytes__nf4
            name = key.removesuffix(f".{_STATE}{last.removeprefix(_STATE.rpartition('.')[2])}")
            parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
            state = _state(stored, key)
            sources = (name, *(f"{name}.{part}" for part in parts))
            needed = sources if "nested_blocksize" in state else sources[:3]
            if has_all(stored, needed):
                _check_codes(stored, name, state)
            yield StoredWeight(
                name=name,
                sources=(key, *sources),
                needed=needed,
                read=partial(_codes, stored, name, key),
                shape=tuple(int(size) for size in state["shape"]),
            )


def _rows(stored: StoredTensors, module: str) -> torch.Tensor:
    layout = f"{module}.weight_format"
    if layout in stored and int(stored.read(layout)) != 0:
        raise CheckpointError(
            f"{stored.name} holds {module}.weight of bitsandbytes in the order of one GPU kernel; save the checkpoint again "
            "with a current bitsandbytes, or give the model without quantisation"
        )
    return stored.read(f"{module}.weight").float() * (stored.read(f"{module}.SCB").float() / _HIGHEST).unsqueeze(1)


def _state(stored: StoredTensors, key: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(bytes(stored.read(key).tolist()))
        sizes = [state["blocksize"], *state["shape"], state.get("nested_blocksize", 1)]
    except (KeyError, TypeError, ValueError):
        sizes = [None]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise CheckpointError(
            f"{stored.name} holds {key}, which does not say the shape and the blocks of its weight; download the checkpoint again"
        )
    return state


def _check_codes(stored: StoredTensors, name: str, state: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` where the parts of a weight of 4-bit codes do not fit the sizes that are stated beside it."""
    count = math.prod(int(size) for size in state["shape"])
    blocks = -(-count // int(state["blocksize"]))
    # The bytes may be stored as numbers of another type.
    check_type(stored, name, name, frozenset(_STORAGES))
    check_count(stored, name, name, -(-count // (2 * _STORAGES.get(stored.dtype(name), 2))))
    check_count(stored, f"{name}.quant_map", name, 16, FLOATS)
    if "nested_blocksize" not in state:
        check_count(stored, f"{name}.absmax", name, blocks, FLOATS)
        return
    check_count(stored, f"{name}.absmax", name, blocks, BYTES)
    check_count(stored, f"{name}.nested_quant_map", name, 256, FLOATS)
    check_count(stored, f"{name}.nested_absmax", name, -(-blocks // int(state["nested_blocksize"])), FLOATS)


def _codes(stored: StoredTensors, name: str, state_name: str) -> torch.Tensor:
    state = _state(stored, state_name)
    scales = stored.read(f"{name}.absmax")
    if "nested_blocksize" in state:
        scales = _looked_up(
            scales.flatten().long(),
            stored.read(f"{name}.nested_quant_map"),
            stored.read(f"{name}.nested_absmax"),
            int(state["nested_blocksize"]),
        )
        scales = scales + float(state["nested_offset"])
    packed = stored.read(name).contiguous().view(torch.uint8).flatten()
    # The upper half of a byte comes first.
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
    shape = [int(size) for size in state["shape"]]
    count = torch.Size(shape).numel()
    table = stored.read(f"{name}.quant_map")
    return _looked_up(codes[:count], table, scales, int(state["blocksize"])).reshape(shape)


def _looked_up(codes: torch.Tensor, table: torch.Tensor, scales: torch.Tensor, block_size: int) -> torch.Tensor:
    """float32: the value of each code, times the scale of its block."""
    factors = scales.float().flatten().repeat_interleave(block_size)[: len(codes)]
    return table.float()[codes] * factors
