"""Random configurations of a family: each mechanism that its configuration class has a field for takes other values.

The fields, their types and the family's defaults come from the class; `sizes` and the rules here say what a *name* means, as
everywhere in the coverage. No rule knows a family: values that Transformers rejects are found out by trying, and discarded.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from hypothesis import assume
from hypothesis import strategies as st

from qeff_framework.contracts import Task
from qeff_framework.coverage import sizes
from qeff_framework.coverage.fuzz.examples import ModelConfig
from qeff_framework.coverage.tiny import DEPTH_FIELDS, declared_fields, is_pattern, tiny_config

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

#: Draws the fields of one mechanism, given those that are changed already.
_Draw = Callable[["DrawFn", Mapping[str, Any]], Mapping[str, Any]]

_MOST_CHANGES: Final = 5
_SEEDS: Final = 4

#: Fields by which an inference without images and sound does not change, those of another task, and token ids.
_UNTOUCHED: Final = re.compile(
    "dropout|pdrop|drop_path|layerdrop|jitter|initializ|^init_|_std$|loss|coef|token|vocab|use_cache|^is_|add_cross"
    "|gradient|pretraining|^output_|summary|classifier|problem|torch|mtp|num_labels|image|vision|audio|kernels?$|^causal$"
    "|reorder_and_upcast|encoder_decoder|n_positions|n_ctx|max_\\w*position|max_seq_len|context_length"
)
_HIDDEN: Final = ("hidden_size", "d_model", "n_embd", "emb_dim", "dim", "embed_dim")
_HEADS: Final = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
_KV_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "kv_n_heads")
_HEAD_DIMS: Final = ("head_dim", "kv_channels", "dim_head", "attention_head_size", "d_kv")
_MULTI_HEADS: Final = ("decoder_attention_heads", "encoder_attention_heads")
_ENCODER_DEPTHS: Final = ("encoder_layers", "num_encoder_layers", "num_layers")
_DECODER_DEPTHS: Final = ("decoder_layers", "num_decoder_layers")
_DEPTHS: Final = frozenset({*DEPTH_FIELDS, *_ENCODER_DEPTHS, *_DECODER_DEPTHS})
_GEOMETRY: Final = frozenset({*_HIDDEN, *_HEADS, *_KV_HEADS, *_HEAD_DIMS, *_MULTI_HEADS})

_ACTIVATIONS: Final = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "tanh")
_EPSILONS: Final = (1e-6, 1e-5, 1e-3, 1e-1)
_SOFTCAPS: Final = (2.0, 10.0, 50.0)
#: Not 1: the cache of Transformers keeps everything then, where its mask shows one token (`keys[:, :, -window + 1 :]`).
_WINDOWS: Final = (2, 3, 8, 64)
_VOCABULARIES: Final = (128, 131, 160)
_ORIGINAL_POSITIONS: Final = (8, 16, 64)
_FACTORS: Final = (1.0, 1.5, 4.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Family:
    """The tiny configuration of a type, or the text configuration inside it."""

    task: Task
    model_type: str
    #: Name of the field that holds the text configuration; empty when that is the configuration itself.
    path: str
    values: Mapping[str, Any]
    declared: Mapping[str, Any]
    hints: Mapping[str, Any]

    @classmethod
    def of(cls, task: Task, model_type: str) -> _Family:
        whole: Any = tiny_config(model_type, task)
        config = whole.get_text_config(decoder=True) if task == "causal-lm" else whole
        path = next((name for name, value in vars(whole).items() if value is config), "")
        hints = {field.name: field.type for field in dataclasses.fields(type(config))}
        return cls(
            task=task,
            model_type=model_type,
            path=path,
            values=vars(config),
            declared=declared_fields(type(config)),
            hints=hints,
        )

    def nested(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        return {self.path: dict(fields)} if self.path else dict(fields)

    def first(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in self.declared and isinstance(self.values.get(name), int)), None)


def mechanisms(task: Task, model_type: str) -> list[str]:
    """The names of what can be changed in a family's configuration: ``heads``, ``layers``, ``rope``, or a field."""
    return list(_mechanisms(_Family.of(task, model_type)))


def model_configs(task: Task, model_type: str) -> SearchStrategy[ModelConfig]:
    """Configurations of a family with one to five changed mechanisms: its tiny configuration itself is what `parity` checks.

    Raises:
        UnsupportedModelError: Transformers has no such model type.
    """
    family = _Family.of(task, model_type)
    return _model_configs(family, _mechanisms(family))


@st.composite
def _model_configs(draw: DrawFn, family: _Family, known: Mapping[str, _Draw]) -> ModelConfig:
    names = (
        draw(st.lists(st.sampled_from(list(known)), unique=True, min_size=1, max_size=_MOST_CHANGES)) if known else []
    )
    changes: dict[str, Mapping[str, Any]] = {}
    flat: dict[str, Any] = {}
    # In the order of the table: rotary settings depend on the heads.
    for name in (name for name in known if name in names):
        fields = known[name](draw, flat)
        flat |= fields
        changes[name] = family.nested(fields)
    assume(_experts_suffice({**family.values, **flat}))
    seed = draw(st.integers(0, _SEEDS - 1))
    return ModelConfig(task=family.task, model_type=family.model_type, seed=seed, changes=changes)


