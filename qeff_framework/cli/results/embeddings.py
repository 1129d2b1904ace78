"""Embeddings of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.results.common import needed_tokenizer
from qeff_framework.cli.results.single_pass import texts_outcome

if TYPE_CHECKING:
    from qeff_framework.cli.results.request import ResultsRequest
    from qeff_framework.runtime import CompiledEncoder


def embed(runner: CompiledEncoder, request: ResultsRequest) -> CommandResult:
    """The shape of the embeddings; their values for ``--json``."""
    import time

    from qeff_framework.progress import report

    texts = request.texts
    needed_tokenizer(runner)
    report(f"embedding {len(texts)} texts")
    start = time.perf_counter()
    embeddings = runner.generate(texts)
    seconds = time.perf_counter() - start
    request.progress.clear()
    shape = list(embeddings.shape)
    found = {"shape": shape, "embeddings": embeddings.tolist()}
    return texts_outcome(runner, texts, [f"{embeddings.dtype} {shape}"], found, seconds)
