"""Logits processors of Transformers as rules: the caller's own, and those whose random numbers only torch makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import InputError, OptionError
from qeff_framework.generation.history import TokenHistory
from qeff_framework.generation.rows import Row
from qeff_framework.generation.scores.rule import ScoreRule

if TYPE_CHECKING:
    from qeff_framework.generation.scores.rule import Scores


class TransformersRule:
    """Calls a processor with the row's own ids ``[1, length]`` int64 and its scores ``[1, V]`` float32."""

    def __init__(self, processor: Any, history: TokenHistory) -> None:
        self._processor = processor
        self._history = history

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        import torch

        # A copy: a processor may keep what it was given, and the next rule writes into `scores`.
        given = torch.from_numpy(scores[None].copy())
        result = self._processor(self._history.ids(row), given)
        if not isinstance(result, torch.Tensor) or result.shape != given.shape:
            returned = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
            raise InputError(
                f"a logits processor ({type(self._processor).__name__}) returned {returned} instead of a tensor of the scores' "
                f"shape {list(given.shape)}; a processor changes the scores that it is given and returns them"
            )
        scores[:] = result.detach().to("cpu", torch.float32).numpy()[0]


def watermark(config: Any, history: TokenHistory, vocab_size: int) -> ScoreRule:
    """The processor that a watermarking config, or its content, describes.

    Raises `InputError` where Transformers is not installed, and `OptionError` for a config that it does not understand.
    """
    try:
        from transformers.generation.configuration_utils import SynthIDTextWatermarkingConfig, WatermarkingConfig
    except ImportError as error:
        raise InputError(
            f"watermarking_config needs torch and transformers, which cannot be imported ({error}); install them, or pass "
            "watermarking_config=None"
        ) from error
    if isinstance(config, Mapping):
        kind: Any = SynthIDTextWatermarkingConfig if "ngram_len" in config else WatermarkingConfig
        try:
            config = kind.from_dict(dict(config))
        except TypeError as error:
            raise OptionError(f"watermarking_config: {error}") from error
    try:
        config.validate()
        return TransformersRule(config.construct_processor(vocab_size, "cpu"), history)
    except (AttributeError, ValueError) as error:
        raise OptionError(f"watermarking_config: {error}") from error
