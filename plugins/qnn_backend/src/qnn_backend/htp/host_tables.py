"""Large embedding tables lie beside the programs, and their rows are looked up on the host.

A table inside a program is loaded with every program, takes the NPU's memory once for each, and only a few rows of it are read in
a step. Beside them it is one file that is mapped and read where it is needed.
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
    """One table and the input of the programs that takes its rows."""

    #: ``[*shape of ids, width]``, float32.
    input: str
    #: The caller's input that names the rows.
    ids: str
    #: ``.npy`` in the artifact's directory: ``[rows, width]``, float16 where that holds every number.
    file: str


class HostTables:
    """The tables of one artifact, opened."""

    def __init__(self, directory: Path, records: Sequence[Mapping[str, str]]) -> None:
        self._tables = [(HostTable(**record), _mapped(directory / record["file"])) for record in records]

    def feeds_of(self, inputs: Iterable[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What a graph with `inputs` takes, when the caller gives `feeds`."""
        rows = {table.input: content[feeds[table.ids]].astype(np.float32) for table, content in self._tables}
        return {name: rows[name] if name in rows else feeds[name] for name in inputs}

    def lookup_into(self, buffers: Mapping[str, Array], feeds: Mapping[str, Array]) -> None:
        """Writes the rows that `feeds` name into `buffers`.

        Raises `InputError`, before anything is written, when there is no such row.
        """
        for table, content in self._tables:
            ids = feeds[table.ids]
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(content):
                wrong = ids[(ids < 0) | (ids >= len(content))][0]
                raise InputError(
                    f"{table.ids} holds {wrong}: the model's embedding has the rows 0 to {len(content) - 1}"
                )
        for table, content in self._tables:
            np.copyto(buffers[table.input], content[feeds[table.ids]])


def save_table(path: Path, content: Array) -> None:
    """Writes a table, in float16 unless its numbers are too large for that: the NPU computes in float16 anyway."""
    fits = np.abs(content).max(initial=0.0) <= np.finfo(np.float16).max
    np.save(path, content.astype(np.float16 if fits else np.float32))


def _mapped(path: Path) -> Array:
    try:
        content: Array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ExecutionError(f"the embedding table {path} cannot be read: {error}. Compile the model again") from error
    return content
