"""What runs return, in the forms that scripts read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass
class PerfMetrics:
    """Times in seconds, rates in tokens per second."""

    prefill_time: float
    decode_perf: float
    total_perf: float
    total_time: float

    @classmethod
    def joined(cls, metrics: Sequence[Any]) -> PerfMetrics:
        """The means over several runs; of none, zeros."""
        count = max(len(metrics), 1)
        names = ("prefill_time", "decode_perf", "total_perf", "total_time")
        return cls(*(sum(getattr(each, name) for each in metrics) / count for name in names))


class _Timed:
    """Shows its times. The fields of `PerfMetrics` can be read from it too, as in old versions of QEfficient."""

    perf_metrics: PerfMetrics

    @property
    def prefill_time(self) -> float:
        return self.perf_metrics.prefill_time

    @property
    def decode_perf(self) -> float:
        return self.perf_metrics.decode_perf

    @property
    def total_perf(self) -> float:
        return self.perf_metrics.total_perf

    @property
    def total_time(self) -> float:
        return self.perf_metrics.total_time

    def __repr__(self) -> str:
        times = self.perf_metrics
        return (
            f"prefill (time to first token): {times.prefill_time:.2f} s\n"
            f"decode: {times.decode_perf:.2f} tokens/s\n"
            f"total: {times.total_perf:.2f} tokens/s\n"
            f"end to end: {times.total_time:.2f} s"
        )


@dataclass(repr=False)
class CloudAI100ExecInfo(_Timed):
    """The result of text generation.

    Of a program for batches, texts and ids are lists with one entry for each batch: a list of texts, and an array ``[B, T]``.
    With continuous batching they are the texts of all prompts and one array ``[N, T]``. Rows are filled with the padding token.
    """

    batch_size: int
    generated_texts: list[str] | list[list[str]]
    generated_ids: list[NDArray[Any]] | NDArray[Any]
    perf_metrics: PerfMetrics


@dataclass(repr=False)
class CloudAI100ExecInfoNew(_Timed):
    """The result of a model that reads images or sound: ids ``[B, T]``, filled with the padding token."""

    batch_size: int
    generated_ids: list[NDArray[Any]] | NDArray[Any]
    perf_metrics: PerfMetrics


def padded(rows: Sequence[Sequence[int]], fill: int, width: int | None = None) -> NDArray[Any]:
    """Token ids as an array ``[N, T]``; T is `width`, or the length of the longest row where that is more."""
    import numpy as np

    array = np.full((len(rows), max([width or 0, *map(len, rows)])), fill, dtype=np.int64)
    for place, row in zip(array, rows, strict=True):
        place[: len(row)] = row
    return array
