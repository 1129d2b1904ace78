"""What a generation returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qeff_framework.generation.rows import FinishReason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class PerfMetrics:
    """Times in seconds, rates in tokens per second over all rows together."""

    #: From the start to the first token of every row; with continuous batching, the time of all prefill steps.
    prefill_time: float
    #: Tokens of the decode steps (all but the first of each row) per second of decoding; 0 without decode steps.
    decode_perf: float
    #: All generated tokens per second of `total_time`.
    total_perf: float
    total_time: float
    decode_steps: int
    #: From the start to the first token of all.
    time_to_first_token: float
    #: What the session says about its speed (``info["note"]``), e.g. that a simulator's is not the device's.
    note: str = ""
    #: Tokens that prompt lookup has proposed, and those of them that became output with another token behind them in the same
    #: step: each of these spares a decode step of its row.
    drafts_proposed: int = 0
    drafts_accepted: int = 0

    def __str__(self) -> str:
        return (
            f"time to first token {self.time_to_first_token:.3f} s, decode {self.decode_perf:.1f} tokens/s "
            f"({self.decode_steps} steps{self._drafts}), total {self.total_perf:.1f} tokens/s in {self.total_time:.3f} s"
            f"{f'; {self.note}' if self.note else ''}"
        )

    @property
    def _drafts(self) -> str:
        if not self.drafts_proposed:
            return ""
        return f", {self.drafts_accepted} of {self.drafts_proposed} draft tokens accepted"


@dataclass(frozen=True, kw_only=True)
class GenerationOutput:
    """The result of `TextGenerator.generate`: lists have one entry for each prompt, in the given order."""

    #: Rows that the program computes at once; prompts may be fewer, and with continuous batching more.
    batch_size: int
    #: The prompts as text; decoded when they were given as token ids, empty without a tokenizer.
    prompts: list[str]
    prompt_lengths: list[int]
    #: New tokens only, without padding. The end-of-sequence token is included, as in Transformers.
    generated_ids: list[list[int]]
    #: Text of `generated_ids` without special tokens; empty without a tokenizer.
    generated_texts: list[str]
    finish_reasons: list[FinishReason]
    perf_metrics: PerfMetrics
    #: Of ``return_pdfs=True``: float32 ``[new tokens, V]`` for each prompt, the probabilities that each token was chosen by. They
    #: are those behind masks, penalties, temperature, top-k, top-p and min-p; of greedy decoding at the temperature 1.
    probs: list[NDArray[np.float32]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        for row, ids in enumerate(self.generated_ids):
            reason = self.finish_reasons[row]
            lines.append(f"[{row}] {self.prompt_lengths[row]} prompt tokens, {len(ids)} new tokens, ended by {reason}")
            if self.generated_texts:
                lines += [f"    prompt: {self.prompts[row]!r}", f"    output: {self.generated_texts[row]!r}"]
        return "\n".join([*lines, str(self.perf_metrics)])
