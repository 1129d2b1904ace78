"""From what users ask for (`prefill_seq_len`, `ctx_len`, ...) to the specializations that a backend compiles.

Each task has a frozen dataclass of its own, checked like a backend's options. Names and defaults are those that users
of the Qualcomm stack know.
"""

from __future__ import annotations

from dataclasses import dataclass

from qeff_framework.contracts import Specialization
from qeff_framework.options import option


@dataclass(frozen=True, kw_only=True)
class CausalLMShapes:
    """Sizes of a causal language model's programs: one for the prompt, one for each further token."""

    prefill_seq_len: int = option(32, "prompt tokens per prefill step; longer prompts take several", minimum=1)
    ctx_len: int = option(128, "positions of the KV cache: prompt and generated tokens together", minimum=1)
    batch_size: int = option(1, "prompts that are run together", minimum=1)
    full_batch_size: int | None = option(None, "slots of continuous batching", minimum=1)
    kv_cache_batch_size: int | None = option(None, "KV cache slots, full_batch_size or more", minimum=1)
    num_speculative_tokens: int | None = option(None, "draft tokens checked per decode step", minimum=1)

    def __post_init__(self) -> None:
        """Refuses sizes that contradict each other."""
        if self.prefill_seq_len > self.ctx_len:
            raise ValueError(
                f"prefill_seq_len={self.prefill_seq_len} is greater than ctx_len={self.ctx_len}: a prefill step cannot hold "
                "more tokens than the KV cache; raise ctx_len or lower prefill_seq_len"
            )
        if self.full_batch_size is None and self.kv_cache_batch_size is not None:
            raise ValueError("kv_cache_batch_size needs full_batch_size: it counts the slots of continuous batching")

    def specializations(self) -> tuple[Specialization, ...]:
        """Prefill and decode over the same cache; a single one when the prefill takes one token at a time."""
        shared = {"batch_size": self.batch_size, "ctx_len": self.ctx_len}
        decode = Specialization(name="decode", dims={**shared, "seq_len": 1})
        if self.prefill_seq_len == 1:
            return (decode,)
        return (Specialization(name="prefill", dims={**shared, "seq_len": self.prefill_seq_len}), decode)


@dataclass(frozen=True, kw_only=True)
class EncoderShapes:
    """Sizes of an encoder's programs: one for each sequence length."""

    seq_len: int | tuple[int, ...] = option(128, "tokens per input; several lengths give one program each")
    batch_size: int = option(1, "inputs that are run together", minimum=1)

    def __post_init__(self) -> None:
        """Refuses empty or senseless lengths."""
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"seq_len={self.seq_len!r} must be one or more lengths of at least 1")

    @property
    def lengths(self) -> tuple[int, ...]:
        """The compiled lengths, ascending, each once."""
        return (self.seq_len,) if isinstance(self.seq_len, int) else tuple(sorted(set(self.seq_len)))

    def specializations(self) -> tuple[Specialization, ...]:
        """One per length."""
        return tuple(
            Specialization(name=f"encode_{length}", dims={"batch_size": self.batch_size, "seq_len": length})
            for length in self.lengths
        )
