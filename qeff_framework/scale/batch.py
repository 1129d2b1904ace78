"""`qeff batch` with replicas that Ray keeps."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from qeff_framework.errors import ExecutionError, OptionError
from qeff_framework.scale.dataset import ANSWER_COLUMNS, map_dataset
from qeff_framework.scale.extra import needs_ray
from qeff_framework.serving.batch import BatchProgress, complete


def run_batch_on_ray(
    artifact: str | os.PathLike[str],
    source: Path,
    target: Path,
    *,
    replicas: int,
    batch_size: int,
    settings: Mapping[str, Any] | None = None,
    on_progress: Callable[[BatchProgress], None] | None = None,
    **load: Any,
) -> BatchProgress:
    """As `qeff_framework.serving.batch.run_batch`, by `replicas` processes. This process alone writes `target`.

    Joins the cluster that ``RAY_ADDRESS`` names, or that this process has joined, and otherwise starts Ray on this machine until
    the rows are done.
    """
    shared = dict(settings or {})

    def answer(rows: Iterator[tuple[int, str]]) -> Generator[Mapping[str, Any]]:
        waiting = list(rows)
        if waiting:
            yield from _answers(artifact, waiting, shared, replicas=replicas, batch_size=batch_size, load=load)

    return complete(source, target, answer, settings=shared, program=artifact, on_progress=on_progress)


def _answers(
    artifact: str | os.PathLike[str],
    rows: list[tuple[int, str]],
    settings: Mapping[str, Any],
    *,
    replicas: int,
    batch_size: int,
    load: Mapping[str, Any],
) -> Generator[Mapping[str, Any]]:
    with _ray(replicas):
        import pyarrow as pa
        import ray
        from ray.data import from_arrow

        # A table is a block: what a replica that dies loses, and when its answers arrive here.
        parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        tables = [pa.table({"row": [n for n, _ in part], "request": [text for _, text in part]}) for part in parts]
        dataset = map_dataset(
            from_arrow(tables),
            artifact,
            settings=settings,
            json_column="request",
            replicas=replicas,
            batch_size=batch_size,
            **load,
        )
        seen: set[int] = set()
        try:
            # Columns are chosen here: an operation of Ray's would wait for a processor, and the replicas hold them to the end.
            for line in dataset.iter_rows():
                if line["row"] not in seen:
                    seen.add(line["row"])
                    yield {name: line[name] for name in ("row", *ANSWER_COLUMNS) if line[name] is not None}
        except ray.exceptions.RayError as error:
            raise ExecutionError(f"a replica failed: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The error of the process, without Ray's frames."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return str(cause)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


@contextlib.contextmanager
def _ray(replicas: int) -> Iterator[None]:
    needs_ray("--engine ray", "pyarrow")
    # Nothing is sent to Ray's makers unless the user says so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        processors = ray.cluster_resources().get("CPU", 0)
        if replicas > processors:
            raise OptionError(f"--replicas={replicas}: Ray has {processors:g} processors, and a replica needs one")
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        if started:
            ray.shutdown()
