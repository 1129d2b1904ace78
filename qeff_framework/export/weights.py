"""Weights of the portable graph: read from the torch module at the moment they are written, never held twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

import onnx_ir
import torch

from qeff_framework.artifacts.digests import DigestingFile
from qeff_framework.export.page_release import MappedFiles
from qeff_framework.export.unloaded import note_translated, placeholders
from qeff_framework.seam.deferred import DeferredTensor, pieces
from qeff_framework.seam.norms import RMSNormMatch, effective_weight

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Most bytes of a weight that exist a second time while it is converted or transposed for writing.
_CHUNK_BYTES = 4 * 2**20
#: Bytes of a weight that are computed at a time: more of them take longer, as they leave the processor's cache.
_COMPUTED_BYTES = 2**20


class ModuleTensor(onnx_ir.Tensor[torch.Tensor]):
    """An ONNX tensor over the memory of a torch tensor; converted to `dtype` piece by piece when it is written."""

    def __init__(self, tensor: torch.Tensor, *, dtype: onnx_ir.DataType, name: str, mapped_files: MappedFiles) -> None:
        tensor = tensor.detach()
        super().__init__(tensor, dtype=dtype, shape=onnx_ir.Shape(tensor.shape, frozen=True), name=name)
        self._torch_dtype = onnx_ir.tensor_adapters.to_torch_dtype(dtype)
        self._mapped_files = mapped_files

    def transposed(self) -> ModuleTensor:
        """The same memory with its last two dimensions swapped."""
        return ModuleTensor(self.raw.mT, dtype=self.dtype, name=str(self.name), mapped_files=self._mapped_files)

    def with_raw(self, tensor: torch.Tensor, dtype: torch.dtype) -> ModuleTensor:
        """Another tensor under the same name."""
        kind = onnx_ir.tensor_adapters.from_torch_dtype(dtype)
        return ModuleTensor(tensor, dtype=kind, name=str(self.name), mapped_files=self._mapped_files)

    def numpy(self) -> NDArray[np.generic]:
        """The whole tensor; a view of the module's memory when the dtypes agree."""
        array: NDArray[np.generic] = _read(self.raw).to(self._torch_dtype).numpy(force=True)
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.generic]:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=bool(copy))

    def tobytes(self) -> bytes:
        """The whole tensor as little-endian bytes."""
        return b"".join(self._chunks())

    def tofile(self, file: BinaryIO | DigestingFile) -> None:
        """Writes little-endian bytes without ever holding a second whole tensor."""
        file.writelines(self._chunks())

    def _chunks(self) -> Iterator[memoryview]:
        if isinstance(self.raw, DeferredTensor):
            for part in _ahead(pieces(self.raw, _COMPUTED_BYTES)):
                yield from self._chunks_of(part)
        else:
            yield from self._chunks_of(self.raw)

    def _chunks_of(self, whole: torch.Tensor) -> Iterator[memoryview]:
        tensor = whole.reshape(-1) if whole.is_contiguous() else whole
        if tensor.numel() == 0:
            return
        rows = max(1, _CHUNK_BYTES // (self._torch_dtype.itemsize * max(1, tensor.numel() // tensor.shape[0])))
        for start in range(0, tensor.shape[0], rows):
            source = tensor[start : start + rows]
            converted = source.to(self._torch_dtype).contiguous()
            if self._torch_dtype == torch.bfloat16:  # NumPy has no such type.
                converted = converted.view(torch.uint16)
            piece = converted.numpy(force=True)
            yield piece.astype(piece.dtype.newbyteorder("<"), copy=False).data.cast("B")
            self._mapped_files.release(source)
        if not tensor.is_contiguous() and tensor.mT.is_contiguous():
            self._mapped_files.release(tensor.mT)


def _ahead(parts: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The same parts. Each is computed in another thread while the one before is written, which takes as long."""
    with ThreadPoolExecutor(1) as other:
        coming = other.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = other.submit(next, parts, None)
            yield part


def _read(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers, for as long as the caller needs them."""
    return tensor.materialise() if isinstance(tensor, DeferredTensor) else tensor


def bind_weights(model: onnx_ir.Model, weights: Mapping[str, torch.Tensor]) -> None:
    """Replaces the placeholders of a weightless copy, which are the graph's initializers, by the module's own tensors."""
    mapped_files = MappedFiles()
    for name, value in model.graph.initializers.items():
        if name in weights and value.dtype is not None:
            value.const_value = ModuleTensor(weights[name], dtype=value.dtype, name=name, mapped_files=mapped_files)
    note_translated(model)


def store_transposed(
    model: onnx_ir.Model, *, stays: Callable[[onnx_ir.TensorProtocol], bool] = lambda tensor: False
) -> bool:
    """Stores a weight the way it is multiplied, where a ``Transpose`` is all that it is used for.

    Torch keeps linear weights as ``[out, in]``, those of experts as ``[expert, out, in]``; a runtime would fold the transposes
    when it loads the model, and hold every weight twice while it does. A weight of which `stays` is true is left as it is.
    """
    changed = False
    for value in list(model.graph.initializers.values()):
        users = [node for node, _ in value.uses()]
        tensor = value.const_value
        if not users or not isinstance(tensor, ModuleTensor) or len(tensor.shape) < 2:
            continue
        if (
            stays(tensor)
            or value.is_graph_output()
            or not all(_swaps_last_dimensions(node, len(tensor.shape)) for node in users)
        ):
            continue
        value.const_value = tensor.transposed()
        value.shape = value.const_value.shape
        for node in users:
            node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
            _graph_of(node).remove(node, safe=True)
        changed = True
    return changed


def _graph_of(node: onnx_ir.Node) -> onnx_ir.Graph:
    """The graph that holds the node: the model's, or the body of a loop."""
    if not isinstance(node.graph, onnx_ir.Graph):
        raise TypeError(f"node {node.name} stands in no graph")
    return node.graph


def _swaps_last_dimensions(node: onnx_ir.Node, rank: int) -> bool:
    if node.op_type != "Transpose" or node.domain:
        return False
    axes = list(range(rank))
    permutation = node.attributes.get("perm")
    swapped = [*axes[:-2], axes[-1], axes[-2]]
    return (axes[::-1] if permutation is None else list(permutation.as_ints())) == swapped


def graph_weights(module: torch.nn.Module, norms: tuple[RMSNormMatch, ...]) -> dict[str, torch.Tensor]:
    """The parameters of `module` by name, with the norms' effective weights."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters(remove_duplicate=False)}
    for match in norms:
        parameter = module.get_submodule(match.name).get_parameter("weight")
        weights[f"{match.name}.weight"] = effective_weight(parameter, match)
    return {**weights, **placeholders(module)}
