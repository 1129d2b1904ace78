"""How much of a mapped table stays in memory."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ort_sim_backend.mapped_tables import MappedTables, RowReader
from qeff_framework.errors import ExecutionError, InputError

ROWS, SIZE = 4096, 4096


def resident(file: Path) -> int:
    """KiB of a file that this process has in memory."""
    blocks = Path("/proc/self/smaps").read_text().split(str(file))[1:]
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("Rss:")][: len(blocks)]
    return sum(int(line.split()[1]) for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="the counters are Linux's")
def test_a_chunk_leaves_nothing_behind_and_small_steps_little(tmp_path):
    file = tmp_path / "tables"
    content = np.random.default_rng(0).integers(0, 255, (ROWS, SIZE), dtype=np.uint8)
    file.write_bytes(b"\0" * 64 + content.tobytes())
    tables = MappedTables(file, [{"name": "t", "offset": 64, "dtype": "uint8", "shape": [ROWS, SIZE]}], 2)
    table = tables.arrays["t"]

    with tables.reading(64):
        np.testing.assert_array_equal(table[::64], content[::64])
        assert resident(file) >= 64 * 4
    assert resident(file) == 0

    sizes = []
    for step in range(8):
        with tables.reading(2):
            np.testing.assert_array_equal(table[step * 128 : step * 128 + 2], content[step * 128 : step * 128 + 2])
        sizes.append(resident(file))
    assert sizes[:7] == sorted(sizes[:7])
    assert sizes[6] > sizes[0] > 0 == sizes[7]
    assert not table.flags.writeable


def test_rows_are_read_as_they_lie_and_one_that_is_not_there_is_refused(tmp_path):
    file = tmp_path / "tables"
    content = np.random.default_rng(0).standard_normal((7, 2, 3)).astype(np.float32)
    file.write_bytes(b"\0" * 64 + content.tobytes())
    place = {"rows": "taken", "numbers": "ids", "offset": 64, "dtype": "float32", "shape": [7, 2, 3]}
    reader = RowReader(file, place)
    ids = np.array([[0, 6, 3], [3, -1, 2]])
    rows = reader.buffer(ids)
    reader.read(ids, rows)
    np.testing.assert_array_equal(rows, content[ids])
    for wrong in (7, -8):
        with pytest.raises(InputError, match=f"ids has {wrong}, and there are 7 rows"):
            reader.read(np.array([[0, wrong, 1]]), reader.buffer(ids[:1]))
    with file.open("r+b") as opened:
        opened.truncate(64 + 6 * 24 + 8)
    with pytest.raises(ExecutionError, match="has become shorter since it was opened: row 6"):
        reader.read(ids, rows)
    reader.close()
