"""Rows of a Parquet file, as the JSON texts that they would be in a file of lines (extra ``parquet``: pyarrow)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qeff_framework.errors import InputError, OptionError


def parquet_rows(source: Path) -> Iterator[tuple[int, str]]:
    """Number and JSON text of each row; a null counts as a field that is not there.

    Raises `InputError` for a file that is no Parquet, and for one with a column of a type that JSON does not have.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise OptionError(f"{source}: Parquet needs pyarrow: pip install 'qeff-framework[parquet]'") from error
    try:
        with parquet.ParquetFile(source) as file:
            for column in file.schema_arrow:
                if not _is_json(column.type):
                    raise InputError(
                        f"{source}: column {column.name!r} has the type {column.type}, which JSON does not have; leave it out, "
                        "or give numbers, texts, lists or structs"
                    )
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield number, json.dumps(without_nulls(row))
                    number += 1
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{source} cannot be read as Parquet: {error}") from error


def without_nulls(value: Any) -> Any:
    """Tables have all columns in all rows: what is null is what a row does not say."""
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def _is_json(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return all(_is_json(kind.field(index).type) for index in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_json(kind.value_type)
    plain = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_null,
    )
    return any(is_of(kind) for is_of in plain)
