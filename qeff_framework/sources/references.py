"""Loading a checkpoint without reading its weights: the shards lie in the export, and the module's parameters point into them.

`PlacedShards` puts the files of weights of a checkpoint into a directory, as hard links where the file system allows it, else
as copies. `reading_nothing` lets the loader of Transformers make deferred tensors of what lies there. All else that the
loader does, it does as always: names, conversions, ties, the report of what is missing.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qeff_framework.artifacts import content_digest, hard_link
from qeff_framework.artifacts.disk import require_space
from qeff_framework.errors import CheckpointError
from qeff_framework.sources.files import safetensors_data_start, safetensors_header
from qeff_framework.sources.gguf_header import GGUFHeader
from qeff_framework.sources.stand_ins import StandIn
from qeff_framework.sources.torch_files import deferred_content

if TYPE_CHECKING:
    import torch

    from qeff_framework.seam.deferred import ComputedTensor, DeferredTensor, StoredTensor


@dataclass(frozen=True, kw_only=True)
class _Placed:
    path: Path
    is_link: bool
    digest: str
    #: Size, modification time and inode of the file in the export.
    facts: tuple[int, int, int]


class PlacedShards:
    """The shards of a checkpoint in the directory of an export.

    Args:
        shards: the files, and the digest that the export's key has for each.
        directory: where they are put, under their own names.

    Raises:
        CheckpointError: a shard is not what its digest says any more.
        ArtifactError: they must be copied, and the disk has too little space.
    """

    def __init__(self, shards: Mapping[Path, str], directory: Path, *, name: str) -> None:
        self._name = name
        self._placed: dict[str, _Placed] = {}
        pending = dict(shards)
        for shard, digest in shards.items():
            source, target = Path(os.path.realpath(shard)), directory / shard.name
            is_link = self._link(source, target)
            if not is_link:
                require_space(
                    directory, sum(path.stat().st_size for path in pending), f"a copy of the weights of {name}"
                )
                shutil.copyfile(source, target)
            del pending[shard]
            found = _facts(target)
            self._placed[str(source)] = _Placed(path=target, is_link=is_link, digest=digest, facts=found)

    def path_of(self, file: str | os.PathLike[str]) -> Path | None:
        """Where a file of the checkpoint lies in the export; `None` for other files."""
        placed = self._placed.get(os.path.realpath(file))
        return None if placed is None else placed.path

    def keep(self, used: Collection[str]) -> dict[str, str]:
        """Removes the shards that are not named in `used`; returns the digests of those that are, where they need no reading.

        Raises:
            CheckpointError: a shard was written to since it was placed.
        """
        digests = {}
        for placed in self._placed.values():
            if placed.path.name not in used:
                placed.path.unlink(missing_ok=True)
                continue
            if _facts(placed.path) != placed.facts:
                raise changed_meanwhile(placed.path, self._name)
            if placed.is_link:
                digests[placed.path.name] = placed.digest
            elif content_digest(placed.path) != placed.digest:
                raise changed_meanwhile(placed.path, self._name)
        return digests

    def remove(self) -> None:
        """Takes all shards away again."""
        for placed in self._placed.values():
            placed.path.unlink(missing_ok=True)

    def _link(self, source: Path, target: Path) -> bool:
        """Whether the file could be linked: not to another file system, nor on one without hard links."""
        before = _facts(source)
        if not hard_link(source, target):
            return False
        if _facts(target) != before:
            raise changed_meanwhile(source, self._name)
        return True


class WatchedFiles:
    """Files of a checkpoint that are read where they lie while an export is written, and belong to none."""

    def __init__(self, paths: Iterable[Path], *, name: str) -> None:
        self._name = name
        self._facts = {path: _facts(path) for path in paths}

    def keep(self, used: Collection[str]) -> dict[str, str]:
        """Nothing stays. Raises `CheckpointError` where a file was written to, or replaced, since this object was made."""
        del used
        for path, facts in self._facts.items():
            if not path.exists() or _facts(path) != facts:
                raise changed_meanwhile(path, self._name)
        return {}

    def remove(self) -> None:
        """There is nothing to take away."""


def changed_meanwhile(path: Path, name: str) -> CheckpointError:
    """What to raise for a file of the checkpoint `name` that is no longer what it was when its export began."""
    return CheckpointError(
        f"{path.name} of {name} changed while it was exported; run again when the checkpoint is complete"
    )


def read_buffers(module: torch.nn.Module) -> None:
    """Reads the buffers of a module: they are small, and a trace takes them for constants."""
    from qeff_framework.seam.deferred import DeferredTensor

    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if isinstance(buffer, DeferredTensor):
                setattr(owner, name, buffer.materialise())


def bytes_to_write(module: torch.nn.Module, directory: Path) -> int:
    """Bytes of the numbers of the deferred weights that lie in no file of `directory`, each counted once."""
    from qeff_framework.seam.deferred import DeferredTensor, beginnings

    recipes = [parameter.recipe for parameter in module.parameters() if isinstance(parameter, DeferredTensor)]
    leaves = {id(leaf): leaf for recipe in recipes for leaf in beginnings(recipe) if not _lies_in(directory, leaf)}
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values())


def _lies_in(directory: Path, leaf: StoredTensor | ComputedTensor) -> bool:
    """Whether a graph in `directory` can refer to the numbers."""
    from qeff_framework.seam.deferred import StoredTensor

    if isinstance(leaf, StoredTensor):
        return leaf.path.parent == directory
    return leaf.blocks is not None and leaf.blocks.stored.path.parent == directory


#: What an export takes beside weights, without mapped files, and for each tensor of the checkpoint. Measured: 379 MB for 2
#: layers, 407 for 80, 513 for 18 thousand tensors, 649 for 37 thousand.
_EXPORT_BYTES, _TENSOR_BYTES = 400_000_000, 7_000
#: Copies of a weight that is computed as a whole: its numbers, what they are computed from, and what is written.
_COPIES = 3
#: Where weights are computed row by row: what a piece is computed from, its numbers, and what is written.
_PIECES_BYTES = 64_000_000


def export_memory(module: torch.nn.Module, directory: Path) -> int:
    """Estimate of the peak of exporting a module of deferred weights to `directory`, in bytes: they are written one by one."""
    from qeff_framework.seam.deferred import ComputedTensor, DeferredTensor, beginnings, is_computed_whole

    tensors = whole = pieces = 0
    for parameter in module.parameters():
        if isinstance(parameter, DeferredTensor):
            leaves = list(beginnings(parameter.recipe))
            tensors += len(leaves)
            if any(isinstance(leaf, ComputedTensor) and not _lies_in(directory, leaf) for leaf in leaves):
                pieces = _PIECES_BYTES
            if is_computed_whole(parameter.recipe):
                whole = max(whole, parameter.numel() * parameter.element_size())
    return _EXPORT_BYTES + _TENSOR_BYTES * tensors + max(pieces, _COPIES * whole)


def loading_memory(paths: Iterable[Path], *, itemsize: int) -> int:
    """Estimate of the peak of an export whose weights are loaded as float32, in bytes.

    `paths`: the files of weights; `itemsize`: bytes of a number in files whose header does not tell.
    """
    total = 0
    for path in paths:
        if path.suffix == ".safetensors":
            total += sum(4 * math.prod(entry["shape"]) for entry in safetensors_header(path).values())
        elif path.suffix == ".gguf":
            total += sum(4 * math.prod(place.shape) for place in GGUFHeader.of(path).tensors.values())
        elif path.suffix != ".json":
            total += path.stat().st_size * 4 // itemsize
    return _EXPORT_BYTES + total


_placed_shards: ContextVar[PlacedShards | None] = ContextVar("placed_shards", default=None)


@contextmanager
def reading_nothing(placed: PlacedShards) -> Iterator[None]:
    """While the body runs, this thread's loading through Transformers makes deferred tensors of the shards in `placed`.

    Where the process has put a reader of its own in the library, the shards are read by that.
    """
    from transformers import modeling_utils

    token = _placed_shards.set(placed)
    try:
        with _READER.installed(modeling_utils), _TORCH_READER.installed(modeling_utils):
            yield
    finally:
        _placed_shards.reset(token)


def _open(original: Any, filename: Any, *args: Any, **kwargs: Any) -> Any:
    """The ``safe_open`` of safetensors in the loader, with deferred tensors for the shards that are placed."""
    import safetensors

    placed = _placed_shards.get()
    path = None if placed is None or original is not safetensors.safe_open else placed.path_of(filename)
    return original(filename, *args, **kwargs) if path is None else _DeferredFile(path)


def _load_state_dict(original: Any, checkpoint_file: Any, *args: Any, **kwargs: Any) -> Any:
    """The loader's function for files of torch, with deferred tensors for those that are placed."""
    placed = _placed_shards.get()
    path = None if placed is None else placed.path_of(checkpoint_file)
    if path is None or path.suffix == ".safetensors" or args or kwargs.get("map_location", "cpu") != "cpu":
        return original(checkpoint_file, *args, **kwargs)
    return deferred_content(path)


