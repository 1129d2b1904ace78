"""Rows of Parquet files are what they would be as lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qeff_framework.errors import InputError
from qeff_framework.serving.batch import input_rows

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: `make scale` runs this test")


def test_nulls_are_what_a_row_does_not_say(tmp_path: Path) -> None:
    from pyarrow import parquet

    rows = [
        {"messages": [{"role": "user", "content": "a", "name": None}], "seed": 1, "temperature": None},
        {"messages": None, "seed": None, "temperature": 0.5},
    ]
    file = tmp_path / "in.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file)
    assert [(number, json.loads(text)) for number, text in input_rows(file)] == [
        (0, {"messages": [{"role": "user", "content": "a"}], "seed": 1}),
        (1, {"temperature": 0.5}),
    ]


@pytest.mark.parametrize("kind", [pa.binary(), pa.timestamp("s"), pa.list_(pa.decimal128(5))], ids=str)
def test_what_json_does_not_have_is_refused(tmp_path: Path, kind: pa.DataType) -> None:
    from pyarrow import parquet

    file = tmp_path / "in.parquet"
    parquet.write_table(pa.table({"prompt": ["a"], "odd": pa.array([None], kind)}), file)
    with pytest.raises(InputError, match="column 'odd' has the type"):
        next(input_rows(file))
    file.write_bytes(b"PAR1 not at all")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        next(input_rows(file))
