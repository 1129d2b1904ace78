"""Matrices in the blocks of llama.cpp, and the numbers that they stand for.

A format is described once, in terms of a few operations, and carried out twice: on arrays, where a lowering reads a weight, and
as nodes, in the body of the ONNX function that stands behind the bytes in a portable graph. Each operation rounds as it does in
the gguf package, so that both give its numbers bit for bit; only where a scale is no number, those of the nodes may be infinite.

Source of the formats: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/quants.py
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

#: Domain of the functions that make the numbers of a weight out of the bytes of a checkpoint's file.
DOMAIN = "qeff.stored"
_PREFIX = "Dequantize"
#: Numbers that are computed at a time: the arrays in between stay in a processor's cache.
_PIECE = 1 << 17

Array = NDArray[Any]
#: A matrix of bytes or of float32 with a row for each block.
M = TypeVar("M")


class _Operations(Protocol[M]):
    """What the formats are described in."""

    def parts(self, block: M, *sizes: int) -> tuple[M, ...]:
        """Bytes of each block one behind the other, so many in each part."""

    def bits(self, part: M, width: int, shifts: tuple[int, ...], mask: int) -> M:
        """Of each `width` bytes those bits that are left of `mask` after each shift to the right, one shift after the other."""

    def merged(self, low: M, high: M, shift: int) -> M:
        """``low | high << shift``."""

    def joined(self, first: M, second: M) -> M:
        """The columns of both."""

    def signed(self, part: M) -> M:
        """The bytes as such with a sign."""

    def half(self, part: M) -> M:
        """The number of the two bytes of a float16."""

    def scaled(self, scales: M, levels: M, zero: int = 0) -> M:
        """Each scale times its equal share of the levels of a block, less `zero`."""

    def plus(self, numbers: M, offsets: M) -> M:
        """Each offset added to its equal share of the numbers of a block, as many as those that shared a scale."""

    def minus(self, numbers: M, offsets: M) -> M:
        """As `plus`, taken from them."""


def _nibbles(o: _Operations[M], part: M, width: int) -> M:
    return o.bits(part, width, (0, 4), 15)


def _q4_0(o: _Operations[M], block: M) -> M:
    scale, levels = o.parts(block, 2, 16)
    return o.scaled(o.half(scale), _nibbles(o, levels, 16), 8)


def _q4_1(o: _Operations[M], block: M) -> M:
    scale, offset, levels = o.parts(block, 2, 2, 16)
    return o.plus(o.scaled(o.half(scale), _nibbles(o, levels, 16)), o.half(offset))


def _five_bits(o: _Operations[M], low: M, high: M) -> M:
    return o.merged(_nibbles(o, low, 16), o.bits(high, 1, tuple(range(8)), 1), 4)


def _q5_0(o: _Operations[M], block: M) -> M:
    scale, high, low = o.parts(block, 2, 4, 16)
    return o.scaled(o.half(scale), _five_bits(o, low, high), 16)


def _q5_1(o: _Operations[M], block: M) -> M:
    scale, offset, high, low = o.parts(block, 2, 2, 4, 16)
    return o.plus(o.scaled(o.half(scale), _five_bits(o, low, high)), o.half(offset))


def _q8_0(o: _Operations[M], block: M) -> M:
    scale, levels = o.parts(block, 2, 32)
    return o.scaled(o.half(scale), o.signed(levels))


def _q2_k(o: _Operations[M], block: M) -> M:
    steps, levels, scale, offset = o.parts(block, 16, 64, 2, 2)
    scales = o.scaled(o.half(scale), o.bits(steps, 16, (0,), 15))
    offsets = o.scaled(o.half(offset), o.bits(steps, 16, (4,), 15))
    return o.minus(o.scaled(scales, o.bits(levels, 32, (0, 2, 4, 6), 3)), offsets)


def _q3_k(o: _Operations[M], block: M) -> M:
    high, low, low_steps, high_steps, scale = o.parts(block, 32, 64, 8, 4, 2)
    steps = o.merged(_nibbles(o, low_steps, 8), o.bits(high_steps, 4, (0, 2, 4, 6), 3), 4)
    levels = o.merged(o.bits(low, 32, (0, 2, 4, 6), 3), o.bits(high, 32, tuple(range(8)), 1), 2)
    return o.scaled(o.scaled(o.half(scale), steps, 32), levels, 4)


def _steps_of_six_bits(o: _Operations[M], part: M) -> tuple[M, M]:
    """Eight steps of the scale and eight of the offset in twelve bytes."""
    scales, offsets, rest = o.parts(part, 4, 4, 4)
    return (
        o.joined(o.bits(scales, 4, (0,), 63), o.merged(o.bits(rest, 4, (0,), 15), o.bits(scales, 4, (6,), 3), 4)),
        o.joined(o.bits(offsets, 4, (0,), 63), o.merged(o.bits(rest, 4, (4,), 15), o.bits(offsets, 4, (6,), 3), 4)),
    )


def _scaled_by_steps(o: _Operations[M], scale: M, offset: M, steps: M, levels: M) -> M:
    of_scale, of_offset = _steps_of_six_bits(o, steps)
    return o.minus(o.scaled(o.scaled(o.half(scale), of_scale), levels), o.scaled(o.half(offset), of_offset))


def _q4_k(o: _Operations[M], block: M) -> M:
    scale, offset, steps, levels = o.parts(block, 2, 2, 12, 128)
    return _scaled_by_steps(o, scale, offset, steps, _nibbles(o, levels, 32))


def _q5_k(o: _Operations[M], block: M) -> M:
    scale, offset, steps, high, low = o.parts(block, 2, 2, 12, 32, 128)
    levels = o.merged(_nibbles(o, low, 32), o.bits(high, 32, tuple(range(8)), 1), 4)
    return _scaled_by_steps(o, scale, offset, steps, levels)


def _q6_k(o: _Operations[M], block: M) -> M:
    low, high, steps, scale = o.parts(block, 128, 64, 16, 2)
    levels = o.merged(_nibbles(o, low, 64), o.bits(high, 32, (0, 2, 4, 6), 3), 4)
    return o.scaled(o.scaled(o.half(scale), o.signed(steps)), levels, 32)


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """How the numbers of a block lie in its bytes."""

    #: As llama.cpp names it.
    name: str
    #: Numbers of a block.
    numbers: int
    #: Bytes of a block.
    width: int
    describe: Callable[[Any, Any], Any]

    @property
    def op_type(self) -> str:
        """The function of `DOMAIN` that makes numbers ``[..., columns]`` of bytes ``[..., bytes of a row]``."""
        return _PREFIX + self.name

    def shape_of(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the numbers in bytes of that shape."""
        return (*stored[:-1], stored[-1] // self.width * self.numbers)

    def dequantise(self, stored: Array) -> Array:
        """float32 ``[..., columns]`` of uint8 ``[..., bytes of a row]``."""
        blocks = np.ascontiguousarray(stored).reshape(-1, self.width)
        result: Array = np.empty((len(blocks), self.numbers), np.float32)
        step = _PIECE // self.numbers
        for first in range(0, len(blocks), step):
            result[first : first + step] = self.describe(_Arrays(), blocks[first : first + step])
        return result.reshape(self.shape_of(stored.shape))

    @property
    def function_text(self) -> str:
        """The function in ONNX text form."""
        return _function_text(self)


#: By the number of the type in a file.
FORMATS: Mapping[int, BlockFormat] = {
    number: BlockFormat(name=name, numbers=numbers, width=width, describe=describe)
    for number, name, numbers, width, describe in (
        (2, "Q4_0", 32, 18, _q4_0),
        (3, "Q4_1", 32, 20, _q4_1),
        (6, "Q5_0", 32, 22, _q5_0),
        (7, "Q5_1", 32, 24, _q5_1),
        (8, "Q8_0", 32, 34, _q8_0),
        (10, "Q2_K", 256, 84, _q2_k),
        (11, "Q3_K", 256, 110, _q3_k),
        (12, "Q4_K", 256, 144, _q4_k),
        (13, "Q5_K", 256, 176, _q5_k),
        (14, "Q6_K", 256, 210, _q6_k),
    )
}
#: By the name of the function.
FORMATS_BY_OP: Mapping[str, BlockFormat] = {found.op_type: found for found in FORMATS.values()}


class _Arrays:
    """The operations on NumPy arrays."""

    def parts(self, block: Array, *sizes: int) -> tuple[Array, ...]:
        ends = itertools.accumulate(sizes)
        return tuple(block[:, end - size : end] for end, size in zip(ends, sizes, strict=True))

    def bits(self, part: Array, width: int, shifts: tuple[int, ...], mask: int) -> Array:
        spread = part.reshape(len(part), -1, 1, width)
        found = spread >> np.array(shifts, np.uint8).reshape(1, 1, -1, 1) if shifts != (0,) else spread
        kept: Array = (found & np.uint8(mask)).reshape(len(part), -1)
        return kept

    def merged(self, low: Array, high: Array, shift: int) -> Array:
        both: Array = low | high << np.uint8(shift)
        return both

    def joined(self, first: Array, second: Array) -> Array:
        return np.concatenate([first, second], axis=1)

    def signed(self, part: Array) -> Array:
        return part.view(np.int8)

    def half(self, part: Array) -> Array:
        return np.ascontiguousarray(part).view("<f2").astype(np.float32)

    def scaled(self, scales: Array, levels: Array, zero: int = 0) -> Array:
        numbers = levels
        if zero:
            # The difference fits into a byte with a sign, which is less to write than float32 twice.
            numbers = (levels - np.uint8(zero)).view(np.int8)
        return (scales[:, :, None] * numbers.astype(np.float32).reshape(*scales.shape, -1)).reshape(len(levels), -1)

    def plus(self, numbers: Array, offsets: Array) -> Array:
        return (numbers.reshape(*offsets.shape, -1) + offsets[:, :, None]).reshape(len(numbers), -1)

    def minus(self, numbers: Array, offsets: Array) -> Array:
        return (numbers.reshape(*offsets.shape, -1) - offsets[:, :, None]).reshape(len(numbers), -1)


@dataclass(frozen=True)
class _Value:
    """A value in a function's text: its name, and the columns of its rows."""

    name: str
    columns: int


class _Nodes:
    """The operations as lines of a function.

    A runtime that folds constants keeps the result of each node until all are folded, so that few nodes may give float32 of all
    numbers: what can be done with bytes is done with bytes.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._numbers = itertools.count(1)

    def node(self, call: str) -> str:
        name = f"v{next(self._numbers)}"
        self.lines.append(f"{name} = {call}")
        return name

    def ints(self, *values: int) -> str:
        return self.node(f"Constant <value_ints = [{', '.join(map(str, values))}]> ()")

    def reshaped(self, name: str, *shape: int) -> str:
        return self.node(f"Reshape ({name}, {self.ints(*shape)})")

    def parts(self, block: _Value, *sizes: int) -> tuple[_Value, ...]:
        sizes_name = self.ints(*sizes)
        names = [f"v{next(self._numbers)}" for _ in sizes]
        self.lines.append(f"{', '.join(names)} = Split <axis = 1> ({block.name}, {sizes_name})")
        return tuple(map(_Value, names, sizes))

    def bits(self, part: _Value, width: int, shifts: tuple[int, ...], mask: int) -> _Value:
        if shifts == (0,):
            return _Value(self._masked(part.name, mask), part.columns)
        if len(shifts) == 1:
            moved = self.node(f'BitShift <direction = "RIGHT"> ({part.name}, {self._byte(shifts[0])})')
            return _Value(self._masked(moved, mask), part.columns)
        spread = self.reshaped(part.name, 0, -1, 1, width)
        amounts = self.reshaped(self.node(f"Cast <to = 2> ({self.ints(*shifts)})"), 1, 1, -1, 1)
        moved = self.node(f'BitShift <direction = "RIGHT"> ({spread}, {amounts})')
        return _Value(self.reshaped(self._masked(moved, mask), 0, -1), part.columns * len(shifts))

    def merged(self, low: _Value, high: _Value, shift: int) -> _Value:
        moved = self.node(f'BitShift <direction = "LEFT"> ({high.name}, {self._byte(shift)})')
        return _Value(self.node(f"BitwiseOr ({low.name}, {moved})"), low.columns)

    def joined(self, first: _Value, second: _Value) -> _Value:
        return _Value(self.node(f"Concat <axis = 1> ({first.name}, {second.name})"), first.columns + second.columns)

    def signed(self, part: _Value) -> _Value:
        # A cast between integers keeps the lower bits: https://onnx.ai/onnx/operators/onnx__Cast.html
        return _Value(self.node(f"Cast <to = 3> ({part.name})"), part.columns)

    def half(self, part: _Value) -> _Value:
        """There is no op that reads bytes as another type. Of NaN the result is infinite."""
        low, high = self.parts(part, 1, 1)
        exponents = self.node(f"Cast <to = 7> ({self.bits(high, 1, (2,), 31).name})")
        power = self.node(f"Gather ({self._floats(*_POWERS)}, {exponents})")
        leading = self.node(f"Gather ({self._floats(0.0, *[1024.0] * 31)}, {exponents})")
        upper = self._times_constant(self.bits(high, 1, (0,), 3), 256.0)
        mantissa = self.node(f"Add ({self.node(f'Add ({upper}, {self._cast(low)})')}, {leading})")
        sign = self.node(f"Sub ({self._floats(1.0)}, {self._times_constant(self.bits(high, 1, (7,), 1), 2.0)})")
        return _Value(self.node(f"Mul ({sign}, {self.node(f'Mul ({mantissa}, {power})')})"), 1)

    def scaled(self, scales: _Value, levels: _Value, zero: int = 0) -> _Value:
        column, shared = scales.name, levels.name
        if scales.columns > 1:
            column = self.reshaped(scales.name, -1, 1)
            shared = self.reshaped(levels.name, -1, levels.columns // scales.columns)
        numbers = self._cast(_Value(shared, levels.columns))
        if zero:
            numbers = self.node(f"Sub ({numbers}, {self._floats(float(zero))})")
        return _Value(self.node(f"Mul ({column}, {numbers})"), levels.columns)

    def plus(self, numbers: _Value, offsets: _Value) -> _Value:
        return self._moved("Add", numbers, offsets)

    def minus(self, numbers: _Value, offsets: _Value) -> _Value:
        return self._moved("Sub", numbers, offsets)

    def _moved(self, op_type: str, numbers: _Value, offsets: _Value) -> _Value:
        """`scaled` has left the numbers that share a scale in a row of their own."""
        column = self.reshaped(offsets.name, -1, 1)
        return _Value(self.node(f"{op_type} ({numbers.name}, {column})"), numbers.columns)

    def _byte(self, value: int) -> str:
        return self.node(f"Cast <to = 2> ({self.ints(value)})")

    def _masked(self, name: str, mask: int) -> str:
        return self.node(f"BitwiseAnd ({name}, {self._byte(mask)})")

    def _cast(self, part: _Value) -> str:
        return self.node(f"Cast <to = 1> ({part.name})")

    def _times_constant(self, part: _Value, factor: float) -> str:
        return self.node(f"Mul ({self._cast(part)}, {self._floats(factor)})")

    def _floats(self, *values: float) -> str:
        return self.node(f"Constant <value_floats = [{', '.join(map(repr, values))}]> ()")


#: By the exponent of a float16, what its mantissa of 11 bits is multiplied with. The last one stands for infinity.
_POWERS = (*(2.0 ** (max(exponent, 1) - 25) for exponent in range(31)), float(np.finfo(np.float32).max))


@cache
def _function_text(found: BlockFormat) -> str:
    nodes = _Nodes()
    rows = nodes.reshaped("stored", -1, found.width)
    numbers = found.describe(nodes, _Value(rows, found.width))
    outer = nodes.node("Shape <start = 0, end = -1> (stored)")
    shape = nodes.node(f"Concat <axis = 0> ({outer}, {nodes.ints(-1)})")
    nodes.lines.append(f"numbers = Reshape ({numbers.name}, {shape})")
    body = "\n    ".join(nodes.lines)
    return f"{found.op_type} (stored) => (numbers)\n{{\n    {body}\n}}\n"