_READER = StandIn("safe_open", _open)
_TORCH_READER = StandIn("load_state_dict", _load_state_dict)


class _DeferredFile:
    """What the loader uses of a safetensors file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header = safetensors_header(path)
        self._start = safetensors_data_start(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open."""

    def keys(self) -> Sequence[str]:
        return list(self._header)

    def metadata(self) -> Mapping[str, str]:
        return {"format": "pt"}

    def get_slice(self, name: str) -> _DeferredSlice:
        return _DeferredSlice(self._path, self._start, self._header[name])

    def get_tensor(self, name: str) -> DeferredTensor:
        tensor: DeferredTensor = self.get_slice(name)[...]
        return tensor


class _DeferredSlice:
    """A tensor that the loader asks for with ``[...]``."""

    def __init__(self, path: Path, start: int, entry: Mapping[str, Any]) -> None:
        self._path, self._start, self._entry = path, start, entry

    def get_shape(self) -> list[int]:
        return list(self._entry["shape"])

    def get_dtype(self) -> str:
        return str(self._entry["dtype"])

    def __getitem__(self, index: Any) -> Any:
        from qeff_framework.seam.deferred import DeferredTensor

        stored = _stored_tensor(self._path, self._start, self._entry)
        tensor = DeferredTensor.of_file(stored)
        return tensor if index is Ellipsis else tensor[index]


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, of the types that torch has."""
    from safetensors.torch import _TYPES

    start = safetensors_data_start(path)
    entries = {name: entry for name, entry in safetensors_header(path).items() if entry["dtype"] in _TYPES}
    return {name: _stored_tensor(path, start, entry) for name, entry in entries.items()}


def _stored_tensor(path: Path, start: int, entry: Mapping[str, Any]) -> StoredTensor:
    from safetensors.torch import _TYPES  # Torch's types by their names in the format.

    from qeff_framework.seam.deferred import StoredTensor

    types: Mapping[str, Any] = _TYPES
    return StoredTensor(
        path=path,
        offset=start + entry["data_offsets"][0],
        shape=tuple(entry["shape"]),
        dtype=types[str(entry["dtype"])],
    )


def _facts(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return (found.st_size, found.st_mtime_ns, found.st_ino)
