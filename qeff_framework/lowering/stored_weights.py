"""Loading a portable graph: weights that it refers to in a checkpoint's own files become weights as the compilers want them.

In the file a weight may be 16 bits wide, lie in the blocks of llama.cpp, lie transposed, or be joined from several; the graph
says so in standard ops, and in functions with such a body (`gguf_blocks`). Here these ops become part of the weight, which is
computed, a piece at a time, when a backend reads or writes it.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.errors import ArtifactCorruptError
from qeff_framework.gguf_blocks import DOMAIN as BLOCKS
from qeff_framework.gguf_blocks import FORMATS_BY_OP
from qeff_framework.lowering.layer_functions import InlineLayers
from qeff_framework.lowering.values import graph_of

#: Between the name of a weight and a number, in the names of what it is made from.
STORED = ".stored."
#: Most bytes of a weight that exist a second time while it is converted.
_CHUNK_BYTES = 16 * 2**20
#: Most bytes of a turned weight that are held at a time, as it is stored; all of it is read for each such part.
_TURNED_BYTES = 256 * 2**20
#: Columns of a turned matrix that are copied at a time. The table of Gemma 3 270M takes 0.4 s with 64, 0.6 with 16 or 2,048,
#: and 2 to 3 s at once.
_TURNED_COLUMNS = 64

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class _File:
    """Numbers of a file."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: ir.DataType

    def rows(self, start: int, stop: int) -> Array:
        row = math.prod(self.shape[1:])
        dtype = _number_type(self.dtype)
        count = row * (stop - start)
        try:
            found = np.fromfile(self.path, dtype, count, offset=self.offset + start * row * dtype.itemsize)
        except OSError as error:
            raise ArtifactCorruptError(f"the weights in {self.path} cannot be read: {error}") from error
        if found.size != count:
            raise ArtifactCorruptError(
                f"the weights in {self.path} are not all there any more: the file is shorter than it was when it was exported. "
                "Export again from a complete checkpoint"
            )
        return found.reshape(stop - start, *self.shape[1:])

    def is_hole(self, start: int, stop: int) -> bool:
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return file_has_hole(self.path, self.offset + int(start * row), self.offset + int(stop * row))


@dataclass(frozen=True, kw_only=True)
class _Dequantised:
    """float32 of what is stored in blocks."""

    stored: _File
    #: Name of the function.
    op_type: str

    @property
    def shape(self) -> tuple[int, ...]:
        return FORMATS_BY_OP[self.op_type].shape_of(self.stored.shape)

    @property
    def dtype(self) -> ir.DataType:
        return ir.DataType.FLOAT

    def rows(self, start: int, stop: int) -> Array:
        return FORMATS_BY_OP[self.op_type].dequantise(self.stored.rows(start, stop))

    def is_hole(self, start: int, stop: int) -> bool:
        return self.stored.is_hole(start, stop)


@dataclass(frozen=True, kw_only=True)
class _Cast:
    """float32 of what is stored in 16 bits."""

    source: _Stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def dtype(self) -> ir.DataType:
        return ir.DataType.FLOAT

    def rows(self, start: int, stop: int) -> Array:
        return self.converted(self.source.rows(start, stop))

    def converted(self, rows: Array) -> Array:
        return _widened(rows, self.source.dtype)

    def is_hole(self, start: int, stop: int) -> bool:
        return self.source.is_hole(start, stop)


@dataclass(frozen=True, kw_only=True)
class _Rounded:
    """float16 of what is stored in bfloat16. Numbers beyond the range of float16 become infinite."""

    source: _Stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def dtype(self) -> ir.DataType:
        return ir.DataType.FLOAT16

    def rows(self, start: int, stop: int) -> Array:
        return self.converted(self.source.rows(start, stop))

    def converted(self, rows: Array) -> Array:
        with np.errstate(over="ignore"):
            return _widened(rows, self.source.dtype).astype(np.float16)

    def is_hole(self, start: int, stop: int) -> bool:
        return self.source.is_hole(start, stop)


