"""bitsandbytes: 8-bit rows, and 4-bit codes (NF4 or FP4) whose scales may be 8-bit codes themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.quantized.stored import StoredTensors
from qeff_framework.sources.quantized.weights import StoredWeight

#: The name, without the kind of code, under which the shape and the sizes of blocks are kept as JSON.
_STATE = "quant_state.bitsandbytes__"
_HIGHEST = 127


def weights(settings: Mapping[str, Any], stored: StoredTensors) -> Iterator[StoredWeight]:
    """The weights that are packed. `settings`, the ``quantization_config``, adds nothing to what lies beside each weight."""
    del settings
    for key in stored:
        module, _, last = key.rpartition(".")
        if last == "SCB":
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
            yield StoredWeight(
                name=name,
                sources=(key, *sources),
                needed=sources if "nested_blocksize" in state else sources[:3],
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
    state: dict[str, Any] = json.loads(bytes(stored.read(key).tolist()))
    return state


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
