"""Joins what the caller asks for with what the checkpoint recommends.

Every field of ``transformers.GenerationConfig`` has its place here: it is a setting of `GenerationSettings`, it is one of
`UNDONE`, or it has no effect on the tokens (`WITHOUT_EFFECT`).
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qeff_framework.artifacts.json_files import read_json_object
from qeff_framework.errors import InputError, OptionError
from qeff_framework.generation.settings import DEFAULTS, WARPERS, GenerationSettings, token_ids

if TYPE_CHECKING:
    from transformers import GenerationConfig

logger = logging.getLogger(__name__)

#: Transformers' default of `top_k` when samples are drawn.
_TRANSFORMERS_TOP_K = 50

_ALIASES = {"generation_len": "max_new_tokens", "eos_token_ids": "eos_token_id"}
#: Made here from other settings.
_DERIVED = ("eos_token_ids", "ignored_eos_token_ids", "limit_is_advice")
_KEYWORDS = (
    *(name for name in DEFAULTS if name not in _DERIVED),
    *("eos_token_id", "ignore_eos"),
    *_ALIASES,
)
#: Never taken from the checkpoint: whether to sample is the caller's choice, and the others leave the tokens as they are.
_CALLER_ONLY = frozenset(
    {
        *("do_sample", "seed", "ignore_eos", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
        *("presence_penalty", "frequency_penalty", "json_schema", "regex", "return_pdfs"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Undone:
    """A field that a compiled program cannot honour. A caller who asks for it gets an `InputError`."""

    reason: str
    #: Values beside `None` that do not ask for it.
    harmless: tuple[object, ...] = ()
    #: What happens when the checkpoint asks for it. ``"warn"``: another search, in place of which there is greedy decoding (or
    #: sampling). ``"refuse"``: the tokens of greedy decoding would be wrong. ``"ignore"``: the tokens are the same without it.
    in_checkpoint: Literal["warn", "refuse", "ignore"] = "warn"


_LOOKUP = "use prompt_lookup_num_tokens=..., or a compiled draft model as assistant_model=..."
_LOGITS_ONLY = "a compiled program returns logits only"

UNDONE: Mapping[str, Undone] = {
    "num_beam_groups": Undone(
        reason="beams in groups are not done, num_beams=... alone is", harmless=(1,), in_checkpoint="refuse"
    ),
    "diversity_penalty": Undone(reason="it belongs to beams in groups", harmless=(0, 0.0), in_checkpoint="ignore"),
    "constraints": Undone(reason="beam search under constraints is not done; regex=... describes an answer"),
    "force_words_ids": Undone(reason="beam search under constraints is not done; regex=... describes an answer"),
    "penalty_alpha": Undone(reason="contrastive search needs hidden states", harmless=(0, 0.0)),
    "dola_layers": Undone(reason="DoLa needs the logits of inner layers", in_checkpoint="refuse"),
    "guidance_scale": Undone(
        reason="classifier-free guidance runs the model twice per step", harmless=(1, 1.0), in_checkpoint="refuse"
    ),
    "token_healing": Undone(
        reason="trim the prompt before the call instead", harmless=(False,), in_checkpoint="refuse"
    ),
    "is_assistant": Undone(reason=_LOOKUP, harmless=(False,)),
    "assistant_early_exit": Undone(reason=_LOOKUP, in_checkpoint="ignore"),
    "use_mtp": Undone(reason=_LOOKUP, harmless=(False,), in_checkpoint="ignore"),
    "speculation_type": Undone(reason=_LOOKUP, in_checkpoint="ignore"),
    "output_attentions": Undone(reason=_LOGITS_ONLY, harmless=(False,), in_checkpoint="ignore"),
    "output_hidden_states": Undone(reason=_LOGITS_ONLY, harmless=(False,), in_checkpoint="ignore"),
    "output_scores": Undone(
        reason="collect the scores in a logits processor of your own instead", harmless=(False,), in_checkpoint="ignore"
    ),
    "output_logits": Undone(
        reason="collect the logits in a logits processor of your own instead", harmless=(False,), in_checkpoint="ignore"
    ),
}

#: Fields that cannot change a token: cache and compilation of the PyTorch model, parameters of the modes in `UNDONE`, an id that
#: the prompt already contains, bookkeeping.
WITHOUT_EFFECT = frozenset(
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

#: Arguments of Transformers' ``generate`` that are no fields of a generation config, and what to do instead.
_ARGUMENTS: Mapping[str, str] = {
    "prefix_allowed_tokens_fn": "pass a PrefixConstrainedLogitsProcessor in logits_processor=[...]",
    "assistant_model": "a draft model is for models of text alone",
    "assistant_tokenizer": "a draft model must have the tokenizer of the program; leave it out",
    "negative_prompt_ids": "classifier-free guidance runs the model twice per step",
    "negative_prompt_attention_mask": "classifier-free guidance runs the model twice per step",
    "custom_generate": "code of a checkpoint that generates drives the PyTorch model",
    "inputs_embeds": "a compiled program reads token ids",
    "decoder_input_ids": "the decoder starts with one token; choose it with decoder_start_token_id=..., the next one with "
    "forced_bos_token_id=...",
    "decoder_attention_mask": "the decoder starts with one token",
    "position_ids": "positions are counted from the start of the prompt; mark padding in attention_mask",
    "past_key_values": "the cache is the session's",
    "cache": "the cache is the session's",
}


def load_generation_defaults(directory: Path) -> dict[str, Any]:
    """Content of ``generation_config.json`` in `directory`; empty when there is none."""
    return read_json_object(directory / "generation_config.json")


def resolve_settings(
    checkpoint_defaults: Mapping[str, Any],
    generation_config: GenerationConfig | Mapping[str, Any] | None = None,
    *,
    warn: Callable[[str], None] = logger.warning,
    **overrides: Any,
) -> GenerationSettings:
    """Joins `overrides` over `generation_config` over the checkpoint's ``generation_config.json``, as Transformers does.

    - Greedy unless the caller asks for sampling: ``do_sample=True``, as a keyword or in `generation_config`. The checkpoint's
      own ``do_sample`` does not count. Without sampling, temperature and the like are not used; everything else that the
      checkpoint says (bans, penalties, forced tokens, limits, ends) holds with and without it.
    - With sampling, what the caller leaves open comes from the checkpoint, then from Transformers (``top_k=50``).
    - `None` in `generation_config` leaves a setting open; as a keyword it switches off what the checkpoint says.
    - ``max_new_tokens`` wins over ``max_length``, and ``min_new_tokens`` over ``min_length``, whoever gave them.
    - ``ignore_eos=True`` generates up to the limit, without the ends that the checkpoint would bring about there.
    - ``generation_len`` is another name for ``max_new_tokens``.

    What cannot be done is an `InputError` when the caller asks for it, or when the checkpoint's tokens would be others without
    it; other searches that the checkpoint recommends are passed to `warn`.

    Raises `OptionError` for unknown or contradictory keywords.
    """
    keywords, off = _keywords(overrides)
    from_config = _given_in(generation_config)
    _refuse({**from_config, **overrides})
    asked = {**{name: value for name, value in from_config.items() if name in _KEYWORDS}, **keywords}
    for name in off:
        asked.pop(name, None)

    sampling = asked.get("do_sample") is True
    unused = [name for name in WARPERS if name in asked] if not sampling else []
    _check_unused(unused, keywords, warn, explicit_greedy=asked.get("do_sample") is False)
    for name in unused:
        del asked[name]

    decided = {*asked, *off}
    _check_checkpoint(checkpoint_defaults, {*from_config, *overrides}, warn)
    inherited = _inherited(checkpoint_defaults, decided, sampling=sampling)
    ignore_eos = asked.pop("ignore_eos", False)
    if not isinstance(ignore_eos, bool):
        raise OptionError(f"generate: ignore_eos={ignore_eos!r} must be True or False")
    if ignore_eos:
        for name in ("forced_eos_token_id", "stop_strings", "exponential_decay_length_penalty"):
            inherited.pop(name, None)
    values: dict[str, Any] = {"top_k": _TRANSFORMERS_TOP_K} if sampling and "top_k" not in off else {}
    values |= inherited | asked
    try:
        return _settled(values, keywords, asked, warn, ignore_eos=ignore_eos)
    except OptionError as error:
        blamed = [name for name in inherited if name not in asked and _is_blamed(name, str(error))]
        if not blamed:
            raise
        raise OptionError(
            f"{error}; the checkpoint's generation config says so: correct its file, or pass {', '.join(blamed)} yourself"
        ) from error


def _is_blamed(name: str, message: str) -> bool:
    """Whether a message is about a setting, and does not just hold a longer name, or the setting as the remedy."""
    return re.search(rf"(?<!\w){name}(=(?!\.\.\.|None\b)| needs)", message) is not None


def _settled(
    values: dict[str, Any],
    keywords: Mapping[str, Any],
    asked: Mapping[str, Any],
    warn: Callable[[str], None],
    *,
    ignore_eos: bool,
) -> GenerationSettings:
    """The settings of `values`, of which the caller has `asked` for some; which ones count beside each other is decided."""
    _settle_beams(values, keywords, asked)
    eos = token_ids(values.pop("eos_token_id", None), "eos_token_id")
    values["eos_token_ids"], values["ignored_eos_token_ids"] = ((), eos) if ignore_eos else (eos, ())
    values["stop_strings"] = _strings(values.get("stop_strings"))
    _settle_lengths(values, asked, warn)
    return GenerationSettings(**values)


def _keywords(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The given keywords under their own names, and the names of those that are `None`."""
    known = {*_KEYWORDS, *UNDONE, *_ARGUMENTS, *WITHOUT_EFFECT}
    unknown = [name for name in overrides if name not in known]
    if unknown:
        raise OptionError("generate: " + "; ".join(map(_unknown, unknown)))
    keywords: dict[str, Any] = {}
    off: set[str] = set()
    for name, value in overrides.items():
        own = _ALIASES.get(name, name)
        if own not in _KEYWORDS:
            continue
        if value is None:
            off.add(own)
        elif own in keywords and keywords[own] != value:
            raise OptionError(f"generate: {name}={value!r} contradicts {own}={keywords[own]!r}; give one of the two")
        else:
            keywords[own] = _plain(value)
    return keywords, off - set(keywords)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.replace("-", "_").lower(), (*_KEYWORDS, *UNDONE), n=1, cutoff=0.6)
    return f"unknown keyword '{name}'" + (
        f", did you mean '{near[0]}'?" if near else f"; it takes {', '.join(sorted(_KEYWORDS))}"
    )


