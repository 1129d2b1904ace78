"""How tokens are chosen and when a row ends: what the caller asks for on top of what the checkpoint recommends."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import CheckpointError, InputError, OptionError

if TYPE_CHECKING:
    from transformers import GenerationConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Settings of one generation. Names and meanings are those of ``transformers.GenerationConfig``, except for `seed`.

    The defaults are greedy decoding: the most likely token, nothing else. Everything from `temperature` on acts on the
    scores through Transformers' own logits processors.
    """

    # --- when a row ends ---
    #: `None`: what fits into the context after the longest prompt.
    max_new_tokens: int | None = None
    #: Prompt and new tokens together; `max_new_tokens` wins.
    max_length: int | None = None
    #: Any of these ends a row. Empty: only the limits do.
    eos_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    #: Seconds.
    max_time: float | None = None
    #: Fills unused places of a batch; without influence on the results.
    pad_token_id: int | None = None
    #: What the decoder of an encoder-decoder starts with.
    decoder_start_token_id: int | None = None

    # --- speculation: the same tokens in fewer steps ---
    #: Draft tokens per step that are looked up in the text itself; `None`: none. See `prompt_lookup`.
    prompt_lookup_num_tokens: int | None = None
    #: Longest n-gram that is looked up.
    max_matching_ngram_size: int = 2

    # --- sampling ---
    do_sample: bool = False
    #: `None`: drawn from torch's global generator, so that ``torch.manual_seed`` governs it as in Transformers.
    seed: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0

    # --- changes to the scores, with and without sampling ---
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    min_new_tokens: int = 0
    bad_words_ids: Sequence[Sequence[int]] | None = None
    sequence_bias: Any = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_length"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"{name}={value!r} must be a whole number of at least 1 (new tokens to generate)")
        problems = [text for text in map(self._problem, _RANGES) if text]
        if problems:
            raise OptionError("generation settings: " + "; ".join(problems))

    def _problem(self, name: str) -> str | None:
        value = getattr(self, name)
        kinds, valid, rule = _RANGES[name]
        if value is None or (isinstance(value, kinds) and not isinstance(value, bool) and valid(value)):
            return None
        hint = "; for greedy decoding leave do_sample out" if name == "temperature" else ""
        return f"{name}={value!r} must be {rule}{hint}"

    @property
    def forced_eos_token_ids(self) -> tuple[int, ...]:
        """`forced_eos_token_id` as a tuple."""
        return _ids(self.forced_eos_token_id)

    @property
    def changes_scores(self) -> bool:
        """Whether the choice of a token needs Transformers' processors: for more than the most likely or a forced one."""
        return any(getattr(self, name) != _DEFAULTS[name] for name in _SCORE_FIELDS)

    def beyond(self, supported: AbstractSet[str]) -> list[str]:
        """The settings, among those that decide which token is chosen, that are asked for and not `supported`."""
        names = (*_SCORE_FIELDS, *_FORCED, *(_WARPERS if self.do_sample else ()))
        return [name for name in names if name not in supported and getattr(self, name) != _DEFAULTS[name]]


