"""Programs that read each text in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.results.common import artifact_path, backend_line, needed_tokenizer, where
from qeff_framework.cli.tables import facts

if TYPE_CHECKING:
    from qeff_framework.cli.results.request import ResultsRequest
    from qeff_framework.contracts import Array
    from qeff_framework.runtime import CompiledClassifier, CompiledRunner


def run_on_texts(runner: CompiledClassifier, request: ResultsRequest, *, doing: str) -> tuple[Array, float]:
    """The program's output for each text, and the seconds that it took."""
    import time

    from qeff_framework.progress import report
    from qeff_framework.runtime import CompiledTokenClassifier
    from qeff_framework.single_pass import single_texts
    from qeff_framework.tokenization import encode_prompt

    tokenizer = needed_tokenizer(runner)
    report(f"{doing} {len(request.texts)} texts")
    start = time.perf_counter()
    # The tokens of a text are told apart by the tokenizer's own output, so that it must stay as it is.
    encode = tokenizer.encode if isinstance(runner, CompiledTokenClassifier) else partial(encode_prompt, tokenizer)
    output = runner.generate(single_texts(tokenizer, [encode(text) for text in request.texts]))
    seconds = time.perf_counter() - start
    request.progress.clear()
    return output, seconds


def texts_outcome(
    runner: CompiledRunner, texts: Sequence[str], lines: Sequence[str], found: Mapping[str, Any], seconds: float
) -> CommandResult:
    """What a program has `found` for texts, with the time that it took."""
    metrics = {"total_time": seconds, "texts_per_second": len(texts) / seconds}
    return CommandResult(
        document={**where(runner), **found, "metrics": metrics},
        text="\n".join(lines),
        summary=_texts_summary(runner, texts, seconds),
    )


def _texts_summary(runner: CompiledRunner, texts: Sequence[str], seconds: float) -> str:
    return facts(
        {
            "backend": backend_line(runner),
            "total": f"{len(texts)} texts in {seconds:.3f} s",
            "artifact": str(artifact_path(runner)),
        }
    )
