"""What is said in files of sound, and their classes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.results.common import artifact_path, backend_line, label, needed_tokenizer, where
from qeff_framework.cli.tables import facts

if TYPE_CHECKING:
    from qeff_framework.cli.results.request import ResultsRequest
    from qeff_framework.runtime.sound import CompiledAudioClassifier, CompiledCTC, SoundRunner
    from qeff_framework.runtime.sound_files import SoundFile
    from qeff_framework.runtime.speech import CompiledSpeechSeq2Seq
    from qeff_framework.speech.segments import Segment


def transcribe(runner: CompiledCTC, request: ResultsRequest) -> CommandResult:
    """The text of each file."""
    from qeff_framework.progress import report

    clips = resampled(runner, request.audio)
    report(f"transcribing {len(clips)} files" if len(clips) > 1 else "transcribing")
    start = time.perf_counter()
    texts = [text for clip in clips for text in runner.transcribe(clip)]
    seconds = time.perf_counter() - start
    request.progress.clear()
    results = [{**told(sound), "text": text} for sound, text in zip(request.audio, texts, strict=True)]
    lines = [f"{label(number, texts)}{text}" for number, text in enumerate(texts)]
    return sound_outcome(runner, request.audio, lines, {"results": results}, seconds)


def write_down(runner: CompiledSpeechSeq2Seq, request: ResultsRequest) -> CommandResult:
    """The text of each file; with ``--timestamps`` a line for each segment."""
    from qeff_framework.progress import report

    args = request.args
    needed_tokenizer(runner)
    clips = resampled(runner, request.audio)
    stream = args.stream if args.stream is not None else len(clips) == 1 and sys.stdout.isatty() and not args.json

    def show(clip: int, segment: Segment) -> None:
        request.progress.clear()
        print(f"{label(clip, clips)}{timed(segment)}", flush=True)

    report(f"transcribing {len(clips)} files" if len(clips) > 1 else "transcribing")
    start = time.perf_counter()
    features = runner.prepared(clips)
    if stream:
        request.progress.clear()
    found = runner.generate(
        features,
        language=args.language,
        task=args.speech_task,
        return_timestamps=True if args.timestamps else None,
        stream=stream and not args.timestamps,
        on_segment=show if stream and args.timestamps else None,
        **request.settings,
    )
    seconds = time.perf_counter() - start
    request.progress.clear()
    results = [
        {
            **told(sound),
            "text": text,
            "token_ids": ids,
            "segments": [{"start": segment.start, "end": segment.end, "text": segment.text} for segment in segments],
        }
        for sound, text, ids, segments in zip(
            request.audio, found.generated_texts, found.generated_ids, found.segments, strict=True
        )
    ]
    lines = [
        f"{label(number, clips)}{line}"
        for number, (text, segments) in enumerate(zip(found.generated_texts, found.segments, strict=True))
        for line in ([timed(part) for part in segments] if args.timestamps else [text])
    ]
    return sound_outcome(runner, request.audio, [] if stream else lines, {"results": results}, seconds)


def timed(segment: Segment) -> str:
    """The line of a segment."""
    return f"[{segment.start:.2f} - {segment.end:.2f}] {segment.text}"


def classify_sound(runner: CompiledAudioClassifier, request: ResultsRequest) -> CommandResult:
    """The best label of each file; all scores and logits for ``--json``."""
    from qeff_framework.progress import report
    from qeff_framework.single_pass import class_scores

    clips = resampled(runner, request.audio)
    report(f"classifying {len(clips)} files" if len(clips) > 1 else "classifying")
    start = time.perf_counter()
    logits = runner.generate(runner.prepared(clips))
    seconds = time.perf_counter() - start
    request.progress.clear()
    labels, scores = runner.labels, class_scores(logits, runner.problem_type)
    best = [int(row.argmax()) for row in scores]
    results = [
        {
            **told(sound),
            "label": labels[index],
            "scores": dict(zip(labels, row.tolist(), strict=True)),
            "logits": values.tolist(),
        }
        for sound, index, row, values in zip(request.audio, best, scores, logits, strict=True)
    ]
    lines = [f"{label(number, best)}{labels[index]} {scores[number, index]:.4f}" for number, index in enumerate(best)]
    return sound_outcome(runner, request.audio, lines, {"labels": list(labels), "results": results}, seconds)


def resampled(runner: SoundRunner, files: Sequence[SoundFile]) -> list[Any]:
    """The samples of each file at the rate of the processor."""
    return [sound.at(runner.sampling_rate) for sound in files]


def told(sound: SoundFile) -> dict[str, Any]:
    """What a result says about its file."""
    return {"file": sound.file, "seconds": sound.seconds, "sampling_rate": sound.rate}


def sound_outcome(
    runner: SoundRunner,
    files: Sequence[SoundFile],
    lines: Sequence[str],
    found: Mapping[str, Any],
    seconds: float,
) -> CommandResult:
    """What a program has `found` in files, with the time that it took."""
    length = sum(sound.seconds for sound in files)
    other = sorted({sound.rate for sound in files} - {runner.sampling_rate})
    note = f"resampled from {', '.join(map(str, other))} to {runner.sampling_rate} samples per second" if other else ""
    return CommandResult(
        document={**where(runner), **found, "metrics": {"total_time": seconds, "seconds_of_sound": length}},
        text="\n".join(lines),
        summary=facts(
            {
                "backend": backend_line(runner),
                "total": f"{length:.1f} s of sound in {seconds:.3f} s",
                "note": note,
                "artifact": str(artifact_path(runner)),
            }
        ),
    )
