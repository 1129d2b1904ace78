"""What Transformers itself computes for a tiny model: the reference that an export is compared with.

Run as a module, it goes through the model types and prints one JSON line for each:

    python -m qeff_framework.coverage.reference --task causal-lm llama gemma3_text
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.coverage.families import coverage_of, covered_tasks, types_of
from qeff_framework.coverage.processes import first_line, sweep
from qeff_framework.coverage.tiny import tiny_model, tiny_prompts
from qeff_framework.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch

STEPS: Final = 16
# Below this distance between the two best logits, in standard deviations, another order of summation may choose otherwise.
CLEAR_MARGIN: Final = 0.01

#: Types whose reference is decoded without a cache, since with one Transformers does not compute what the model says, and why.
UNCACHED: Final[Mapping[str, str]] = {
    "xlm": "with one, since 5.24, a mask token takes the place of each generated token, which is never read",
}

_PROMPT_SEEDS: Final = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedyReference:
    """Greedy tokens of some prompts, the logits they were chosen from, and how clear the choices were.

    `logits` has one `[steps, vocabulary]` tensor a prompt: row i is what token i was chosen from. `margin` is the smallest
    distance between the best and the second best logit over all steps, in standard deviations of the logits.
    """

    prompts: list[list[int]]
    tokens: list[list[int]]
    logits: list[torch.Tensor]
    margin: float


def reference_greedy(module: torch.nn.Module, prompts: Sequence[Sequence[int]], steps: int = STEPS) -> list[list[int]]:
    """The next `steps` tokens of each prompt: greedy, cached, each prompt alone, never stopped by an end token.

    Only types in `UNCACHED` are decoded without a cache.
    """
    return [_generate(module, prompt, steps)[0] for prompt in prompts]


def _cached(module: Any) -> bool:
    return module.config.model_type not in UNCACHED


def reference_logits(
    module: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    cached: bool = True,
) -> list[torch.Tensor]:
    """Logits `[len(continuation), vocabulary]` of each step when the model is fed the given continuation.

    Row i belongs to the prompt followed by the first i tokens of the continuation: it predicts token i. Each family keeps
    its own cache and positions, since the steps are those of `generate`; `cached=False` runs the whole sequence each step.
    """
    return [
        _generate(module, prompt, len(continuation), forced=continuation, cached=cached)[1]
        for prompt, continuation in zip(prompts, continuations, strict=True)
    ]


def reference_embedding(
    module: torch.nn.Module, prompts: Sequence[Sequence[int]], *, width: int = 0
) -> list[torch.Tensor]:
    """The last hidden state `[len(prompt), hidden]` of each prompt alone, padded on the right up to `width` tokens."""
    import torch

    embeddings = []
    for prompt in prompts:
        ids = torch.tensor([padded(module, prompt, width)])
        mask = (torch.arange(ids.shape[1]) < len(prompt)).long()[None]
        with torch.no_grad():
            hidden = module(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        embeddings.append(hidden[: len(prompt)])
    return embeddings


def padded(module: torch.nn.Module, prompt: Sequence[int], width: int) -> list[int]:
    """The prompt with padding tokens on the right up to `width` tokens."""
    pad = getattr(module.config, "pad_token_id", None) or 0
    return [*prompt, *[pad] * (width - len(prompt))]


def clear_reference(module: torch.nn.Module, steps: int = STEPS) -> GreedyReference:
    """The greedy tokens of the first tiny prompts at which no choice is a near tie, else of the clearest ones."""
    best: GreedyReference | None = None
    for seed in range(_PROMPT_SEEDS):
        prompts = tiny_prompts(seed)
        decoded = (_generate(module, prompt, steps) for prompt in prompts)
        tokens, logits = map(list, zip(*decoded, strict=True))
        margin = min(_margin(rows) for rows in logits)
        if best is None or margin > best.margin:
            best = GreedyReference(prompts=prompts, tokens=tokens, logits=logits, margin=margin)
        if margin >= CLEAR_MARGIN:
            break
    assert best is not None  # noqa: S101  (the loop runs at least once)
    return best


def _margin(logits: torch.Tensor) -> float:
    best = logits.topk(2).values
    return float(((best[:, 0] - best[:, 1]) / logits.std(dim=-1)).min())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """What `generate` of Transformers made of one prompt.

    `logits` and `scores` are ``[steps, vocabulary]``: row i is what token i was chosen from, before and after the logits
    processors.
    """

    tokens: list[int]
    logits: torch.Tensor
    scores: torch.Tensor


def decode_alone(
    module: Any,
    prompt: Sequence[int],
    steps: int,
    *,
    settings: Mapping[str, Any] | None = None,
    processors: Sequence[Any] = (),
    criteria: Sequence[Any] = (),
    cached: bool | None = None,
) -> Decoded:
    """Greedy decoding of one prompt with Transformers: `steps` tokens, or fewer where the settings or criteria end it.

    Args:
        module: a model that generates text.
        prompt: token ids; the source of an encoder-decoder.
        steps: new tokens at most.
        settings: fields of a generation config. The family's own defaults are left out: end tokens, forced tokens, penalties.
        processors: further logits processors.
        criteria: stopping criteria.
        cached: with a cache; `None` means unless the type stands in `UNCACHED`.
    """
    import torch
    import transformers

    from qeff_framework.seam.rotary import forget_texts

    generation_config: Any = transformers.GenerationConfig  # untyped
    # Otherwise the result would depend on what the module has read before.
    forget_texts(module)
    ids = torch.tensor([list(prompt)])
    # What an encoder-decoder generates begins with the decoder's start token instead of the prompt.
    given = 1 if module.config.is_encoder_decoder else len(prompt)
    with plain_generation(module), torch.no_grad():
        result = module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=generation_config(
                **dict(settings or {}),
                max_new_tokens=steps,
                do_sample=False,
                use_cache=_cached(module) if cached is None else cached,
                output_logits=True,
                output_scores=True,
                return_dict_in_generate=True,
            ),
            logits_processor=list(processors),
            stopping_criteria=list(criteria),
        )
    return Decoded(
        tokens=result.sequences[0, given:].tolist(),
        logits=torch.cat(result.logits).float(),
        scores=torch.cat(result.scores).float(),
    )


def _generate(
    module: Any, prompt: Sequence[int], steps: int, *, forced: Sequence[int] | None = None, cached: bool | None = None
) -> tuple[list[int], torch.Tensor]:
    """Tokens and raw logits; with `forced`, these tokens are taken whatever the logits are."""
    import torch

    given = 1 if module.config.is_encoder_decoder else len(prompt)

    def force(sequence: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if forced is None:
            return scores
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, forced[sequence.shape[1] - given]] = 0.0
        return chosen

    decoded = decode_alone(module, prompt, steps, processors=[force], cached=cached)
    return decoded.tokens, decoded.logits


@contextlib.contextmanager
def plain_generation(module: Any) -> Iterator[None]:
    """Hides the end tokens, forced tokens and penalties of the family's defaults, which `generate` would merge in."""
    import transformers

    generation_config: Any = transformers.GenerationConfig
    start = getattr(module.config, "decoder_start_token_id", None)
    saved, module.generation_config = module.generation_config, generation_config(decoder_start_token_id=start)
    try:
        yield
    finally:
        module.generation_config = saved


