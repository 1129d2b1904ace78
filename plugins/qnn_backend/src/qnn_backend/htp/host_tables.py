"""What the host computes of the caller's inputs: rows of large embedding tables, and angles that float16 cannot hold.

A table inside a program is loaded with every program, takes the NPU's memory once for each, and only a few rows of it are read in
a step. Beside them it is one file that is mapped and read where it is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.plugin_api import ExecutionError, InputError, require_space
from qeff_framework.sessions import HostGraph

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class HostTable:
    """One table and the input of the programs that takes its rows, or that takes what a small graph computes."""

    #: ``[*shape of ids, width]``, float32; or what the graph returns.
    input: str
    #: ``.npy`` in the artifact's directory: ``[rows, width]``, float16 where that holds every number. Or ``.onnx``: a graph.
    file: str
    #: The caller's input that names the rows. A graph reads the inputs that it names itself.
    ids: str = ""


@dataclass(frozen=True)
class _Table:
    content: Array
    #: The caller's input that names the rows.
    ids: str

    def check(self, feeds: Mapping[str, Array]) -> None:
        ids = feeds[self.ids]
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.content):
            wrong = ids[(ids < 0) | (ids >= len(self.content))][0]
            raise InputError(
                f"{self.ids} holds {wrong}: the model's embedding has the rows 0 to {len(self.content) - 1}"
            )

    def __call__(self, feeds: Mapping[str, Array]) -> Array:
        return self.content[feeds[self.ids]].astype(np.float32)


class HostTables:
    """The tables and graphs of one artifact, opened."""

    def __init__(self, directory: Path, records: Sequence[Mapping[str, str]]) -> None:
        self._tables = [(record["input"], _opened(directory, HostTable(**record))) for record in records]

    def feeds_of(self, inputs: Iterable[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What a graph with `inputs` takes, when the caller gives `feeds`."""
        wanted = [*inputs]
        computed = {name: make(feeds) for name, make in self._tables if name in wanted}
        return {name: computed[name] if name in computed else feeds[name] for name in wanted}

    def lookup_into(self, buffers: Mapping[str, Array], feeds: Mapping[str, Array]) -> None:
        """Writes what a graph takes into its `buffers`, of the caller's `feeds`.

        Raises `InputError`, before anything is written, when a table has no such row.
        """
        wanted = [(name, make) for name, make in self._tables if name in buffers]
        for _, make in wanted:
            if isinstance(make, _Table):
                make.check(feeds)
        for name, make in wanted:
            np.copyto(buffers[name], make(feeds))


def save_table(path: Path, content: Array) -> None:
    """Writes a table, in float16 unless its numbers are too large for that: the NPU computes in float16 anyway.

    Raises:
        ArtifactError: the disk has too little space, before anything is written.
    """
    fits = np.abs(content).max(initial=0.0) <= np.finfo(np.float16).max
    table = content.astype(np.float16 if fits else np.float32)
    require_space(path.parent, table.nbytes, f"writing the table {path.name}")
    np.save(path, table)


def _opened(directory: Path, table: HostTable) -> _Table | HostGraph:
    path = directory / table.file
    return HostGraph(path) if path.suffix == ".onnx" else _Table(_mapped(path), table.ids)


def _mapped(path: Path) -> Array:
    try:
        content: Array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ExecutionError(f"the embedding table {path} cannot be read: {error}. Compile the model again") from error
    return content
