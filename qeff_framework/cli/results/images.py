"""Classes of images, and how well texts fit them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.results.classes import scored
from qeff_framework.cli.results.common import artifact_path, backend_line, where
from qeff_framework.cli.tables import facts

if TYPE_CHECKING:
    from qeff_framework.cli.results.request import ResultsRequest
    from qeff_framework.runtime.image_classifiers import CompiledImageClassifier, CompiledZeroShotImageClassifier


def classify_images(runner: CompiledImageClassifier, request: ResultsRequest) -> CommandResult:
    """The best label of each image; all scores and logits for ``--json``."""
    from qeff_framework.progress import report
    from qeff_framework.single_pass import class_scores

    files, images = _images(request)
    report(f"classifying {len(images)} images" if len(images) > 1 else "classifying")
    start = time.perf_counter()
    logits = runner.generate(runner.processed_images(images))
    seconds = time.perf_counter() - start
    request.progress.clear()
    labels = runner.labels
    results, lines = scored("file", files, labels, class_scores(logits, runner.problem_type), logits)
    return _result(
        runner, {"labels": list(labels), "results": results}, lines, f"{len(images)} images in {seconds:.3f} s", seconds
    )


def match_texts(runner: CompiledZeroShotImageClassifier, request: ResultsRequest) -> CommandResult:
    """The text that fits each image best, with all scores for ``--json``."""
    from qeff_framework.progress import report
    from qeff_framework.single_pass import class_scores

    (files, images), texts = _images(request), list(request.texts)
    report(f"comparing {len(images)} images with {len(texts)} texts")
    start = time.perf_counter()
    logits = runner.classify(images, texts).logits_per_image
    seconds = time.perf_counter() - start
    request.progress.clear()
    results, lines = scored("file", files, texts, class_scores(logits, None), logits, answer="text")
    told = f"{len(images)} images and {len(texts)} texts in {seconds:.3f} s"
    return _result(runner, {"results": results}, lines, told, seconds)


def _images(request: ResultsRequest) -> tuple[list[str], list[Any]]:
    """The files and what was read of them."""
    files = [file for group in request.args.image for file in group]
    return files, [image for group in request.images for image in group]


def _result(
    runner: CompiledImageClassifier | CompiledZeroShotImageClassifier,
    document: dict[str, Any],
    lines: Sequence[str],
    total: str,
    seconds: float,
) -> CommandResult:
    return CommandResult(
        document={**where(runner), **document, "metrics": {"total_time": seconds}},
        text="\n".join(lines),
        summary=facts({"backend": backend_line(runner), "total": total, "artifact": str(artifact_path(runner))}),
    )