#: Field -> accepted types, predicate, rule in words. The limits are those that Transformers' own classes check later.
_RANGES: Mapping[str, tuple[Any, Any, str]] = {
    "temperature": ((int, float), lambda v: v > 0, "a number above 0"),
    "top_k": (int, lambda v: v >= 0, "a whole number of at least 0 (0: off)"),
    "top_p": ((int, float), lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
    "min_p": ((int, float), lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "top_h": ((int, float), lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
    "typical_p": ((int, float), lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
    "epsilon_cutoff": ((int, float), lambda v: 0 <= v < 1, "a number from 0 to below 1"),
    "eta_cutoff": ((int, float), lambda v: 0 <= v < 1, "a number from 0 to below 1"),
    "repetition_penalty": ((int, float), lambda v: v > 0, "a number above 0"),
    "no_repeat_ngram_size": (int, lambda v: v >= 0, "a whole number of at least 0 (0: off)"),
    "min_length": (int, lambda v: v >= 0, "a whole number of at least 0"),
    "min_new_tokens": (int, lambda v: v >= 0, "a whole number of at least 0"),
    "max_time": ((int, float), lambda v: v > 0, "a number of seconds above 0"),
    "seed": (int, lambda v: v >= 0, "a whole number of at least 0"),
    "prompt_lookup_num_tokens": (int, lambda v: v >= 1, "a whole number of at least 1"),
    "max_matching_ngram_size": (int, lambda v: v >= 1, "a whole number of at least 1"),
}

_DEFAULTS = {field.name: field.default for field in fields(GenerationSettings) if field.default is not MISSING}
_SPECULATION = ("prompt_lookup_num_tokens", "max_matching_ngram_size")
_ENDING = (
    *("max_new_tokens", "max_length", "eos_token_ids", "stop_strings", "max_time"),
    *("pad_token_id", "decoder_start_token_id"),
)
#: Only sampling uses them.
_WARPERS = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
#: They replace a choice; the scores play no part.
_FORCED = ("forced_bos_token_id", "forced_eos_token_id")
_SCORE_FIELDS = tuple(name for name in _DEFAULTS if name not in (*_ENDING, *_SPECULATION, *_WARPERS, *_FORCED, "seed"))

#: Taken from the checkpoint whatever the caller asks for.
_SPECIAL_IDS = ("eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
#: Never taken from the checkpoint: they bound the work, and the program's context does that.
_CALLER_ONLY = (
    "max_new_tokens",
    "max_length",
    "max_time",
    "stop_strings",
    "do_sample",
    "seed",
    "eos_token_ids",
    *_SPECULATION,
)

#: Sampling without a word about it keeps the 50 most likely tokens in Transformers.
_TRANSFORMERS_TOP_K = 50

_ALIASES = {"generation_len": "max_new_tokens", "eos_token_ids": "eos_token_id"}
_KEYWORDS = (
    *(name for name in _DEFAULTS if name != "eos_token_ids"),
    "eos_token_id",
    "ignore_eos",
    *_ALIASES,
)

#: Fields of a GenerationConfig that ask for something the loop cannot do, the values that do not ask, and the way out.
_CANNOT: Mapping[str, tuple[tuple[object, ...], str]] = {
    "num_beams": ((1,), "beam search needs a cache that is reordered between steps"),
    "num_beam_groups": ((1,), "beam search needs a cache that is reordered between steps"),
    "diversity_penalty": ((0, 0.0), "it belongs to beam search"),
    "constraints": ((), "constrained decoding is beam search"),
    "force_words_ids": ((), "constrained decoding is beam search"),
    "num_return_sequences": ((1,), "give the prompt several times instead"),
    "penalty_alpha": ((0, 0.0), "contrastive search needs hidden states"),
    "dola_layers": ((), "DoLa needs the logits of inner layers"),
    "assistant_early_exit": ((), "use prompt_lookup_num_tokens=..., or drive a draft model through session.run"),
    "is_assistant": ((False,), "use prompt_lookup_num_tokens=..., or drive a draft model through session.run"),
    "use_mtp": ((False,), "use prompt_lookup_num_tokens=..., or drive a draft model through session.run"),
    "speculation_type": ((), "use prompt_lookup_num_tokens=..., or drive a draft model through session.run"),
    "guidance_scale": ((1, 1.0), "classifier-free guidance runs the model twice per step"),
    "watermarking_config": ((), "pass its logits processor in logits_processor=[...] instead"),
    "token_healing": ((False,), "trim the prompt before the call instead"),
    "encoder_repetition_penalty": ((1, 1.0), "the loop gives processors the decoder's tokens only"),
    "encoder_no_repeat_ngram_size": ((0,), "the loop gives processors the decoder's tokens only"),
    "output_attentions": ((False,), "a compiled program returns logits only"),
    "output_hidden_states": ((False,), "a compiled program returns logits only"),
    "output_scores": ((False,), "collect the scores in a logits processor of your own instead"),
    "output_logits": ((False,), "collect the logits in a logits processor of your own instead"),
}

#: Fields of a GenerationConfig that cannot change a token of this loop: cache and compilation of the PyTorch model,
#: parameters of the modes above, ids that a decoder-only prompt already contains, bookkeeping.
_WITHOUT_EFFECT = frozenset(
    {
        "use_cache",
        "cache_implementation",
        "cache_config",
        "max_cache_len",
        "prefill_chunk_size",
        "compile_config",
        "disable_compile",
        "continuous_batching_config",
        "low_memory",
        "early_stopping",
        "length_penalty",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
        "assistant_ensemble_weight",
        "bos_token_id",
        "return_dict_in_generate",
        "transformers_version",
        "_from_model_config",
        "_commit_hash",
    }
)


def load_generation_defaults(directory: Path) -> dict[str, Any]:
    """Content of ``generation_config.json`` in `directory`; empty when there is none."""
    file = directory / "generation_config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a JSON object")
    return content


def resolve_settings(
    checkpoint_defaults: Mapping[str, Any],
    generation_config: GenerationConfig | Mapping[str, Any] | None = None,
    **overrides: Any,
) -> GenerationSettings:
    """Joins `overrides` over `generation_config` over the checkpoint's ``generation_config.json``.

    - Greedy unless the caller asks for sampling: ``do_sample=True``, as a keyword or in `generation_config`. The checkpoint's
      own ``do_sample`` does not count, and without sampling its scores settings (temperature, penalties) are not used.
    - With sampling, what the caller leaves open comes from the checkpoint, then from Transformers (``top_k=50``).
    - End-of-sequence, padding, start and forced ids come from the checkpoint unless given. ``ignore_eos=True`` generates up to
      the limit, without the end that the checkpoint would force there.
    - ``generation_len`` is another name for ``max_new_tokens``. `None` means: not given.

    Raises `OptionError` for unknown or contradictory keywords and `InputError` for a mode that the loop cannot do.
    """
    keywords = _keywords(overrides)
    from_config = _given_in(generation_config)
    _refuse({**from_config, **overrides})
    asked = {**{name: value for name, value in from_config.items() if name in _KEYWORDS}, **keywords}

    sampling = asked.get("do_sample") is True
    unused = [name for name in _WARPERS if name in asked] if not sampling else []
    _check_unused(unused, keywords, explicit_greedy=asked.get("do_sample") is False)
    for name in unused:
        del asked[name]

    values: dict[str, Any] = {"top_k": _TRANSFORMERS_TOP_K} if sampling else {}
    values |= _inherited(checkpoint_defaults, sampling=sampling)
    values |= asked
    eos = _ids(values.pop("eos_token_id", None))
    ignore_eos = values.pop("ignore_eos", False)
    values["eos_token_ids"] = () if ignore_eos else eos
    if ignore_eos and "forced_eos_token_id" not in asked:
        values.pop("forced_eos_token_id", None)
    values["stop_strings"] = _strings(values.get("stop_strings"))
    return GenerationSettings(**values)


def _keywords(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The given keywords under their own names."""
    unknown = [name for name in overrides if name not in _KEYWORDS and name not in _CANNOT]
    if unknown:
        raise OptionError("generate: " + "; ".join(map(_unknown, unknown)))
    keywords: dict[str, Any] = {}
    for name, value in overrides.items():
        own = _ALIASES.get(name, name)
        if value is None or own in _CANNOT:
            continue
        if own in keywords and keywords[own] != value:
            raise OptionError(f"generate: {name}={value!r} contradicts {own}={keywords[own]!r}; give one of the two")
        keywords[own] = value
    return keywords


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.replace("-", "_").lower(), (*_KEYWORDS, *_CANNOT), n=1, cutoff=0.6)
    return f"unknown keyword '{name}'" + (
        f", did you mean '{near[0]}'?" if near else f"; it takes {', '.join(sorted(_KEYWORDS))}"
    )


def _given_in(generation_config: GenerationConfig | Mapping[str, Any] | None) -> dict[str, Any]:
    """What a generation config sets; a field that is `None` is open."""
    if generation_config is None:
        return {}
    if isinstance(generation_config, Mapping):
        known = {*_KEYWORDS, *_CANNOT, *_WITHOUT_EFFECT}
        unknown = [name for name in generation_config if name not in known]
        if unknown:
            raise OptionError("generation_config: " + "; ".join(map(_unknown, unknown)))
        content = {_ALIASES.get(name, name): value for name, value in generation_config.items()}
    elif hasattr(generation_config, "to_dict"):
        # Custom attributes of a GenerationConfig object have no effect in Transformers either.
        content = generation_config.to_dict()
    else:
        raise OptionError(
            f"generation_config must be a transformers.GenerationConfig or a mapping, got {type(generation_config).__name__}"
        )
    return {name: value for name, value in content.items() if value is not None}


def _refuse(asked: Mapping[str, Any]) -> None:
    for name, (harmless, reason) in _CANNOT.items():
        value = asked.get(name)
        if value is not None and value not in harmless:
            raise InputError(f"{name}={value!r} cannot be done on a compiled program: {reason}")


def _check_unused(unused: Sequence[str], keywords: Mapping[str, Any], *, explicit_greedy: bool) -> None:
    """Sampling parameters without sampling: a mistake as keywords, worth a warning otherwise."""
    if not unused:
        return
    as_keywords = [f"{name}={keywords[name]!r}" for name in unused if name in keywords]
    if as_keywords and not explicit_greedy:
        raise OptionError(f"generate: {', '.join(as_keywords)} has no effect on greedy decoding; add do_sample=True")
    logger.warning("greedy decoding does not use %s; set do_sample=True to sample", ", ".join(unused))


def _inherited(checkpoint: Mapping[str, Any], *, sampling: bool) -> dict[str, Any]:
    names = [name for name in _KEYWORDS if name in checkpoint and name not in _CALLER_ONLY]
    values = {name: checkpoint[name] for name in names if checkpoint[name] is not None}
    if sampling:
        return values
    passed_over = sorted(name for name in values if name not in _SPECIAL_IDS and values[name] != _DEFAULTS.get(name))
    if passed_over:
        logger.info(
            "greedy decoding: the checkpoint's %s are used only with do_sample=True or when given",
            ", ".join(passed_over),
        )
    return {name: value for name, value in values.items() if name in _SPECIAL_IDS}


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(int(item) for item in value)


def _strings(value: str | Sequence[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
