"""Generated text."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.results.common import artifact_path, backend_line, label, needed_tokenizer, where
from qeff_framework.cli.tables import facts

if TYPE_CHECKING:
    from qeff_framework.cli.results.request import ResultsRequest
    from qeff_framework.contracts import CompiledModel
    from qeff_framework.generation import GenerationOutput
    from qeff_framework.runtime import CompiledCausalLM, CompiledRunner


def generate_text(runner: CompiledCausalLM, request: ResultsRequest) -> CommandResult:
    """Generates and prints, as many prompts at once as the program computes."""
    from qeff_framework.progress import report

    needed_tokenizer(runner)
    prompts, args, progress = request.prompts, request.args, request.progress
    stream = args.stream if args.stream is not None else len(prompts) == 1 and sys.stdout.isatty() and not args.json
    shown = stream or not args.json
    report(f"generating text for {len(prompts)} prompts" if len(prompts) > 1 else "generating text")
    outputs: list[GenerationOutput] = []
    for first, group in _groups(prompts, _prompts_at_once(runner.compiled, len(prompts), _beams(runner, request))):
        alone = stream and len(group) == 1
        if alone:
            progress.clear()
            print(label(first, prompts), end="", flush=True)
        further = dict(request.settings)
        for name, given in (("images", request.images), ("videos", request.videos)):
            if given:
                further[name] = given[first : first + len(group)]
        outputs.append(runner.generate(prompts=group, stream=alone, **further))
        if shown and not alone:
            progress.clear()
            for index, text in enumerate(outputs[-1].generated_texts, first):
                print(f"{label(index, prompts)}{text}", flush=True)
    return _text_outcome(runner, outputs)


def _beams(runner: CompiledRunner, request: ResultsRequest) -> int:
    """Rows of each prompt."""
    from qeff_framework.runtime.text_generation import generation_defaults

    asked = request.settings.get("num_beams") or generation_defaults(runner.compiled.directory).get("num_beams")
    return asked if isinstance(asked, int) else 1


def _prompts_at_once(compiled: CompiledModel, count: int, beams: int) -> int:
    """With continuous batching prompts take turns by themselves."""
    # Of several programs the last is the one that generates.
    specializations = [*compiled.parts().values()][-1].specializations
    if any("full_batch_size" in item.dims for item in specializations):
        return count
    # With too few rows for the beams of one prompt, generating says so.
    return max(1, min(item.dims["batch_size"] for item in specializations) // beams)


def _groups(prompts: Sequence[Any], batch_size: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """As many prompts at once as the program computes, each group with the number of its first prompt."""
    for first in range(0, len(prompts), batch_size):
        yield first, prompts[first : first + batch_size]


def _text_outcome(runner: CompiledRunner, outputs: Sequence[GenerationOutput]) -> CommandResult:
    metrics = _metrics(outputs)
    results = [
        {
            "prompt": prompt,
            "text": text,
            "token_ids": ids,
            "prompt_tokens": length,
            "finish_reason": reason,
        }
        for output in outputs
        for prompt, text, ids, length, reason in zip(
            output.prompts,
            output.generated_texts,
            output.generated_ids,
            output.prompt_lengths,
            output.finish_reasons,
            strict=True,
        )
    ]
    figures = {
        "time to first token": f"{metrics['time_to_first_token']:.3f} s",
        "decode": f"{metrics['decode_tokens_per_second']:.1f} tokens/s",
        "total": f"{metrics['new_tokens']} tokens in {metrics['total_time']:.3f} s, "
        f"{metrics['tokens_per_second']:.1f} tokens/s",
        "note": metrics["note"],
    }
    return CommandResult(
        document={**where(runner), "results": results, "metrics": metrics},
        summary=facts({"backend": backend_line(runner), **figures, "artifact": str(artifact_path(runner))}),
    )


def _metrics(outputs: Sequence[GenerationOutput]) -> dict[str, Any]:
    """Figures of all groups together; the time to first token is that of the first group."""
    tokens = sum(len(ids) for output in outputs for ids in output.generated_ids)
    total = sum(output.perf_metrics.total_time for output in outputs)
    decoding = total - sum(output.perf_metrics.prefill_time for output in outputs)
    decoded = tokens - sum(len(output.generated_ids) for output in outputs)
    return {
        "time_to_first_token": outputs[0].perf_metrics.time_to_first_token,
        "decode_tokens_per_second": decoded / decoding if decoded and decoding > 0 else 0.0,
        "tokens_per_second": tokens / total if total > 0 else 0.0,
        "new_tokens": tokens,
        "total_time": total,
        "drafts_proposed": sum(output.perf_metrics.drafts_proposed for output in outputs),
        "drafts_accepted": sum(output.perf_metrics.drafts_accepted for output in outputs),
        "note": outputs[0].perf_metrics.note,
    }