@dataclass(frozen=True, kw_only=True)
class _Joined:
    """Parts one behind the other along an axis."""

    parts: tuple[_Stored, ...]
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        return (
            *first[: self.axis],
            sum(part.shape[self.axis] for part in self.parts),
            *first[self.axis + 1 :],
        )

    @property
    def dtype(self) -> ir.DataType:
        return self.parts[0].dtype

    def rows(self, start: int, stop: int) -> Array:
        if self.axis:
            return np.concatenate([part.rows(start, stop) for part in self.parts], axis=self.axis)
        found, first = [], 0
        for part in self.parts:
            last = first + part.shape[0]
            if start < last and stop > first:
                found.append(part.rows(max(start, first) - first, min(stop, last) - first))
            first = last
        return found[0] if len(found) == 1 else np.concatenate(found)

    def is_hole(self, start: int, stop: int) -> bool:
        if self.axis:
            return all(part.is_hole(start, stop) for part in self.parts)
        first = 0
        for part in self.parts:
            last = first + part.shape[0]
            if start < last and stop > first and not part.is_hole(max(start, first) - first, min(stop, last) - first):
                return False
            first = last
        return True


@dataclass(frozen=True, kw_only=True)
class _Turned:
    """Axes in another order."""

    source: _Stored
    permutation: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape[axis] for axis in self.permutation)

    @property
    def dtype(self) -> ir.DataType:
        return self.source.dtype

    def rows(self, start: int, stop: int) -> Array:
        if self.permutation[0] == 0:
            return self.source.rows(start, stop).transpose(self.permutation)
        # A stripe of each row, some rows at a time.
        shape = list(self.source.shape)
        axis = self.permutation[0]
        shape[axis] = stop - start
        stripe = (slice(None),) * axis + (slice(start, stop),)
        result = np.empty(shape, _number_type(self.dtype))
        for first, last in _spans(self.source.shape, self.dtype.itemsize, _CHUNK_BYTES):
            result[first:last] = self.source.rows(first, last)[stripe]
        return result.transpose(self.permutation)

    def is_hole(self, start: int, stop: int) -> bool:
        if self.permutation[0] == 0:
            return self.source.is_hole(start, stop)
        return self.source.is_hole(0, self.source.shape[0])


_Stored = _File | _Dequantised | _Cast | _Rounded | _Joined | _Turned


