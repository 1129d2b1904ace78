"""What the host computes of the caller's inputs: rows of large embedding tables, and angles that float16 cannot hold.

A table inside a program is loaded with every program, takes the NPU's memory once for each, and only a few rows of it are read in
a step. Beside them it is one file that is mapped and read where it is needed. Angles are computed by ONNX Runtime in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.plugin_api import ExecutionError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class HostTable:
    """One table and the input of the programs that takes its rows, or that takes what a small graph computes."""

    #: ``[*shape of ids, width]``, float32; or what the graph returns.
    input: str
    #: The caller's input that names the rows, or that the graph reads.
    ids: str
    #: ``.npy`` in the artifact's directory: ``[rows, width]``, float16 where that holds every number. Or ``.onnx``: a graph.
    file: str


@dataclass(frozen=True)
class _Table:
    content: Array

    def check(self, name: str, ids: Array) -> None:
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.content):
            wrong = ids[(ids < 0) | (ids >= len(self.content))][0]
            raise InputError(f"{name} holds {wrong}: the model's embedding has the rows 0 to {len(self.content) - 1}")

    def __call__(self, ids: Array) -> Array:
        return self.content[ids].astype(np.float32)


class _Graph:
    def __init__(self, path: Path) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExecutionError(f"the graph {path} cannot be read: {error}. Compile the model again") from error
        self._input = self._session.get_inputs()[0].name

    def check(self, name: str, ids: Array) -> None:
        """Takes every number."""

    def __call__(self, ids: Array) -> Array:
        result: Array = self._session.run(None, {self._input: ids})[0]
        return result


class HostTables:
    """The tables and graphs of one artifact, opened."""

    def __init__(self, directory: Path, records: Sequence[Mapping[str, str]]) -> None:
        self._tables = [(HostTable(**record), _opened(directory / record["file"])) for record in records]

    def feeds_of(self, inputs: Iterable[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What a graph with `inputs` takes, when the caller gives `feeds`."""
        wanted = [*inputs]
        computed = {table.input: make(feeds[table.ids]) for table, make in self._tables if table.input in wanted}
        return {name: computed[name] if name in computed else feeds[name] for name in wanted}

    def lookup_into(self, buffers: Mapping[str, Array], feeds: Mapping[str, Array]) -> None:
        """Writes what a graph takes into its `buffers`, of the caller's `feeds`.

        Raises `InputError`, before anything is written, when a table has no such row.
        """
        wanted = [(table, make) for table, make in self._tables if table.input in buffers]
        for table, make in wanted:
            make.check(table.ids, feeds[table.ids])
        for table, make in wanted:
            np.copyto(buffers[table.input], make(feeds[table.ids]))


def save_table(path: Path, content: Array) -> None:
    """Writes a table, in float16 unless its numbers are too large for that: the NPU computes in float16 anyway."""
    fits = np.abs(content).max(initial=0.0) <= np.finfo(np.float16).max
    np.save(path, content.astype(np.float16 if fits else np.float32))


def _opened(path: Path) -> _Table | _Graph:
    return _Graph(path) if path.suffix == ".onnx" else _Table(_mapped(path))


def _mapped(path: Path) -> Array:
    try:
        content: Array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ExecutionError(f"the embedding table {path} cannot be read: {error}. Compile the model again") from error
    return content
