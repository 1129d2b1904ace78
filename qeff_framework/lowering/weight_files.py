"""The weights of a lowered model on disk: in 16 bits where the checkpoint has them so, and not copied where a link serves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import onnx_ir as ir

from qeff_framework.artifacts import hard_link
from qeff_framework.artifacts.disk import require_space, told_bytes
from qeff_framework.lowering.stored_weights import (
    STORED,
    StoredWeight,
    count_parts,
    files_of,
    insert_first,
    put_stored_form,
)
from qeff_framework.progress import reported_parts

#: Of the files of a checkpoint.
_SHARD_SUFFIXES = frozenset({".safetensors", ".bin", ".gguf"})


def narrow_stored_weights(
    model: ir.Model,
    *,
    types: Collection[ir.DataType],
    stays: Callable[[ir.Value], bool] = lambda value: False,
    inline_bytes: int = 1024,
) -> int:
    """Weights that a checkpoint stores in 16 bits become 16 bits wide, with a ``Cast`` to float32 behind; returns how many.

    For compilers that fold the cast. A weight keeps its type where that is one of `types`. With float16 among them, numbers of
    bfloat16 are rounded to it otherwise: for devices that compute in float16, whose compilers would round in the same way.
    Nothing is read here. `stays` names weights that are left in float32.
    """
    count = 0
    for value in list(model.graph.initializers.values()):
        weight = value.const_value
        if not isinstance(weight, StoredWeight) or weight.narrow_dtype is None or weight.nbytes <= 2 * inline_bytes:
            continue
        dtype = weight.narrow_dtype if weight.narrow_dtype in types else ir.DataType.FLOAT16
        if dtype not in types or (dtype != weight.narrow_dtype and stays(value)):
            continue
        name = str(value.name)
        narrow = weight.narrow(dtype)
        narrow.name = f"{name}{STORED}1"
        stored = ir.Value(name=narrow.name, shape=narrow.shape, type=ir.TensorType(narrow.dtype), const_value=narrow)
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, name=f"{name}{STORED}2")
        result = cast.outputs[0]
        result.type, result.shape = value.type, value.shape
        value.replace_all_uses_with(result, replace_graph_outputs=True)
        del model.graph.initializers[name]
        result.name = name
        model.graph.register_initializer(stored)
        insert_first(model, [cast])
        count += 1
    return count


def writing_memory(model: ir.Model) -> int:
    """Estimate of what this process holds while it writes a model, in bytes without mapped files.

    For `plugin_api.announce_memory`, where the weights are written as `write_weights` does; a compiler's own is not in it.
    """
    values = [value for graph in (model.graph, *model.graph.subgraphs()) for value in graph.initializers.values()]
    weights = [value.const_value for value in values if isinstance(value.const_value, StoredWeight)]
    nodes = sum(1 for _ in model.graph.all_nodes())
    parts = sum(map(count_parts, weights))
    largest = max((weight.working_bytes for weight in weights), default=0)
    return _BASE_BYTES + _NODE_BYTES * nodes + _PART_BYTES * parts + largest


#: Libraries and the graph, once the same process has exported the model, for each node, and for each tensor of the checkpoint.
#: Measured: 777 MB for Llama 3.1 8B, 795 for 70B, 1039 for Qwen3-235B-A22B, which has 36 thousand tensors.
_BASE_BYTES, _NODE_BYTES, _PART_BYTES = 460_000_000, 4_000, 6_500


def link_stored_weights(model: ir.Model, directory: Path, *, types: Collection[ir.DataType]) -> list[str]:
    """Weights that a checkpoint stores in one of `types` are referred to in its files, which get a second name in `directory`.

    The files are hard links: the directory is complete, may be moved and copied as any other, and takes no more disk while both
    are on one file system. Where a link is refused, nothing changes for the weights of that file. Joins, transposes and casts
    stand in the graph. Weights that lie in blocks of a GGUF file are left as they are. Returns the names of the files.

    The readers of onnx and onnx_ir refuse external data with several names, and so do compilers that use them: link what is read
    after it has been copied, or by a reader of your own.
    """
    linked: dict[Path, Path | None] = {}
    for value in list(model.graph.initializers.values()):
        weight = value.const_value
        if not isinstance(weight, StoredWeight) or (weight.narrow_dtype or weight.dtype) not in types:
            continue
        if weight.lies_in_blocks:
            continue
        files = files_of(weight)
        for file in sorted(files - set(linked)):
            linked[file] = _link(file, directory)
        places = {file: place for file in files if (place := linked[file]) is not None}
        if len(places) == len(files):
            put_stored_form(model, value, places)
    return sorted(place.name for place in linked.values() if place is not None)


def _link(source: Path, directory: Path) -> Path | None:
    """Where the file has its second name; `None` where it has none. Files that an export has written itself are not shared."""
    target = directory / source.name
    if source.suffix not in _SHARD_SUFFIXES or target.exists() or not hard_link(source, target):
        return None
    return target


def write_weights(
    model: ir.Model,
    directory: Path,
    file_name: str,
    *,
    inline_bytes: int = 1024,
    max_file_bytes: int | None = None,
    copies: int = 1,
) -> list[str]:
    """Writes the weights that do not lie in a file of `directory` to new files there, one at a time; returns the files' names.

    Weights of at most `inline_bytes` stay in the model. The first file is called `file_name`; with `max_file_bytes` several are
    called ``name-00001-of-00003.suffix``. `onnx_ir.save` without ``external_data`` writes the model. The space for so many
    `copies` must be there: a compiler may write its own before this one is removed.

    Raises:
        ArtifactError: the disk has too little space, before anything is written.
    """
    values = [value for graph in (model.graph, *model.graph.subgraphs()) for value in graph.initializers.values()]
    pending = [
        (value, tensor)
        for value in values
        if (tensor := value.const_value) is not None and not _stays(tensor, directory, inline_bytes)
    ]
    if not pending:
        return []
    groups = list(_groups(pending, max_file_bytes))
    stem, _, suffix = file_name.partition(".")
    names = [f"{stem}-{number:05}-of-{len(groups):05}.{suffix}" for number in range(1, len(groups) + 1)]
    if len(groups) == 1:
        names = [file_name]
    tell = _announced([tensor for _, tensor in pending], directory, copies)
    for name, group in zip(names, groups, strict=True):
        written = ir.external_data.convert_tensors_to_external(
            [tensor for _, tensor in group], directory, name, callback=tell
        )
        for (value, _), tensor in zip(group, written, strict=True):
            value.const_value = tensor
    return names


def write_tensors(
    tensors: Sequence[ir.TensorProtocol], directory: Path, file_name: str, *, copies: int = 1
) -> list[ir.TensorProtocol]:
    """Writes tensors to a new file of `directory`, one at a time, and returns them as they lie there; without any, no file.

    For weights that `write_weights` does not write: those that several models share, or that a model has for a while only.
    `copies` as there.

    Raises:
        ArtifactError: the disk has too little space, before anything is written.
    """
    if not tensors:
        return []
    tell = _announced(tensors, directory, copies)
    return list(ir.external_data.convert_tensors_to_external(tensors, directory, file_name, callback=tell))


def _announced(
    tensors: Sequence[ir.TensorProtocol], directory: Path, copies: int
) -> Callable[[ir.TensorProtocol, object], None]:
    """Refuses to write where there is too little space; else says what begins. The result is called before each tensor."""
    needed = int(sum(tensor.filled_bytes if isinstance(tensor, StoredWeight) else tensor.nbytes for tensor in tensors))
    what = f"writing {len(tensors)} weights"
    require_space(directory, copies * needed, f"{what} {copies} times" if copies > 1 else what)
    done = reported_parts(f"{what}, {told_bytes(needed)}", len(tensors))
    count = itertools.count()
    return lambda tensor, info: done(next(count))


def _stays(tensor: ir.TensorProtocol, directory: Path, inline_bytes: int) -> bool:
    """Whether a tensor is small, or lies in a file of `directory`."""
    if isinstance(tensor, ir.ExternalTensor):
        return Path(tensor.path).parent == directory
    return tensor.nbytes <= inline_bytes


_Pending = tuple[ir.Value, ir.TensorProtocol]


def _groups(pending: list[_Pending], max_bytes: int | None) -> Iterator[list[_Pending]]:
    """Weights of one file each. A weight that is larger than a file may be has a file for itself."""
    group: list[_Pending] = []
    size = 0
    for value, tensor in pending:
        if group and max_bytes is not None and size + tensor.nbytes > max_bytes:
            yield group
            group, size = [], 0
        group.append((value, tensor))
        size += int(tensor.nbytes)
    if group:
        yield group
