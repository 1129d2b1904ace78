"""Files that ``torch.save`` has written, such as ``pytorch_model.bin``, without reading their numbers.

They are zip archives in which the numbers of each tensor lie as they are. Files of torch before 1.6, and such whose numbers are
packed or of the other byte order, are none: their numbers have no place.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from qeff_framework.seam.deferred import StoredTensor


def has_places(path: Path) -> bool:
    """Whether the numbers of the tensors in a file lie there as they are in memory."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        order = [archive.read(entry) for entry in entries if Path(entry.filename).name == "byteorder"]
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries) and all(
        text.decode() == sys.byteorder for text in order
    )


def deferred_content(path: Path) -> Any:
    """What ``torch.load`` returns for `path`, with deferred tensors.

    Raises:
        CheckpointError: a tensor lies beyond the end of the file.
        Exception: whatever ``torch.load`` raises.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils import _pytree as pytree

    with FakeTensorMode():
        content = torch.load(path, map_location="cpu", weights_only=True)
    places: dict[Any, StoredTensor] = {}
    size = path.stat().st_size
    return pytree.tree_map_only(torch.Tensor, lambda tensor: _deferred(tensor, path, size, places), content)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name, those that lie there in one piece. Raises as `deferred_content` does."""
    from qeff_framework.seam.deferred import DeferredTensor, StoredTensor

    found = {}
    for name, tensor in deferred_content(path).items():
        if isinstance(tensor, DeferredTensor) and isinstance(tensor.recipe, StoredTensor):
            found[str(name)] = tensor.recipe
    return found


def _deferred(tensor: torch.Tensor, path: Path, size: int, places: dict[Any, StoredTensor]) -> torch.Tensor:
    """The tensor as a view of what lies in the file. Tensors of one memory are made from one place."""
    import torch

    from qeff_framework.seam.deferred import ComputedTensor, DeferredTensor, StoredTensor

    start = tensor.untyped_storage()._checkpoint_offset  # noqa: SLF001 - documented for loading into fake tensors
    if start is None:
        raise CheckpointError(f"{path.name} holds a tensor without a place in the file")
    offset = start + int(tensor.storage_offset()) * tensor.element_size()
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    span = (
        1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) if tensor.numel() else 0
    )
    if offset + span * tensor.element_size() > size:
        raise CheckpointError(f"{path.name} is cut: it has {size} bytes, and a tensor ends behind them")
    order = sorted(range(len(shape)), key=lambda axis: (-strides[axis], axis))
    laid_out = torch.empty_strided(shape, strides, device="meta").permute(order)
    lies_in_one_piece = laid_out.is_contiguous()
    lying = tuple(laid_out.shape) if lies_in_one_piece else (span,)
    stored = places.setdefault(
        (offset, lying, tensor.dtype), StoredTensor(path=path, offset=offset, shape=lying, dtype=tensor.dtype)
    )
    if not lies_in_one_piece:
        # It leaves out numbers of a larger tensor, or repeats some.
        return DeferredTensor.of_computed(
            ComputedTensor(
                shape=shape,
                dtype=tensor.dtype,
                compute=lambda: stored.read().as_strided(shape, strides).clone(),
                sources=(stored,),
            )
        )
    found = DeferredTensor.of_file(stored)
    if order == list(range(len(shape))):
        return found
    turned: torch.Tensor = found.permute([order.index(axis) for axis in range(len(shape))])
    return turned
