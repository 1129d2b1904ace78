"""The tensors that make one packed weight: whether they fit together, told by the headers of the files alone."""

from __future__ import annotations

import math

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.quantized.stored import StoredTensors

#: Types of the tensors, in the terms of safetensors.
WORDS = frozenset({"I32"})
BYTES = frozenset({"U8"})
INDICES = frozenset({"I32", "I64"})
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
#: Scales may be 8-bit floating-point numbers, or bytes that are exponents of two.
SCALES = FLOATS | BYTES | {"F8_E4M3", "F8_E4M3FN", "F8_E5M2", "F8_E8M0"}
#: Those of 4-bit numbers in two formats.
SMALL_SCALES = SCALES - FLOATS
#: Numbers that are scaled as they are.
NUMBERS = frozenset({"I8", "F8_E4M3", "F8_E4M3FN", "F8_E5M2"})


def part_shape(
    stored: StoredTensors, key: str, weight: str, wanted: tuple[int | None, ...], types: frozenset[str] | None = None
) -> tuple[int, ...]:
    """The shape of the tensor `key`, a part of `weight`.

    Args:
        stored: holds the tensor.
        key: its name.
        weight: what it is a part of, for the message.
        wanted: its sizes by what the other parts and the config say; `None` where they do not say one.
        types: what its numbers may be, in the terms of safetensors; `None` for anything.

    Raises:
        CheckpointError: it has another shape or type, so that its numbers would be taken for others.
    """
    shape = stored.shape(key)
    fits = len(shape) == len(wanted) and all(size in (None, found) for size, found in zip(wanted, shape, strict=True))
    if not fits:
        told = ", ".join("any" if size is None else str(size) for size in wanted)
        raise _unfit(stored, key, weight, f"is {list(shape)}, and the other parts of {weight} fit [{told}]")
    check_type(stored, key, weight, types)
    return shape


def check_count(stored: StoredTensors, key: str, weight: str, wanted: int, types: frozenset[str] | None = None) -> None:
    """Raises `CheckpointError` unless the tensor `key`, a part of `weight`, holds `wanted` numbers of one of `types`."""
    count = math.prod(stored.shape(key))
    if count != wanted:
        raise _unfit(stored, key, weight, f"holds {count} numbers, and the other parts of {weight} fit {wanted}")
    check_type(stored, key, weight, types)


def check_type(stored: StoredTensors, key: str, weight: str, types: frozenset[str] | None) -> None:
    """Raises `CheckpointError` for a tensor whose numbers are of none of `types`."""
    dtype = stored.dtype(key).removeprefix("torch.").upper()
    named = _NAMES.get(dtype, dtype)
    if types is not None and named not in types:
        raise _unfit(
            stored, key, weight, f"holds numbers of type {named}, and {weight} needs {' or '.join(sorted(types))}"
        )


def has_all(stored: StoredTensors, keys: tuple[str, ...]) -> bool:
    """Whether all of `keys` are there, so that they can be compared; an absent one is told by its name elsewhere."""
    return all(key in stored for key in keys)


def _unfit(stored: StoredTensors, key: str, weight: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{stored.name} cannot be dequantised: {key} {problem}; the file is damaged, or the config.json and {weight} are those "
        "of two checkpoints: download both again"
    )


#: How torch calls some of them, of tensors in files that it has written.
_NAMES = {
    "FLOAT64": "F64",
    "FLOAT32": "F32",
    "FLOAT16": "F16",
    "BFLOAT16": "BF16",
    "FLOAT8_E8M0FNU": "F8_E8M0",
    "INT64": "I64",
}