def _experts_suffice(fields: Mapping[str, Any]) -> bool:
    """Whether a token's groups of experts hold as many as it chooses. Beyond them all score alike, and `topk` takes any."""
    names = ("n_routed_experts", "n_group", "topk_group", "num_experts_per_tok")
    experts, groups, chosen_groups, chosen = (fields.get(name) for name in names)
    if not (experts and groups and chosen_groups and chosen):
        return True
    return bool(chosen <= experts // groups * chosen_groups)


def _mechanisms(family: _Family) -> dict[str, _Draw]:
    found: dict[str, _Draw] = {}
    if heads := _heads(family):
        found["heads"] = heads
    if layers := _layers(family):
        found["layers"] = layers
    for name, default in family.declared.items():
        if name in _GEOMETRY or name in _DEPTHS or _UNTOUCHED.search(name):
            continue
        if (values := _values(family, name, default)) is not None:
            found[name] = _one(name, values)
    if "vocab_size" in family.declared:
        found["vocab_size"] = _one("vocab_size", st.sampled_from(_VOCABULARIES))
    if isinstance(family.values.get("tie_word_embeddings"), bool) and not family.path:
        found["tie_word_embeddings"] = _one("tie_word_embeddings", st.just(not family.values["tie_word_embeddings"]))
    if isinstance(family.values.get("rope_parameters"), dict) and family.values["rope_parameters"]:
        found["rope"] = _rope(family)
    return found


def _one(name: str, values: SearchStrategy[Any]) -> _Draw:
    return lambda draw, _: {name: draw(values)}


# --- single fields ----------------------------------------------------------------------------------------------------


def _values(family: _Family, name: str, default: Any) -> SearchStrategy[Any] | None:
    """Other values of a field, or `None` where its name and type say nothing about which there may be."""
    value, hint = family.values.get(name, default), family.hints.get(name)
    if isinstance(value, bool):
        return st.just(not value)
    if choices := [choice for choice in _literals(hint) if choice != value]:
        return st.sampled_from(choices)
    if isinstance(value, str):
        return _activations(value)
    if "eps" in name.split("_") or "epsilon" in name:
        return st.sampled_from(_EPSILONS)
    if "softcap" in name:
        return st.none() | st.sampled_from(_SOFTCAPS)
    if "window" in name and (isinstance(value, int) or (value is None and int in typing.get_args(hint))):
        return st.sampled_from(_WINDOWS)
    if isinstance(value, float) and value:
        return st.sampled_from([0.25, 0.5, 1.0] if "partial" in name else [value / 2, value * 2])
    if isinstance(value, int) and name in sizes.SIZES:
        return st.sampled_from(sorted({max(1, value // 2), value + 1, value * 2}))
    return None


def _literals(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) is typing.Literal:
        yield from typing.get_args(hint)
    else:
        for part in typing.get_args(hint):
            yield from _literals(part)


def _activations(value: str) -> SearchStrategy[str] | None:
    from transformers.activations import ACT2FN

    if value not in ACT2FN:
        return None
    return st.sampled_from([name for name in _ACTIVATIONS if name in ACT2FN and name != value])


# --- fields that belong together --------------------------------------------------------------------------------------


def _heads(family: _Family) -> _Draw | None:
    """Width, heads, key heads and the size of a head: heads divide the width, key heads the heads."""
    hidden, heads = family.first(_HIDDEN), family.first(_HEADS)
    if hidden is None or heads is None:
        return None
    kv_heads, head_dim = family.first(_KV_HEADS), family.first(_HEAD_DIMS)
    latent = "kv_lora_rank" in family.declared
    several = [name for name in _MULTI_HEADS if name in family.declared]

    def draw_heads(draw: DrawFn, _: Mapping[str, Any]) -> Mapping[str, Any]:
        count = draw(st.sampled_from([4, 2, 6, 3, 1]))
        size = draw(st.sampled_from([8, 16, 24, 12, 4]))
        fields: dict[str, Any] = {heads: count, hidden: count * size}
        if kv_heads is not None:
            divisors = [number for number in range(1, count + 1) if count % number == 0]
            fields[kv_heads] = count if latent else draw(st.sampled_from(divisors))
        if head_dim is not None and not latent:
            # Where the size of a head is a field, heads need not split the width.
            fields[head_dim] = size
            fields[hidden] = count * draw(st.sampled_from([size, 12, 16]))
        return fields | dict.fromkeys(several, count)

    return draw_heads


def _layers(family: _Family) -> _Draw | None:
    """The number of layers, and for each the kinds that the family's tiny configuration has."""
    if decoder := [name for name in _DECODER_DEPTHS if name in family.declared]:
        return _two_depths([name for name in _ENCODER_DEPTHS if name in family.declared], decoder)
    depth_fields = [name for name in DEPTH_FIELDS if name in family.declared]
    depth = next((family.values[name] for name in depth_fields if isinstance(family.values.get(name), int)), None)
    if depth is None:
        return None
    patterns = {name: value for name, value in family.values.items() if is_pattern(value, depth)}
    kinds = {name: sorted(set(value)) for name, value in patterns.items() if name in family.declared}

    def draw_layers(draw: DrawFn, _: Mapping[str, Any]) -> Mapping[str, Any]:
        count = draw(st.sampled_from([2, 3, 4, 1]))
        fields: dict[str, Any] = dict.fromkeys(depth_fields, count)
        for name, choices in kinds.items():
            fields[name] = draw(st.lists(st.sampled_from(choices), min_size=count, max_size=count))
        return fields

    return draw_layers


def _two_depths(encoder: list[str], decoder: list[str]) -> _Draw:
    """Layers of encoder and decoder. The cache of Transformers has as many as the encoder, so that the decoder has no more."""

    def draw_depths(draw: DrawFn, _: Mapping[str, Any]) -> Mapping[str, Any]:
        count = draw(st.sampled_from([2, 3, 4, 1]))
        return {**dict.fromkeys(encoder, count), **dict.fromkeys(decoder, draw(st.integers(1, count)))}

    return draw_depths


def _rope(family: _Family) -> _Draw:
    given: Mapping[str, Any] = family.values["rope_parameters"]
    nested = {name: value for name, value in given.items() if isinstance(value, dict)}

    def draw_rope(draw: DrawFn, changed: Mapping[str, Any]) -> Mapping[str, Any]:
        current = {**family.values, **changed}
        fields: dict[str, Any] = {}
        if nested:
            rope: dict[str, Any] = dict(given)
            for name in draw(st.lists(st.sampled_from(list(nested)), unique=True, min_size=1)):
                rope[name] = draw(_rope_parameters(nested[name], current))
            kinds = list(rope.values())
        else:
            rope = draw(_rope_parameters(given, current))
            kinds = [rope]
        fields["rope_parameters"] = rope
        originals = [
            kind["original_max_position_embeddings"]
            for kind in kinds
            if kind and len(kind) > 2 and "original_max_position_embeddings" in kind
        ]
        if originals and "original_max_position_embeddings" in family.declared:
            fields["original_max_position_embeddings"] = originals[0]
        if any(kind and kind.get("rope_type") == "dynamic" for kind in kinds):
            # The length at which the base begins to grow.
            fields["max_position_embeddings"] = draw(st.sampled_from(_ORIGINAL_POSITIONS))
        return fields

    return draw_rope


@st.composite
def _rope_parameters(draw: DrawFn, given: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings of any type; what the family's own ones have beside the type is kept."""
    kept = dict(given)
    if "partial_rotary_factor" in kept:
        kept["partial_rotary_factor"] = draw(st.sampled_from([0.25, 0.5, 1.0]))
    kept["rope_theta"] = draw(st.sampled_from([kept.get("rope_theta", 10_000.0), 100.0, 1_000_000.0]))
    kind = draw(st.sampled_from(["default", "linear", "yarn", "llama3", "longrope", "dynamic"]))
    return {**kept, "rope_type": kind, **_rope_fields(draw, kind, kept, current)}


def _rope_fields(draw: DrawFn, kind: str, kept: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    if kind == "default":
        return {}
    fields: dict[str, Any] = {"factor": draw(st.sampled_from(_FACTORS))}
    if kind in ("linear", "dynamic"):
        return fields
    fields["original_max_position_embeddings"] = draw(st.sampled_from(_ORIGINAL_POSITIONS))
    if kind == "llama3":
        return fields | {"low_freq_factor": 1.0, "high_freq_factor": draw(st.sampled_from([2.0, 4.0]))}
    if kind == "longrope":
        pairs = _rotary_size(current, kept) // 2
        # Factors that grow with the frequency's number, as in checkpoints.
        rise = draw(st.sampled_from([0.0, 0.5, 3.0]))
        fields["short_factor"] = [1.0 + rise * number / (8 * pairs) for number in range(pairs)]
        fields["long_factor"] = [1.0 + rise * number / pairs for number in range(pairs)]
        return fields
    extra = {
        "attention_factor": st.sampled_from([0.5, 1.0]),
        "beta_fast": st.sampled_from([4.0, 32.0]),
        "beta_slow": st.sampled_from([0.5, 1.0]),
        "mscale": st.sampled_from([0.7, 1.0]),
        "mscale_all_dim": st.sampled_from([0.7, 1.0]),
        "truncate": st.just(value=False),
    }
    chosen = draw(st.lists(st.sampled_from(list(extra)), unique=True, max_size=3))
    return fields | {name: draw(extra[name]) for name in chosen}


def _rotary_size(current: Mapping[str, Any], rope: Mapping[str, Any]) -> int:
    """Dimensions of a head that are rotated, by the rule of Transformers."""
    heads = next((current[name] for name in _HEADS if isinstance(current.get(name), int)), sizes.HEADS)
    hidden = next((current[name] for name in _HIDDEN if isinstance(current.get(name), int)), sizes.HIDDEN)
    size = current.get("head_dim") or hidden // heads
    return max(2, int(size * rope.get("partial_rotary_factor", 1.0)))
