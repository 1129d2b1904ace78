"""Classes of images, and how well texts fit them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.results.common import artifact_path, backend_line, label, where
from qeff_framework.cli.tables import facts

if TYPE_CHECKING:
    from qeff_framework.cli.results.request import ResultsRequest
    from qeff_framework.runtime.image_classifiers import CompiledImageClassifier, CompiledZeroShotImageClassifier


def classify_images(runner: CompiledImageClassifier, request: ResultsRequest) -> CommandResult:
    """The best label of each image; all scores and logits for ``--json``."""
    from qeff_framework.progress import report
    from qeff_framework.single_pass import class_scores

    files = [file for group in request.args.image for file in group]
    images = [image for group in request.images for image in group]
    report(f"classifying {len(images)} images" if len(images) > 1 else "classifying")
    start = time.perf_counter()
    logits = runner.generate(runner.processed_images(images))
    seconds = time.perf_counter() - start
    request.progress.clear()
    labels, scores = runner.labels, class_scores(logits, runner.problem_type)
    best = [int(row.argmax()) for row in scores]
    results = [
        {
            "file": file,
            "label": labels[index],
            "scores": dict(zip(labels, row.tolist(), strict=True)),
            "logits": values.tolist(),
        }
        for file, index, row, values in zip(files, best, scores, logits, strict=True)
    ]
    lines = [f"{label(number, best)}{labels[index]} {scores[number, index]:.4f}" for number, index in enumerate(best)]
    return CommandResult(
        document={**where(runner), "labels": list(labels), "results": results, "metrics": {"total_time": seconds}},
        text="\n".join(lines),
        summary=facts(
            {
                "backend": backend_line(runner),
                "total": f"{len(images)} images in {seconds:.3f} s",
                "artifact": str(artifact_path(runner)),
            }
        ),
    )


def match_texts(runner: CompiledZeroShotImageClassifier, request: ResultsRequest) -> CommandResult:
    """The text that fits each image best, with all scores for ``--json``."""
    from qeff_framework.progress import report
    from qeff_framework.single_pass import class_scores

    files = [file for group in request.args.image for file in group]
    images, texts = [image for group in request.images for image in group], list(request.texts)
    report(f"comparing {len(images)} images with {len(texts)} texts")
    start = time.perf_counter()
    logits = runner.classify(images, texts).logits_per_image
    seconds = time.perf_counter() - start
    request.progress.clear()
    scores = class_scores(logits, None)
    best = [int(row.argmax()) for row in scores]
    results = [
        {
            "file": file,
            "text": texts[index],
            "scores": dict(zip(texts, row.tolist(), strict=True)),
            "logits": values.tolist(),
        }
        for file, index, row, values in zip(files, best, scores, logits, strict=True)
    ]
    lines = [f"{label(number, best)}{texts[index]} {scores[number, index]:.4f}" for number, index in enumerate(best)]
    return CommandResult(
        document={**where(runner), "results": results, "metrics": {"total_time": seconds}},
        text="\n".join(lines),
        summary=facts(
            {
                "backend": backend_line(runner),
                "total": f"{len(images)} images and {len(texts)} texts in {seconds:.3f} s",
                "artifact": str(artifact_path(runner)),
            }
        ),
    )
