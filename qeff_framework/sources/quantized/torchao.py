"""torchao: tensors of its classes, whose parts lie in safetensors files and whose kinds in the files' headers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.quantized.floats import check_scales, float_scales, scaled
from qeff_framework.sources.quantized.parts import NUMBERS, SCALES, check_type, has_all
from qeff_framework.sources.quantized.stored import StoredTensors
from qeff_framework.sources.quantized.weights import StoredWeight

#: Classes whose numbers lie as they are, with a scale, and maybe a zero point, for each block.
_CLASSES = ("Float8Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor")
_PLAIN = "Tensor"


def weights(settings: Mapping[str, Any], stored: StoredTensors) -> Iterator[StoredWeight]:
    """The weights that are tensors of torchao. `settings`, the ``quantization_config``, adds nothing to the headers.

    Raises:
        CheckpointError: a class whose numbers lie in the order of a kernel.
    """
    del settings
    for name, text in stored.metadata.items():
        kind = _described(text)
        if kind is None or kind["_type"] == _PLAIN:
            continue
        if kind["_type"] not in _CLASSES:
            raise CheckpointError(
                f"{stored.name} is quantised by torchao, and {name} is a {kind['_type']}; those read here are "
                f"{', '.join(_CLASSES)}: save it again in one of them, or give the model without quantisation"
            )
        module, _, last = name.rpartition(".")
        prefix = f"{module}._{last}_"
        try:
            sources = tuple(prefix + part for part in kind["_tensor_data_names"])
            block = tuple(int(size) for size in kind["_data"]["block_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{stored.name} is quantised by torchao, and the header of its file does not say how {name} lies there; save it "
                "again with a current torchao, or give the model without quantisation"
            ) from error
        _check_parts(stored, name, prefix, block)
        yield StoredWeight(
            name=name,
            sources=sources,
            needed=(f"{prefix}qdata", f"{prefix}scale"),
            read=partial(_weight, stored, name, prefix, block),
            shape=stored.shape(f"{prefix}qdata") if f"{prefix}qdata" in stored else None,
        )


def _check_parts(stored: StoredTensors, name: str, prefix: str, block: tuple[int, ...]) -> None:
    """Raises `CheckpointError` where scales or zero points do not fit the numbers."""
    data, scales, zero_points = (f"{prefix}{part}" for part in ("qdata", "scale", "zero_point"))
    if not has_all(stored, (data, scales)):
        return
    sizes = (block[-2], block[-1])
    check_scales(stored.shape(scales), stored.shape(data), name=name, block=sizes)
    check_type(stored, data, name, NUMBERS)
    check_type(stored, scales, name, SCALES)
    if zero_points in stored:
        check_scales(stored.shape(zero_points), stored.shape(data), name=name, block=sizes)


def _described(text: str) -> Mapping[str, Any] | None:
    """What a header says about one tensor; `None` for other entries."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) and "_type" in content else None


def _weight(stored: StoredTensors, name: str, prefix: str, block: tuple[int, ...]) -> torch.Tensor:
    numbers = stored.read(f"{prefix}qdata").float()
    sizes = (block[-2], block[-1])
    zero_points = f"{prefix}zero_point"
    if zero_points in stored:
        numbers = numbers - scaled(torch.ones(numbers.shape), stored.read(zero_points).float(), name=name, block=sizes)
    return scaled(numbers, float_scales(stored.read(f"{prefix}scale")), name=name, block=sizes)
