"""Answers to the rows of a data set of Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from qeff_framework.errors import OptionError
from qeff_framework.scale.extra import needs_ray

if TYPE_CHECKING:
    from ray.data import Dataset

#: What is added to each row.
ANSWER_COLUMNS = ("text", "token_ids", "finish_reason", "error")


def map_dataset(
    dataset: Dataset,
    artifact: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
    json_column: str | None = None,
    replicas: int = 1,
    batch_size: int = 64,
    verify: Literal["quick", "full"] = "quick",
    extensions: Sequence[str] | None = None,
    ray_remote_args: Mapping[str, Any] | None = None,
    **runtime_options: Any,
) -> Dataset:
    """The rows of `dataset` with an answer to each, computed by replicas of one program.

    >>> rows = ray.data.from_items([{"id": 1, "prompt": "My name is"}, {"id": 2, "prompt": "The capital of France is"}])
    >>> map_dataset(rows, "compiled-model", keep=["id"], settings={"max_new_tokens": 8}, replicas=2).write_parquet(
    ...     "answers"
    ... )

    A row has a ``prompt`` (a text or token ids) or ``messages`` (a conversation); its other columns are settings of the
    generation, which win over `settings`, and a null is a column that the row does not have. The rows that come out have their
    own columns and ``text``, ``token_ids`` and ``finish_reason``, or ``error``: a row that fails does not stop the others.
    Nothing is computed until rows are asked for. A replica that dies is started again, with the rows that it had.

    Args:
        dataset: the rows.
        artifact: a compiled artifact of text generation: a directory that every node sees under this path, or a URL of fsspec,
            which each node fetches once and verifies.
        settings: settings of the generation for all rows.
        keep: columns that are not settings; they stand beside the answer.
        json_column: the column that holds each row as JSON text, where rows differ in their fields; other columns are kept.
        replicas: processes, each with a program of its own.
        batch_size: rows that a replica gets at a time. Its rows in the program are full until the last of them begin, so that
            this is better many times the compiled batch size.
        verify: as for `load_compiled`.
        extensions: as for `load_compiled`.
        ray_remote_args: resources of a replica, as for Ray's ``map_batches`` (``num_cpus``, ``resources``, ...).
        **runtime_options: as for `load_compiled`.

    Raises:
        OptionError: Ray is not installed, or a size is below 1.
    """
    needs_ray("map_dataset", "pyarrow")
    for name, value in (("replicas", replicas), ("batch_size", batch_size)):
        if value < 1:
            raise OptionError(f"{name}={value} must be at least 1")
    if json_column is not None and keep:
        raise OptionError("keep is for rows of columns; with json_column all other columns are kept")
    text = os.fspath(artifact)
    return dataset.map_batches(
        Replica,
        fn_constructor_kwargs={
            # Workers have a working directory of their own.
            "artifact": text if "://" in text else os.path.abspath(text),  # noqa: PTH100 - of a text that may be a URL
            "settings": dict(settings or {}),
            "keep": tuple(keep),
            "json_column": json_column,
            "load": {"verify": verify, "extensions": extensions, **runtime_options},
        },
        batch_size=batch_size,
        batch_format="pyarrow",
        concurrency=replicas,
        **(ray_remote_args or {}),
    )


class Replica:
    """What a process of Ray Data holds: a program, and an engine over it."""

    def __init__(
        self,
        *,
        artifact: str,
        settings: Mapping[str, Any],
        keep: Sequence[str],
        json_column: str | None,
        load: Mapping[str, Any],
    ) -> None:
        from qeff_framework.runtime import load_compiled
        from qeff_framework.scale.fetching import local_artifact
        from qeff_framework.serving.engine import Engine

        self._engine = Engine(load_compiled(local_artifact(artifact), **load))  # type: ignore[arg-type] # it refuses others
        self._settings, self._keep, self._json_column = settings, frozenset(keep), json_column

    def __call__(self, table: Any) -> Any:
        """The rows of a `pyarrow.Table`, with their answers."""
        import pyarrow as pa

        from qeff_framework.serving.batch import answers
        from qeff_framework.serving.parquet import without_nulls

        rows: list[str | Mapping[str, Any]]
        if self._json_column is not None:
            rows = table.column(self._json_column).to_pylist()
        else:
            asked = table.select([name for name in table.column_names if name not in self._keep])
            rows = [without_nulls(row) for row in asked.to_pylist()]
        found = {line["row"]: line for line in answers(self._engine, enumerate(rows), self._settings)}
        kinds = (pa.string(), pa.list_(pa.int64()), pa.string(), pa.string())
        for name, kind in zip(ANSWER_COLUMNS, kinds, strict=True):
            values = [found[number].get(name) for number in range(len(rows))]
            table = table.append_column(name, pa.array(values, kind))
        return table