class StoredWeight(ir.LazyTensor):
    """A weight that is made from numbers of files each time that it is read."""

    def __init__(self, source: _Stored, name: str) -> None:
        super().__init__(
            lambda: ir.Tensor(self._whole(), dtype=source.dtype, name=name),
            dtype=source.dtype,
            shape=ir.Shape(source.shape),
            name=name,
        )
        self._source = source

    @property
    def key(self) -> _Stored:
        """Equal for weights that are made alike from the same bytes."""
        return self._source

    def turned(self, permutation: Sequence[int]) -> StoredWeight:
        """The same weight with its axes in another order."""
        return StoredWeight(_turned(self._source, permutation), str(self.name))

    @property
    def narrow_dtype(self) -> ir.DataType | None:
        """The type of 16 bits that a float32 weight is stored in; `None` for all others."""
        return self._source.source.dtype if isinstance(self._source, _Cast) else None

    def narrow(self, dtype: ir.DataType) -> StoredWeight:
        """The same numbers in 16 bits: as they are stored, or those of bfloat16 rounded to float16.

        Raises:
            ValueError: they are not stored in 16 bits, or float16 would have to become bfloat16.
        """
        source = self._source
        if not isinstance(source, _Cast) or (source.source.dtype, dtype) == (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            raise ValueError(f"{self.name} cannot be stored as {dtype}: it is {self.narrow_dtype or self.dtype}")
        inner = source.source
        return StoredWeight(inner if inner.dtype == dtype else _Rounded(source=inner), str(self.name))

    @property
    def lies_in_blocks(self) -> bool:
        """Whether it is computed from blocks: no compiler reads it from the file."""
        return any(isinstance(source, _Dequantised) for source in _leaves(self._source))

    @property
    def working_bytes(self) -> int:
        """The most that `pieces` holds at one time."""
        source = self._source
        inner = source.source if isinstance(source, (_Cast, _Rounded)) else source
        # The rows that are read, as they become wider, and as they are written.
        pieces = min(self.nbytes, max(_CHUNK_BYTES, _row_bytes(source))) * 3
        if self._is_read_by_rows():
            return int(pieces)
        whole = math.prod(inner.shape) * inner.dtype.itemsize
        return int(pieces + min(whole, max(_TURNED_BYTES, _row_bytes(inner))))

    def is_hole(self) -> bool:
        """Whether nothing was ever written where the numbers lie, so that all are zero and take no disk."""
        return bool(self.shape) and self._source.is_hole(0, self._source.shape[0])

    def pieces(self) -> Iterator[Array]:
        """The numbers, some rows at a time; bfloat16 as uint16."""
        return self._pieces()

    def unordered_pieces(self) -> Iterator[Array]:
        """The numbers in the order of the file, for what does not go by their places: nothing large is turned for it.

        One zero stands for each piece that is a hole.
        """
        laid_out = StoredWeight(_as_laid_out(self._source), str(self.name))
        hole = np.zeros(1, _number_type(self.dtype))
        for start, stop in laid_out._spans():
            yield hole if laid_out._source.is_hole(start, stop) else laid_out._source.rows(start, stop)

    @property
    def filled_bytes(self) -> int:
        """What the weight takes on a disk, where `tofile` leaves holes."""
        row = int(self.nbytes) // max(1, self._source.shape[0]) if self.shape else int(self.nbytes)
        spans = self._spans() if self._is_read_by_rows() else iter([(0, self._source.shape[0])])
        return sum(row * (stop - start) for start, stop in spans if not self._source.is_hole(start, stop))

    def tofile(self, file: BinaryIO) -> None:
        """Writes little-endian bytes, a piece at a time. A piece of zeros, such as a hole of a file, becomes a hole."""
        if self.is_hole() and _skipped(file, int(self.nbytes)):
            return
        if not self._is_read_by_rows():
            for piece in self._pieces():
                _write(file, piece)
            return
        row = int(self.nbytes) // self._source.shape[0]
        for start, stop in self._spans():
            if not (self._source.is_hole(start, stop) and _skipped(file, row * (stop - start))):
                _write(file, self._source.rows(start, stop))

    def _whole(self) -> Array:
        shape = self._source.shape
        result = np.empty(shape, _number_type(self.dtype))
        first = 0
        for piece in self._pieces():
            result[first : first + len(piece)] = piece
            first += len(piece)
        return result.view(self.dtype.numpy())

    def _spans(self) -> Iterator[tuple[int, int]]:
        """First and last row of each piece."""
        return _spans(self._source.shape, self.dtype.itemsize, _CHUNK_BYTES)

    def _is_read_by_rows(self) -> bool:
        """All of a turned matrix is read for each of its rows."""
        source = self._source
        inner = source.source if isinstance(source, (_Cast, _Rounded)) else source
        return bool(self.shape) and not (isinstance(inner, _Turned) and inner.permutation[0] != 0)

    def _pieces(self) -> Iterator[Array]:
        source: _Stored = self._source
        if self._is_read_by_rows():
            for start, stop in self._spans():
                yield source.rows(start, stop)
            return
        # As few times as possible, and as narrow as it is stored.
        inner = source.source if isinstance(source, (_Cast, _Rounded)) else source
        for first, last in _spans(inner.shape, inner.dtype.itemsize, _TURNED_BYTES):
            turned = inner.rows(first, last)
            for start, stop in _spans(turned.shape, self.dtype.itemsize, _CHUNK_BYTES):
                # A copy, as the caller may keep the last piece while the next part is read.
                piece = _contiguous(turned[start:stop])
                yield source.converted(piece) if isinstance(source, (_Cast, _Rounded)) else piece
            del turned


def matrices_of(tensor: ir.TensorProtocol) -> Iterator[Array]:
    """The parts of a stack along its first dimension, such as the weights of experts; some are read at a time from a file."""
    for piece in tensor.pieces() if isinstance(tensor, StoredWeight) else (tensor.numpy(),):
        yield from piece


def turned_matrix(tensor: ir.TensorProtocol) -> Array:
    """A matrix ``[N, K]`` as an array ``[K, N]`` in order; some rows are read at a time where it lies in a file."""
    if not isinstance(tensor, StoredWeight):
        return _contiguous(tensor.numpy().T)
    rows, columns = (int(size) for size in tensor.shape.numpy())
    result, first = np.empty((columns, rows), _number_type(tensor.dtype)), 0
    for piece in tensor.pieces():
        _fill(result[:, first : first + len(piece)], piece.T)
        first += len(piece)
    return result.view(tensor.dtype.numpy())


def _contiguous(array: Array) -> Array:
    """A copy in order. Of a matrix that is turned some columns are copied at a time: what is read then stays in the cache."""
    result = np.empty(array.shape, array.dtype)
    _fill(result, array)
    return result


def _fill(target: Array, array: Array) -> None:
    is_turned = array.ndim > 1 and abs(array.strides[-1]) > abs(array.strides[-2])
    step = _TURNED_COLUMNS if is_turned else max(1, array.shape[-1])
    for start in range(0, array.shape[-1], step):
        target[..., start : start + step] = array[..., start : start + step]


def put_stored_form(model: ir.Model, value: ir.Value, places: Mapping[Path, Path]) -> None:
    """Writes a weight as the files of the checkpoint hold it: undoes, for one weight, what `fold_stored_weights` does.

    References to `places`, other names of the files that the weight is made from, take its place; joins, transposes and the
    cast to float32 are nodes at the beginning of the graph.

    Raises:
        TypeError: the weight is none of a file.
        ValueError: it is rounded, or computed from blocks.
    """
    weight, name = value.const_value, str(value.name)
    if not isinstance(weight, StoredWeight):
        raise TypeError(f"{name} does not lie in a file of a checkpoint")
    writer = _FormWriter(model, name, places)
    result = writer.written(weight.key)
    result.type, result.shape = value.type, value.shape
    value.replace_all_uses_with(result, replace_graph_outputs=True)
    del model.graph.initializers[name]
    if result.is_initializer():
        del model.graph.initializers[str(result.name)]
        result.name = name
        model.graph.register_initializer(result)
    else:
        result.name = name
        insert_first(model, writer.nodes)


def insert_first(model: ir.Model, nodes: Sequence[ir.Node]) -> None:
    """Puts nodes in front of all others."""
    first = next(iter(model.graph), None)
    if first is None:
        model.graph.extend(nodes)
    else:
        model.graph.insert_before(first, nodes)


class _FormWriter:
    """Writes the initializers and nodes that make one weight."""

    def __init__(self, model: ir.Model, name: str, places: Mapping[Path, Path]) -> None:
        self._model, self._name, self._places = model, name, places
        self._count = 0
        self.nodes: list[ir.Node] = []

    def written(self, source: _Stored) -> ir.Value:
        if isinstance(source, _File):
            return self._initializer(source)
        if isinstance(source, _Joined):
            return self._node("Concat", [self.written(part) for part in source.parts], axis=source.axis)
        if isinstance(source, _Turned):
            return self._node("Transpose", [self.written(source.source)], perm=source.permutation)
        if isinstance(source, _Cast):
            return self._node("Cast", [self.written(source.source)], to=ir.DataType.FLOAT.value)
        reason = "is rounded to float16" if isinstance(source, _Rounded) else "is computed from blocks"
        raise ValueError(f"{self._name} {reason}, which no file of the checkpoint holds")

    def _initializer(self, source: _File) -> ir.Value:
        name = self._new_name()
        length = math.prod(source.shape) * source.dtype.itemsize
        place = self._places[source.path]
        tensor = ir.ExternalTensor(
            place.name,
            source.offset,
            int(length),
            source.dtype,
            shape=ir.Shape(source.shape, frozen=True),
            name=name,
            base_dir=place.parent,
        )
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(source.dtype), const_value=tensor)
        self._model.graph.register_initializer(value)
        return value

    def _node(self, op_type: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        made = ir.node(op_type, list(inputs), attributes, name=self._new_name())
        made.outputs[0].name = made.name
        self.nodes.append(made)
        return made.outputs[0]

    def _new_name(self) -> str:
        self._count += 1
        return f"{self._name}{STORED}{self._count}"


def files_of(weight: StoredWeight) -> set[Path]:
    """The files that the numbers of a weight are read from."""
    leaves = _leaves(weight.key)
    return {(leaf.stored if isinstance(leaf, _Dequantised) else leaf).path for leaf in leaves}


def count_parts(weight: StoredWeight) -> int:
    """Of how many tensors of files it is made."""
    return sum(1 for _ in _leaves(weight.key))


def _leaves(whole: _Stored) -> Iterator[_File | _Dequantised]:
    waiting = [whole]
    while waiting:
        source = waiting.pop()
        if isinstance(source, (_File, _Dequantised)):
            yield source
        else:
            waiting.extend(source.parts if isinstance(source, _Joined) else [source.source])


def file_has_hole(path: Path, start: int, stop: int) -> bool:
    """Whether nothing was ever written to these bytes of a file, which are zeros then."""
    if not hasattr(os, "SEEK_DATA"):
        return False
    try:
        with path.open("rb", buffering=0) as file:
            try:
                return stop <= os.fstat(file.fileno()).st_size and os.lseek(file.fileno(), start, os.SEEK_DATA) >= stop
            except OSError as error:
                # No data behind `start`: the rest of the file is a hole.
                return error.errno == errno.ENXIO
    except OSError:
        return False  # Reading it says what is wrong.


def load_portable(path: Path) -> ir.Model:
    """The model in a file as one flat graph, with its weights as `fold_stored_weights` makes them."""
    model = ir.load(path)
    InlineLayers().run(model)
    fold_stored_weights(model)
    return model


def fold_stored_weights(model: ir.Model) -> bool:
    """Makes casts, blocks, joins and transposes of stored weights a part of them; says whether there were any.

    A transpose is folded where all that reads a weight reads it transposed: torch stores ``[out, in]``, and products want
    ``[in, out]``. Weights are not read.
    """
    changed = False
    for node in list(model.graph):
        if not _makes_weights(node) or len(node.outputs) != 1:
            continue
        if not all(_is_stored_part(value) for value in node.inputs):
            continue
        source = _applied(node)
        if source is not None:
            _replace(model, node, source)
            changed = True
    for value in list(model.graph.initializers.values()):
        changed |= _fold_transposes(value)
    for value in model.graph.initializers.values():
        # The readers of onnx and onnx_ir refuse files with several names, as those of a checkpoint have.
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = StoredWeight(_source_of(value.const_value), str(value.name))
    if not any(node.domain == BLOCKS for node in model.graph.all_nodes()):
        for identifier in [identifier for identifier in model.functions if identifier[0] == BLOCKS]:
            del model.functions[identifier]
        model.opset_imports.pop(BLOCKS, None)
    return changed


def _makes_weights(node: ir.Node) -> bool:
    if node.domain == BLOCKS:
        return node.op_type in FORMATS_BY_OP
    return not node.domain and node.op_type in ("Cast", "Concat", "Transpose")


def _is_stored_part(value: ir.Value | None) -> bool:
    return (
        value is not None
        and STORED in str(value.name)
        and isinstance(value.const_value, (ir.ExternalTensor, StoredWeight))
    )


def _applied(node: ir.Node) -> _Stored | None:
    sources = [_source_of(value.const_value) for value in node.inputs if value is not None]
    if node.domain == BLOCKS:
        stored = sources[0]
        return _Dequantised(stored=stored, op_type=node.op_type) if isinstance(stored, _File) else None
    if node.op_type == "Concat":
        return _Joined(parts=tuple(sources), axis=node.attributes["axis"].as_int())
    if node.op_type == "Transpose":
        return _turned(sources[0], node.attributes["perm"].as_ints())
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    if node.attributes["to"].as_int() == ir.DataType.FLOAT.value and sources[0].dtype in halves:
        return _Cast(source=sources[0])
    return None


def _source_of(tensor: ir.TensorProtocol | None) -> _Stored:
    if isinstance(tensor, StoredWeight):
        return tensor.key
    if not isinstance(tensor, ir.ExternalTensor):
        raise TypeError(f"{tensor!r} does not lie in a file")
    shape = tuple(int(size) for size in tensor.shape.numpy())
    return _File(path=Path(tensor.path), offset=tensor.offset or 0, shape=shape, dtype=tensor.dtype)


def _turned(source: _Stored, permutation: Sequence[int]) -> _Stored:
    """Casts stay outermost, so that what is moved is narrow."""
    if isinstance(source, _Cast):
        return _Cast(source=_turned(source.source, permutation))
    if isinstance(source, _Turned):
        permutation = [source.permutation[axis] for axis in permutation]
        source = source.source
    if list(permutation) == list(range(len(permutation))):
        return source
    return _Turned(source=source, permutation=tuple(permutation))


def _as_laid_out(source: _Stored) -> _Stored:
    if isinstance(source, _Cast):
        return _Cast(source=_as_laid_out(source.source))
    return _as_laid_out(source.source) if isinstance(source, _Turned) else source


def _replace(model: ir.Model, node: ir.Node, source: _Stored) -> None:
    """Puts a weight in the place of `node`, under the name of its result, and removes what only it has read."""
    old, inputs = node.outputs[0], [value for value in node.inputs if value is not None]
    name = str(old.name)
    value = ir.Value(name=name, type=old.type, shape=ir.Shape(source.shape), const_value=StoredWeight(source, name))
    value.type = ir.TensorType(source.dtype)
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph_of(node).remove(node, safe=True)
    for item in inputs:
        if not item.uses():
            model.graph.initializers.pop(str(item.name), None)
    model.graph.register_initializer(value)


def _fold_transposes(value: ir.Value) -> bool:
    tensor = value.const_value
    users = [node for node, _ in value.uses()]
    if not users or value.is_graph_output() or not isinstance(tensor, (ir.ExternalTensor, StoredWeight)):
        return False
    rank = len(tensor.shape)
    if rank < 2 or not all(_swaps_last_axes(node, rank) for node in users):
        return False
    permutation = (*range(rank - 2), rank - 1, rank - 2)
    weight = StoredWeight(_turned(_source_of(tensor), permutation), str(value.name))
    value.const_value, value.shape = weight, weight.shape
    for node in users:
        node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
        graph_of(node).remove(node, safe=True)
    return True


def _swaps_last_axes(node: ir.Node, rank: int) -> bool:
    if node.op_type != "Transpose" or node.domain:
        return False
    given = node.attributes.get("perm")
    order = list(range(rank))[::-1] if given is None else list(given.as_ints())
    return order == [*range(rank - 2), rank - 1, rank - 2]


def _row_bytes(source: _Stored) -> int:
    return int(math.prod(source.shape[1:]) * source.dtype.itemsize)


def _spans(shape: Sequence[int], itemsize: float, most: int) -> Iterator[tuple[int, int]]:
    """First and last row of each piece of at most so many bytes, or of one row."""
    step = max(1, int(most // max(1, math.prod(shape[1:]) * itemsize)))
    for start in range(0, shape[0], step):
        yield start, min(shape[0], start + step)


def _skipped(file: BinaryIO, size: int) -> bool:
    """Leaves a hole of `size` bytes at the end of a file; `False` where the file cannot have one."""
    try:
        end = file.tell() + size
        file.flush()
        if os.fstat(file.fileno()).st_size >= end:
            return False  # Something is there already.
        file.truncate(end)
        file.seek(end)
    except OSError:
        return False
    return True


def _write(file: BinaryIO, piece: Array) -> None:
    """Writes the numbers. A piece whose bytes are all zero becomes a hole: one at the edge of a hole in a shard shares a block
    with data, and a file without any data has the digest of every other one of its size.
    """
    content = _little_endian(piece)
    octets = np.frombuffer(content, np.uint8)
    # The first block settles it for all but strange weights.
    if octets[:4096].any() or octets.any() or not _skipped(file, len(content)):
        file.write(content)


def _little_endian(piece: Array) -> memoryview:
    in_order = piece if piece.flags.c_contiguous else _contiguous(piece)
    ordered: Array = in_order.astype(piece.dtype.newbyteorder("<"), copy=False)
    return ordered.data.cast("B")


def _number_type(dtype: ir.DataType) -> np.dtype[Any]:
    """The type of arrays of such numbers. NumPy has no bfloat16 of its own."""
    return np.dtype(np.uint16) if dtype == ir.DataType.BFLOAT16 else dtype.numpy()


def _widened(array: Array, dtype: ir.DataType) -> Array:
    if dtype == ir.DataType.BFLOAT16:
        # The upper half of a float32.
        wide = array.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return array.astype(np.float32)