def _given_in(generation_config: GenerationConfig | Mapping[str, Any] | None) -> dict[str, Any]:
    """What a generation config sets; a field that is `None` is open."""
    if generation_config is None:
        return {}
    if isinstance(generation_config, Mapping):
        known = {*_KEYWORDS, *UNDONE, *WITHOUT_EFFECT}
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
    return {name: _plain(value) for name, value in content.items() if value is not None}


def _plain(value: Any) -> Any:
    """Arrays and tensors as lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _refuse(asked: Mapping[str, Any]) -> None:
    for name, field in UNDONE.items():
        if _asks_for(asked.get(name), field):
            raise InputError(f"{name}={asked[name]!r} cannot be done on a compiled program: {field.reason}")
    for name, remedy in _ARGUMENTS.items():
        if asked.get(name) is not None:
            raise InputError(f"{name} cannot be done on a compiled program: {remedy}")


def _asks_for(value: object, field: Undone) -> bool:
    return value is not None and not any(value is harmless or value == harmless for harmless in field.harmless)


def _check_checkpoint(checkpoint: Mapping[str, Any], decided: set[str], warn: Callable[[str], None]) -> None:
    """Looks for what the checkpoint asks for and no program can do, unless the caller has decided about it."""
    asked = [name for name, field in UNDONE.items() if name not in decided and _asks_for(checkpoint.get(name), field)]
    for name in asked:
        if UNDONE[name].in_checkpoint == "refuse":
            raise InputError(
                f"the checkpoint's generation config says {name}={checkpoint[name]!r}, which cannot be done on a compiled "
                f"program: {UNDONE[name].reason}; pass {name}=None to generate without it"
            )
    told = [name for name in asked if UNDONE[name].in_checkpoint == "warn"]
    if told:
        values = ", ".join(f"{name}={checkpoint[name]!r}" for name in told)
        reasons = "; ".join(dict.fromkeys(UNDONE[name].reason for name in told))
        silenced = ", ".join(f"{name}={(UNDONE[name].harmless or (None,))[0]!r}" for name in told)
        warn(
            f"the checkpoint's generation config asks for {values}, which is not done ({reasons}): one token is chosen at each "
            f"step instead; pass {silenced} to leave this warning out"
        )


def _check_unused(
    unused: Sequence[str], keywords: Mapping[str, Any], warn: Callable[[str], None], *, explicit_greedy: bool
) -> None:
    """Sampling parameters without sampling: a mistake as keywords, worth a warning otherwise."""
    if not unused:
        return
    as_keywords = [f"{name}={keywords[name]!r}" for name in unused if name in keywords]
    if as_keywords and not explicit_greedy:
        raise OptionError(f"generate: {', '.join(as_keywords)} has no effect on greedy decoding; add do_sample=True")
    warn(f"greedy decoding does not use {', '.join(unused)}; set do_sample=True to sample")


def _inherited(checkpoint: Mapping[str, Any], decided: set[str], *, sampling: bool) -> dict[str, Any]:
    """The checkpoint's settings that the caller has left open."""
    values = {
        name: checkpoint[name]
        for name in _KEYWORDS
        if name not in decided and name not in _CALLER_ONLY and checkpoint.get(name) is not None
    }
    if sampling:
        return values
    passed_over = sorted(name for name in WARPERS if name in values and values[name] != DEFAULTS[name])
    if checkpoint.get("do_sample") is True or passed_over:
        told = f"; {', '.join(passed_over)} are used only with it" if passed_over else ""
        logger.info("greedy decoding; the checkpoint recommends sampling: pass do_sample=True%s", told)
    return {name: value for name, value in values.items() if name not in WARPERS}