# --- what makes a reference worth comparing with ----------------------------------------------------------------------


def check_causal_lm(model_type: str, task: str = "causal-lm") -> dict[str, Any]:
    """Decodes two prompts of a tiny model that generates text and measures the result.

    `distinct` is the number of different tokens, `margin` that of the reference, and `cache_gap` the largest difference
    between the logits of cached steps and of whole sequences: where Transformers disagrees with itself, only the path of the
    reference, as a rule the cached one, can be asked of an export.

    Raises:
        UnsupportedModelError: the tokens do not depend on the input, so that any export would pass.
    """
    module = tiny_model(model_type, task)
    reference = clear_reference(module)
    distinct = len({token for row in reference.tokens for token in row})
    if distinct < 3 or reference.tokens[0] == reference.tokens[1]:
        raise UnsupportedModelError(
            f"The tiny {model_type!r} is degenerate: two prompts give {reference.tokens}. Adjust its sizes or weights."
        )
    return {
        "class": type(module).__name__,
        "parameters": _parameters(module),
        "distinct": distinct,
        "margin": round(reference.margin, 5),
        **_cache_gap(module, reference),
    }


def check_seq2seq_lm(model_type: str) -> dict[str, Any]:
    """`check_causal_lm` of an encoder-decoder."""
    return check_causal_lm(model_type, "seq2seq-lm")


def check_encoder(model_type: str) -> dict[str, Any]:
    """Encodes two prompts with a tiny model; `reach` is how much the first token moves the rows of the others.

    Raises:
        UnsupportedModelError: it moves none of them: the attention of this model does nothing.
    """
    module = tiny_model(model_type, "encoder")
    prompts = tiny_prompts()
    changed = [[prompt[0] ^ 1, *prompt[1:]] for prompt in prompts]
    before, after = reference_embedding(module, prompts), reference_embedding(module, changed)
    reach = min(float((a[1:] - b[1:]).abs().max()) for a, b in zip(before, after, strict=True))
    if not reach > 1e-4:
        raise UnsupportedModelError(
            f"The tiny {model_type!r} does not mix its tokens: changing the first one moves the other rows by {reach:.1e}. "
            "Transformers may replace a missing kernel by zeros; look at its modelling code."
        )
    return {
        "class": type(module).__name__,
        "parameters": _parameters(module),
        "shape": list(before[0].shape),
        "reach": round(reach, 5),
    }


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _cache_gap(module: torch.nn.Module, reference: GreedyReference) -> dict[str, Any]:
    try:
        others = reference_logits(module, reference.prompts, reference.tokens, cached=not _cached(module))
    except Exception as error:  # noqa: BLE001  (code of any family; the path of the reference is the one that counts)
        return {"cache_gap": None, "uncached": first_line(error)}
    gaps = (float((a - b).abs().max()) for a, b in zip(others, reference.logits, strict=True))
    return {"cache_gap": round(max(gaps), 6)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a JSON line a type; 0 when every type has a reference, 1 when one has none, 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m qeff_framework.coverage.reference",
        description="Decode tiny random models of every model type with Transformers alone; one JSON line a type.",
    )
    parser.add_argument("model_types", nargs="*", metavar="TYPE", help="model types (default: all of the task)")
    parser.add_argument("--task", choices=covered_tasks(), default="causal-lm")
    parser.add_argument("--time-limit", type=float, default=120.0, metavar="SECONDS", help="for each type")
    options = parser.parse_args(arguments)
    check = coverage_of(options.task).check_reference
    failed = False
    for report in sweep(check, options.model_types or types_of(options.task), time_limit=options.time_limit):
        sys.stdout.write(report.to_json() + "\n")
        sys.stdout.flush()
        failed |= not report.ok
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
