"""Weights by reference: initializers that point into the files of the checkpoint, in the type and layout that they have there.

What the loader has done with a weight stands in the graph: a ``Cast`` where it is stored in 16 bits, a ``Concat`` where it was
joined from several, a ``Transpose`` where it was turned, a function that makes numbers of the blocks of a GGUF file. What has no
such form is written to a file of the export, one weight at a time. `qeff_framework.lowering.stored_weights` undoes this when the
graph is loaded for a backend.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir
import torch

from qeff_framework.export.weights import ModuleTensor
from qeff_framework.gguf_blocks import DOMAIN, FORMATS
from qeff_framework.lowering.functions import attach_function
from qeff_framework.lowering.stored_weights import STORED
from qeff_framework.seam.deferred import (
    Applied,
    ComputedTensor,
    DeferredTensor,
    Recipe,
    StoredBlocks,
    StoredTensor,
    beginnings,
    without_casts,
)

_ATEN = torch.ops.aten

_JOINING = frozenset({_ATEN.cat.default, _ATEN.stack.default})
_COPYING = frozenset({_ATEN.clone.default})
#: Types that a cast to float32 keeps every number of.
_HALVES = frozenset({torch.float16, torch.bfloat16})
#: Smaller weights are written into the graph itself.
INLINE_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class _Range:
    """Bytes of a file in a shape."""

    stored: StoredTensor
    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """The numbers of blocks in a file."""

    blocks: StoredBlocks
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Joined:
    parts: tuple[_Form, ...]
    axis: int


@dataclass(frozen=True, kw_only=True)
class _Turned:
    source: _Form
    permutation: tuple[int, ...]


_Form = _Range | _Packed | _Joined | _Turned


def keeps_layout(tensor: onnx_ir.TensorProtocol | None) -> bool:
    """Whether a weight stands in the graph in the layout of the checkpoint: it is referred to, or computed row by row."""
    if not isinstance(tensor, ModuleTensor) or not isinstance(tensor.raw, DeferredTensor):
        return False
    return isinstance(without_casts(tensor.raw.recipe), ComputedTensor) or _form_of(tensor) is not None


def refer_to_files(model: onnx_ir.Model, directory: Path) -> list[str]:
    """Replaces the weights that lie in files of `directory` by references; returns the names of these files."""
    used: set[str] = set()
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if not isinstance(tensor, ModuleTensor) or not isinstance(tensor.raw, DeferredTensor):
            continue
        recipe = tensor.raw.recipe
        stored = _stored(recipe)
        is_small = tensor.nbytes < INLINE_BYTES
        form = None if is_small or any(item.path.parent != directory for item in stored) else _form_of(tensor)
        dtype = _one_type(recipe)
        if form is not None:
            used.update(item.path.name for item in stored)
            _put(model, value, _Writer(model, str(value.name), directory), form, dtype)
        elif dtype in _HALVES and tensor.nbytes >= 2 * INLINE_BYTES:
            plain = without_casts(recipe)
            narrow = tensor.with_raw(DeferredTensor(plain, _like(tensor.raw, dtype)), dtype)
            _cast_after(model, value, narrow)
    return sorted(used)


def _like(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="meta")


def _form_of(tensor: ModuleTensor) -> _Form | None:
    """How the graph makes the weight out of files; `None` where it cannot."""
    raw = tensor.raw
    if not isinstance(raw, DeferredTensor) or tensor.dtype != onnx_ir.DataType.FLOAT:
        return None
    if _one_type(raw.recipe) is None:
        return None
    found = _formed(without_casts(raw.recipe))
    return _finished(found) if found is not None else None


def _stored(recipe: Recipe) -> list[StoredTensor]:
    """The tensors of files that a recipe moves, and those that hold its blocks."""
    found = []
    for leaf in beginnings(recipe):
        if isinstance(leaf, StoredTensor):
            found.append(leaf)
        elif leaf.blocks is not None:
            found.append(leaf.blocks.stored)
    return found


def _one_type(recipe: Recipe) -> torch.dtype | None:
    """The type of all that the recipe reads, if each number comes out as it is stored."""
    leaves = list(beginnings(recipe))
    types = {leaf.dtype for leaf in leaves}
    if (
        any(isinstance(leaf, ComputedTensor) and leaf.blocks is None for leaf in leaves)
        or len(types) != 1
        or not types <= {torch.float32, *_HALVES}
        or not _only_widens(recipe)
    ):
        return None
    return types.pop()


def _only_widens(recipe: Recipe) -> bool:
    if isinstance(recipe, (StoredTensor, ComputedTensor)):
        return True
    dtype = recipe.keywords.get("dtype")
    if dtype not in (None, torch.float32):
        return False
    return all(_only_widens(inner) for inner in _inner(recipe.arguments))


def _inner(arguments: Any) -> Iterator[Recipe]:
    for argument in arguments:
        if isinstance(argument, (StoredTensor, ComputedTensor, Applied)):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _inner(argument)


@dataclass(frozen=True, kw_only=True)
class _View:
    """A tensor of a file as an operator sees it: `seen` has the shape, the strides and the offset, and no numbers."""

    stored: StoredTensor
    seen: torch.Tensor


def _formed(recipe: Recipe) -> _View | _Form | None:
    if isinstance(recipe, StoredTensor):
        return _View(stored=recipe, seen=torch.empty(recipe.shape, dtype=recipe.dtype, device="meta"))
    if isinstance(recipe, ComputedTensor):
        return None if recipe.blocks is None else _Packed(blocks=recipe.blocks, shape=recipe.shape)
    if recipe.function in _JOINING:
        return _joined(recipe)
    source = _formed(recipe.arguments[0])
    if source is None:
        return None
    if recipe.function in _COPYING:
        # The same numbers. A copy of what is not contiguous is laid out anew, and no view of the file from there on.
        return source if isinstance(source, _View) and source.seen.is_contiguous() else _finished(source)
    if not isinstance(source, _View):
        return None
    result = recipe.function(source.seen, *recipe.arguments[1:], **recipe.keywords)
    return _View(stored=source.stored, seen=result if recipe.index is None else result[recipe.index])


def _joined(recipe: Applied) -> _Form | None:
    axis = recipe.arguments[1] if len(recipe.arguments) > 1 else recipe.keywords.get("dim", 0)
    parts = [_formed(part) for part in recipe.arguments[0]]
    if recipe.function is _ATEN.stack.default:
        if not all(isinstance(part, _View) for part in parts):
            return None
        views = [part for part in parts if isinstance(part, _View)]
        parts = [_View(stored=part.stored, seen=part.seen.unsqueeze(axis)) for part in views]
        rank = views[0].seen.dim() + 1
    else:
        rank = _rank(parts[0]) if parts and parts[0] is not None else 0
    finished = [_finished(part) for part in parts if part is not None]
    whole = [part for part in finished if part is not None]
    if len(whole) < len(parts):
        return None
    return _Joined(parts=tuple(whole), axis=axis % rank)


def _rank(form: _View | _Form) -> int:
    if isinstance(form, _View):
        return form.seen.dim()
    if isinstance(form, (_Range, _Packed)):
        return len(form.shape)
    return _rank(form.parts[0]) if isinstance(form, _Joined) else len(form.permutation)


def _finished(form: _View | _Form) -> _Form | None:
    """The form of a view: a range of bytes, turned if need be; `None` where it leaves numbers out in between."""
    if not isinstance(form, _View):
        return form
    seen = form.seen
    strides = seen.stride()
    order = sorted(range(seen.dim()), key=lambda axis: (-int(strides[axis]), axis))
    laid_out = seen.permute(order)
    if not laid_out.is_contiguous():
        return None
    offset = form.stored.offset + int(seen.storage_offset()) * seen.element_size()
    found = _Range(stored=form.stored, offset=offset, shape=tuple(laid_out.shape))
    if order == list(range(seen.dim())):
        return found
    return _Turned(source=found, permutation=tuple(order.index(axis) for axis in range(seen.dim())))


class _Writer:
    """Writes the initializers and nodes of one weight."""

    def __init__(self, model: onnx_ir.Model, name: str, directory: Path) -> None:
        self._model, self._name, self._directory = model, name, directory
        self._count = 0
        self.nodes: list[onnx_ir.Node] = []

    def write(self, form: _Form) -> onnx_ir.Value:
        if isinstance(form, _Range):
            return self._initializer(form)
        if isinstance(form, _Packed):
            return self._dequantised(form)
        if isinstance(form, _Joined):
            inputs: Iterable[onnx_ir.Value] = [self.write(part) for part in form.parts]
            return self.node("Concat", inputs, axis=form.axis)
        return self.node("Transpose", [self.write(form.source)], perm=form.permutation)

    def _dequantised(self, form: _Packed) -> onnx_ir.Value:
        found, stored = FORMATS[form.blocks.format], form.blocks.stored
        content = self._initializer(_Range(stored=stored, offset=stored.offset, shape=stored.shape))
        return self.node(attach_function(self._model, DOMAIN, found.function_text), [content], domain=DOMAIN)

    def node(
        self, op_type: str, inputs: Iterable[onnx_ir.Value], *, domain: str = "", **attributes: Any
    ) -> onnx_ir.Value:
        made = onnx_ir.node(op_type, list(inputs), attributes, domain=domain, name=self._new_name())
        made.outputs[0].name = made.name
        self.nodes.append(made)
        return made.outputs[0]

    def _initializer(self, form: _Range) -> onnx_ir.Value:
        name = self._new_name()
        dtype = onnx_ir.tensor_adapters.from_torch_dtype(form.stored.dtype)
        tensor = external_tensor(name, form.stored.path.name, form.offset, form.shape, dtype, self._directory)
        value = onnx_ir.Value(name=name, shape=tensor.shape, type=onnx_ir.TensorType(dtype), const_value=tensor)
        self._model.graph.register_initializer(value)
        return value

    def _new_name(self) -> str:
        self._count += 1
        return f"{self._name}{STORED}{self._count}"


def external_tensor(
    name: str, location: str, offset: int, shape: Sequence[int], dtype: onnx_ir.DataType, directory: Path
) -> onnx_ir.ExternalTensor:
    """A tensor at a place of a file in `directory`."""
    length = math.prod(shape) * dtype.itemsize
    return onnx_ir.ExternalTensor(
        location,
        offset,
        int(length),
        dtype,
        shape=onnx_ir.Shape(shape, frozen=True),
        name=name,
        base_dir=directory,
    )


def _put(model: onnx_ir.Model, value: onnx_ir.Value, writer: _Writer, form: _Form, dtype: torch.dtype | None) -> None:
    """Lets everything that reads the weight read what the writer makes of `form`; it takes over the name."""
    result = writer.write(form)
    if dtype in _HALVES:
        result = writer.node("Cast", [result], to=onnx_ir.DataType.FLOAT.value)
    _replace(model, value, result, writer.nodes)


def _cast_after(model: onnx_ir.Model, value: onnx_ir.Value, narrow: ModuleTensor) -> None:
    name = f"{value.name}{STORED}1"
    narrow.name = name
    stored = onnx_ir.Value(name=name, shape=narrow.shape, type=onnx_ir.TensorType(narrow.dtype), const_value=narrow)
    model.graph.register_initializer(stored)
    cast = onnx_ir.node("Cast", [stored], {"to": onnx_ir.DataType.FLOAT.value}, name=f"{value.name}{STORED}2")
    _replace(model, value, cast.outputs[0], [cast])


def _replace(model: onnx_ir.Model, value: onnx_ir.Value, result: onnx_ir.Value, nodes: Sequence[onnx_ir.Node]) -> None:
    graph, name = model.graph, str(value.name)
    result.type, result.shape = value.type, value.shape
    value.replace_all_uses_with(result, replace_graph_outputs=True)
    del graph.initializers[name]
    result.name = name
    if nodes:
        first = next(iter(graph), None)
        if first is None:
            graph.extend(nodes)
        else:
            graph.insert_before(first, nodes)
    else:
        # An initializer of its own: the weight lies in the file as the graph reads it.
        del graph.initializers[str(result.const_value.name)]  # type: ignore[union-attr]
        result.const_value.name = name  # type: ignore[union-attr]
        graph.register_initializer(result)