def _settle_lengths(values: dict[str, Any], asked: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    """Decides between limits in new tokens and limits of the whole length, as Transformers does."""
    for stronger, weaker in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if stronger in values and weaker in values:
            if weaker in asked and stronger not in asked:
                warn(
                    f"{weaker}={asked[weaker]} does not count beside the checkpoint's {stronger}={values[stronger]}, as in "
                    f"Transformers; give {stronger}=..., or {stronger}=None"
                )
            del values[weaker]
    most, least = values.get("max_new_tokens"), values.get("min_new_tokens")
    if isinstance(most, int) and isinstance(least, int) and least > most:
        warn(f"min_new_tokens={least} cannot be reached: the text ends at max_new_tokens={most}")
    limit = "max_new_tokens" if "max_new_tokens" in values else "max_length"
    values["limit_is_advice"] = limit in values and limit not in asked


def _settle_beams(values: dict[str, Any], keywords: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Without beams their settings are left out: as keywords they are a mistake."""
    if values.get("num_beams", 1) != 1:
        return
    unused = [name for name in ("length_penalty", "early_stopping") if name in keywords]
    if unused:
        told = ", ".join(f"{name}={keywords[name]!r}" for name in unused)
        raise OptionError(f"generate: {told} has no effect without beam search; add num_beams=4")
    for name in ("num_beams", "length_penalty", "early_stopping"):
        values.pop(name, None)
    if "num_return_sequences" not in asked:
        values.pop("num_return_sequences", None)


def _strings(value: str | Sequence[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
