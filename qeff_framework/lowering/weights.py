"""Weights tensor by tensor: they are read when they are needed, and new ones are computed when they are written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

from qeff_framework.lowering.stored_weights import StoredWeight


def weights(model: ir.Model) -> Iterator[ir.Value]:
    """The initializers that have a content, those of subgraphs included.

    What the loop reads of a file (``value.const_value.numpy()``) is released when the loop goes on, so that one weight at a time
    is in memory.
    """
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None:
                continue
            was_read = not isinstance(tensor, ir.ExternalTensor) or tensor.raw is not None
            yield value
            if isinstance(tensor, ir.ExternalTensor) and not was_read:
                with contextlib.suppress(BufferError):  # The caller has kept the array.
                    tensor.release()


def content_key(tensor: ir.TensorProtocol) -> Hashable:
    """Equal for tensors with one content, without reading it: each graph that reads a file has tensor objects of its own."""
    if isinstance(tensor, ir.ExternalTensor):
        return (str(tensor.path), tensor.offset, tensor.length, tensor.dtype, tuple(tensor.shape.numpy()))
    if isinstance(tensor, StoredWeight):
        return tensor.key
    return id(tensor)


def computed_tensor(
    name: str, shape: Sequence[int], dtype: DTypeLike, content: Callable[[], NDArray[Any]]
) -> ir.LazyTensor:
    """A tensor whose content is computed each time it is read, that is when it is written to a file."""
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    return ir.LazyTensor(lambda: ir.Tensor(content(), name=name), dtype=kind, shape=ir.Shape(shape), name=name)


def replace_content(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Gives an initializer another content, with its type and shape."""
    value.const_value = tensor
    value.type = ir.TensorType(tensor.dtype)
    value.shape = ir.Shape(size if isinstance(size, int) else size.value for size in tensor.shape)


def weight_of(value: ir.Value) -> ir.TensorProtocol:
    """The content of an initializer. Raises `ValueError` when it has none."""
    if value.const_value is None:
        raise ValueError(f"{value.name} is no weight: it has no content")
    return value.const_value
