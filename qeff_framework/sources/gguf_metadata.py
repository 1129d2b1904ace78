"""What the header of a GGUF file says about the model's arithmetic, put into the config that Transformers makes of it.

Transformers reads the sizes and leaves the rest of the header: the scaling of rotary positions that Llama 3.1 and the larger
Gemma 3 were trained with, windows, soft caps, scales. A model without them loads and writes other text. Each key is compared with
the config here: what the config has a field for is set, what cannot be carried is refused.

The keys are those of the specification of GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and of the constants
of the gguf package; what a key means where the specification is silent is what llama.cpp computes.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qeff_framework.errors import CheckpointError, UnsupportedModelError
from qeff_framework.sources.gguf_header import GGUFHeader, GGUFValue

#: Factors of the wavelengths of rotary positions, one for each pair of numbers of a head: Llama 3.1, LongRoPE.
ROPE_FREQS, ROPE_LONG, ROPE_SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
#: Tensors that are no weights of a module. `attn_rot_embd` are the frequencies themselves, which old files have.
_NO_WEIGHTS = (ROPE_FREQS, ROPE_LONG, ROPE_SHORT, "blk.*.attn_rot_embd.*")

#: What the shapes of the tensors say as well, or what no number is computed from.
_WITHOUT_EFFECT = (
    "context_length",
    "vocab_size",
    "embedding_length",
    "block_count",
    "decoder_block_count",
    "feed_forward_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "embedding_length_per_layer_input",
    "attention.relative_buckets_count",
    "decoder_start_token_id",
    "pooling_type",
    "shortconv.l_cache",
    "ssm.*",
    "tensor_data_layout",
    "rope.scaling.finetuned",
    # A layer that drafts tokens, which no model of Transformers runs.
    "nextn_predict_layers",
)
#: Rules that split text as GPT-2 does, which is what Transformers does where it has no rule; as in llama.cpp.
_JINA = frozenset({"jina-es", "jina-de", "jina-v2-es", "jina-v2-de"})
_GPT2_SPLITS = _JINA | {"default", "gpt-2", "phi-2", "mpt", "olmo", "gigachat", "a.x-4.0", "mellum", "modern-bert"}
#: Values of ``pooling_type``, as the gguf package numbers them. 4 ranks pairs of texts by a head.
_POOLINGS = {0: None, 1: "mean", 2: "cls", 3: "lasttoken"}
_GATES = {0: "none", 1: "softmax", 2: "sigmoid"}
#: Layers of the largest models of Gemma 2 and 3, whose attention is not scaled by the size of a head.
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}


@dataclass(frozen=True)
class _Field:
    """A key that a field of the config has as well, under one of several names."""

    names: tuple[str, ...]
    #: What is said where the config has no such field.
    absent: tuple[Any, ...] = ()
    #: Whether the config may be changed; otherwise another number is of another model.
    is_set: bool = True


_FIELDS: Mapping[str, _Field] = {
    # 0 where there is no attention, as in Mamba.
    "attention.head_count": _Field(("num_attention_heads",), absent=(0,), is_set=False),
    "attention.head_count_kv": _Field(("num_key_value_heads", "num_attention_heads"), absent=(0,), is_set=False),
    "attention.layer_norm_rms_epsilon": _Field(("rms_norm_eps", "norm_eps", "layer_norm_epsilon", "layer_norm_eps")),
    "attention.layer_norm_epsilon": _Field(("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")),
    "attention.sliding_window": _Field(("sliding_window",), absent=(0,)),
    "attention.shared_kv_layers": _Field(("num_kv_shared_layers",), absent=(0,), is_set=False),
    "attention.scale": _Field(("attention_multiplier",), absent=(0.0,)),
    "attention.clamp_kqv": _Field(("clip_qkv",), absent=(0.0,)),
    "attention.max_alibi_bias": _Field((), absent=(0.0,)),
    "attention.causal": _Field((), absent=(True,)),
    "attn_logit_softcapping": _Field(("attn_logit_softcapping",), absent=(0.0,)),
    "final_logit_softcapping": _Field(("final_logit_softcapping",), absent=(0.0,)),
    "router_logit_softcapping": _Field(("router_logit_softcapping",), absent=(0.0,)),
    "logit_scale": _Field(("logit_scale",), absent=(0.0, 1.0)),
    "residual_scale": _Field(("residual_multiplier",), absent=(0.0, 1.0)),
    "embedding_scale": _Field(("embedding_multiplier",), absent=(0.0, 1.0)),
    "use_parallel_residual": _Field(("use_parallel_residual", "parallel_attn"), absent=(False,)),
    "expert_used_count": _Field(("num_experts_per_tok", "top_k_experts"), absent=(0,)),
    "expert_shared_count": _Field(("n_shared_experts", "num_shared_experts"), absent=(0,), is_set=False),
    "expert_group_count": _Field(("n_group",), absent=(0, 1)),
    "expert_group_used_count": _Field(("topk_group",), absent=(0, 1)),
    "expert_weights_norm": _Field(("norm_topk_prob",), absent=()),
    "expert_weights_scale": _Field(("routed_scaling_factor",), absent=(0.0, 1.0)),
    "leading_dense_block_count": _Field(("first_k_dense_replace",), absent=(0,)),
    # FalconMamba, whose files call themselves Mamba.
    "ssm.dt_b_c_rms": _Field((), absent=(False,)),
    "full_attention_interval": _Field(("full_attention_interval",), is_set=False),
}


#: Fields that a config has no value in where the header says 0.
_OFF_WITHOUT_VALUE = frozenset(
    {"sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping", "clip_qkv"}
)


def stated_pooling(file: Path) -> str | None:
    """The pooling that a file names, by one of `contracts.POOLINGS`; `None` where it names none.

    Raises:
        UnsupportedModelError: it names one that is none of them.
    """
    values = GGUFHeader.of(file).values
    architecture = _plain(values["general.architecture"])
    key = f"{architecture}.pooling_type"
    kind = _plain(values[key]) if key in values else 0
    if kind not in _POOLINGS:
        raise UnsupportedModelError(
            f"{file.name} says {key} = {kind}, which is no way of making embeddings that is read here (4 stands for a reranker): "
            "give pooling=, one of the names that the class documents, or None for the hidden states"
        )
    return _POOLINGS[kind]


def complete_config(config: Any, file: Path, *, given: Iterable[str] = ()) -> None:
    """Puts into a config of Transformers what the header of a GGUF file says and the loader has left out.

    Args:
        config: what Transformers has made of `file`; changed in place.
        file: the GGUF file.
        given: fields that the user has set, which are left alone.

    Raises:
        CheckpointError: the file is a part of a split one or holds no model, or says something that the config cannot carry.
            Names every key.
    """
    header = GGUFHeader.of(file)
    _refuse_parts(header, file)
    found = _Comparison(config, header, file, frozenset(given))
    try:
        found.compare()
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"the metadata of {file} is damaged: {error}; download it again") from error
    if found.problems:
        raise CheckpointError(
            f"{file.name} cannot be computed as it says: {'; '.join(found.problems)}; give the model as safetensors, or correct "
            "the file"
        )


def refuse_unread_tensors(model: str, unread: Iterable[str], file: Path, *, is_tied: bool) -> None:
    """Raises `CheckpointError` for tensors of a file that belong to no weight of the model, such as biases it has no place for.

    Args:
        model: the name of its class.
        unread: the tensors that no weight is made of.
        file: the GGUF file.
        is_tied: the output layer is the embedding, whatever the file has for it.
    """
    ignored = (*_NO_WEIGHTS, "output.weight") if is_tied else _NO_WEIGHTS
    strangers = [name for name in unread if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored)]
    if strangers:
        some = ", ".join(strangers[:4]) + (f" and {len(strangers) - 4} more" if len(strangers) > 4 else "")
        raise CheckpointError(
            f"{file.name} holds tensors that {model} has no place for: {some}; the model would compute without them; "
            "give the model as safetensors, or a file whose architecture Transformers reads"
        )


def refuse_unknown_split(file: Path) -> None:
    """Raises `CheckpointError` where Transformers would split text by another rule than the vocabulary's."""
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping as library
    except ImportError:
        return  # An older release, which has converters of its own.
    values = GGUFHeader.of(file).values
    kind, rule = _plain(values.get("tokenizer.ggml.model")), _plain(values.get("tokenizer.ggml.pre")) or "default"
    if kind == "gpt2" and rule not in {*library.GGUF_PRE_TOKENIZER_SPLITS, *_GPT2_SPLITS}:
        raise CheckpointError(
            f"{file.name} splits text by the rule '{rule}', which the installed Transformers does not know; give the tokenizer "
            "of the original model: tokenizer=AutoTokenizer.from_pretrained(...)"
        )


def _refuse_parts(header: GGUFHeader, file: Path) -> None:
    count, kind = _plain(header.values.get("split.count")), _plain(header.values.get("general.type"))
    if count is not None and count > 1:
        number = _plain(header.values.get("split.no")) or 0
        raise CheckpointError(
            f"{file.name} is part {number + 1} of {count} of a model; join the parts with `llama-gguf-split --merge`, and give "
            "the whole file"
        )
    if kind not in (None, "model"):
        raise CheckpointError(
            f"{file.name} holds no model but a part of one ('{kind}'); give the file of the model itself"
        )


def _plain(value: GGUFValue | None) -> Any:
    """A number, text, or list of numbers."""
    if value is None:
        return None
    items = [item.decode(errors="replace") if isinstance(item, bytes) else item[0] for item in value.items]
    return items[0] if len(items) == 1 and len(value.types) == 1 else items


class _Comparison:
    def __init__(self, config: Any, header: GGUFHeader, file: Path, given: frozenset[str]) -> None:
        self._config, self._header, self._file, self._given = config, header, file, given
        self._architecture = str(_plain(header.values["general.architecture"]))
        self._said: dict[str, Any] = {
            name.removeprefix(f"{self._architecture}."): _plain(value)
            for name, value in header.values.items()
            if name.startswith(f"{self._architecture}.")
        }
        self.problems: list[str] = []

    def compare(self) -> None:
        special: Mapping[str, Callable[[str, Any], None]] = {
            "attention.key_length": self._compare_head,
            "attention.value_length": self._compare_head,
            "attention.key_length_swa": self._compare_window_head,
            "attention.value_length_swa": self._compare_window_head,
            "attention.sliding_window_pattern": self._compare_pattern,
            "expert_gating_func": self._compare_gate,
        }
        for key, value in self._said.items():
            if key in special:
                special[key](key, value)
            elif key in _FIELDS:
                self._compare_field(key, value)
            elif not key.startswith("rope.") and not any(fnmatch.fnmatchcase(key, name) for name in _WITHOUT_EFFECT):
                self._refuse(key, "which is unknown here")
        if hasattr(self._config, "feed_forward_proj") and "feed_forward_proj" not in self._given:
            self._set_gate_of_t5()
        if "query_pre_attn_scalar" not in self._given and hasattr(self._config, "query_pre_attn_scalar"):
            self._config.query_pre_attn_scalar = self._attention_scalar()
        if not self._given & {"rope_parameters", "rope_scaling", "rope_theta"}:
            self._compare_rope()

    def _refuse(self, key: str, reason: str) -> None:
        self.problems.append(f"{self._architecture}.{key} is {self._said[key]}, {reason}")

    def _compare_field(self, key: str, value: Any) -> None:
        field = _FIELDS[key]
        name = next((name for name in field.names if getattr(self._config, name, None) is not None), None)
        if name is None:
            # A field that stands there without a value, such as the window of Phi 3.
            name = next((name for name in field.names if hasattr(self._config, name)), None)
        if {*field.names} & self._given or (isinstance(value, list) and not field.is_set):
            return
        if name is None:
            if not any(_same(value, absent) for absent in field.absent):
                self._refuse(key, f"for which the config of model_type '{self._config.model_type}' has no field")
            return
        has = getattr(self._config, name)
        if _same(value, has) or (has is None and any(_same(value, absent) for absent in field.absent)):
            return
        if not field.is_set:
            self._refuse(key, f"and {name} is {has}")
        elif name in _OFF_WITHOUT_VALUE and not value:
            setattr(self._config, name, None)
        elif name == "sliding_window" and getattr(self._config, "use_sliding_window", True) is False:
            self._refuse(key, "and the config has no layers with a window")
        else:
            setattr(self._config, name, value)

    def _head_size(self) -> int:
        config = self._config
        for name in ("global_head_dim", "head_dim", "d_kv", "kv_channels"):
            if getattr(config, name, None):
                return int(getattr(config, name))
        return int(config.hidden_size) // int(config.num_attention_heads)

    def _compare_head(self, key: str, value: Any) -> None:
        if value != self._head_size():
            self._refuse(key, f"and a head of the model has {self._head_size()} numbers")

    def _compare_window_head(self, key: str, value: Any) -> None:
        if value != getattr(self._config, "head_dim", None):
            self._refuse(key, f"and head_dim is {getattr(self._config, 'head_dim', None)}")

    def _compare_pattern(self, key: str, value: Any) -> None:
        """A number N (each Nth layer sees everything), or for each layer whether it has a window."""
        kinds = getattr(self._config, "layer_types", None) or []
        has = [kind == "sliding_attention" for kind in kinds]
        said = (
            [bool((layer + 1) % value) for layer in range(len(has))] if isinstance(value, int) else [*map(bool, value)]
        )
        if said[: len(has)] != has:
            self._refuse(key, f"and the layers of the model are {', '.join(kinds) or 'alike'}")

    def _compare_gate(self, key: str, value: Any) -> None:
        has = getattr(self._config, "scoring_func", None) or getattr(self._config, "score_func", None) or "softmax"
        if _GATES.get(value) != has:
            self._refuse(key, f"and the experts are chosen by {has}")

    def _set_gate_of_t5(self) -> None:
        """No key has it: llama.cpp knows T5 1.1 by the tensors of its gates. Transformers takes each T5 for gated, by ReLU."""
        is_gated = any(".ffn_gate." in name for name in self._header.tensors)
        self._config.feed_forward_proj = "gated-gelu" if is_gated else "relu"
        self._config.is_gated_act, self._config.dense_act_fn = is_gated, "gelu_new" if is_gated else "relu"

    def _attention_scalar(self) -> Any:
        """What attention is divided by the root of: no key has it, llama.cpp knows it by the architecture and its size."""
        layers = _GEMMA_27B.get(self._architecture)
        config = self._config
        if layers is None:
            return config.query_pre_attn_scalar
        return (
            config.hidden_size // config.num_attention_heads
            if config.num_hidden_layers == layers
            else self._head_size()
        )

    # --- rotary positions ---------------------------------------------------------------------------------------------

    def _compare_rope(self) -> None:
        said = {key.removeprefix("rope."): value for key, value in self._said.items() if key.startswith("rope.")}
        factors = {name for name in (ROPE_FREQS, ROPE_LONG, ROPE_SHORT) if name in self._header.tensors}
        parameters = getattr(self._config, "rope_parameters", None)
        if not parameters:
            for key in said:
                self._refuse(
                    f"rope.{key}", f"for which the config of model_type '{self._config.model_type}' has no field"
                )
            self.problems += [f"it has {name}, and the model has no rotary positions" for name in sorted(factors)]
            return
        main: MutableMapping[str, Any] = parameters.get("full_attention", parameters)
        self._compare_base(main, said.pop("freq_base", None), "rope.freq_base")
        window = parameters.get("sliding_attention", main)
        self._compare_base(window, said.pop("freq_base_swa", None), "rope.freq_base_swa")
        self._compare_size(main, said.pop("dimension_count", None), "rope.dimension_count")
        said.pop("dimension_count_swa", None)
        sections = [size for size in said.pop("dimension_sections", []) if size]
        if sections and sections != [*main.get("mrope_section", [])]:
            self._refuse("rope.dimension_sections", "and the positions of the model have no such sections")
        scaling = {key.removeprefix("scaling."): said.pop(key) for key in [*said] if key.startswith("scaling.")}
        scaling.setdefault("factor", said.pop("scale_linear", 0.0))
        for key in said:
            self._refuse(f"rope.{key}", "which is unknown here")
        self._compare_scaling(main, scaling)
        if ROPE_FREQS in factors:
            self._compare_factors(main)

    def _compare_base(self, parameters: MutableMapping[str, Any], value: Any, key: str) -> None:
        if value is None or _same(value, parameters.get("rope_theta")):
            return
        if "rope_theta" not in parameters:
            self._refuse(key, "and the model has no such number")
        else:
            parameters["rope_theta"] = value

    def _compare_size(self, parameters: MutableMapping[str, Any], value: Any, key: str) -> None:
        head = self._head_size()
        # Where only a part has positions of its own, as in Gemma 4, the factors say which.
        if (
            value is None
            or value == int(head * parameters.get("partial_rotary_factor", 1.0))
            or (value == head and (parameters.get("rope_type") == "proportional"))
        ):
            return
        if "partial_rotary_factor" in parameters or hasattr(self._config, "partial_rotary_factor"):
            parameters["partial_rotary_factor"] = value / head
        else:
            self._refuse(key, f"and the model turns all {head} numbers of a head")

    def _compare_scaling(self, parameters: MutableMapping[str, Any], scaling: dict[str, Any]) -> None:
        factor = float(scaling.pop("factor") or 1.0)
        kind = scaling.pop("type", "linear" if factor != 1.0 else "none")
        original = scaling.pop("original_context_length", None)
        scaling.pop("finetuned", None)
        has = parameters.get("rope_type", "default")
        wanted: dict[str, Any] = {}
        if kind == "yarn" and factor != 1.0:
            wanted = {"rope_type": "yarn", "factor": factor, "attention_factor": self._yarn_attention(scaling, factor)}
            wanted["original_max_position_embeddings"] = original or self._config.max_position_embeddings
            for name in ("beta_fast", "beta_slow"):
                value = scaling.pop(f"yarn_{name}", scaling.pop(name, None))
                wanted |= {} if value is None else {name: value}
        elif kind == "longrope" or ROPE_LONG in self._header.tensors:
            names = {"long_factor": ROPE_LONG, "short_factor": ROPE_SHORT}
            if absent := [name for name in names.values() if name not in self._header.tensors]:
                self.problems.append(f"its positions are scaled by LongRoPE, and it has no {' and no '.join(absent)}")
                return
            wanted = {
                "rope_type": "longrope",
                "factor": factor,
                **{key: self._numbers(name) for key, name in names.items()},
            }
            wanted["original_max_position_embeddings"] = original or self._config.max_position_embeddings
            wanted["attention_factor"] = float(scaling.pop("attn_factor", 1.0))
        elif kind == "linear" and factor != 1.0:
            wanted = {"rope_type": "linear", "factor": factor}
        elif kind not in ("none", "linear", "yarn"):
            self._refuse("rope.scaling.type", "which is unknown here")
        neutral = {"attn_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_ext_factor": 1.0, "alpha": 0.0}
        for key, value in scaling.items():
            if not _same(value, neutral.get(key)):
                self._refuse(f"rope.scaling.{key}", "which is unknown here")
        if not wanted:
            return
        if has not in ("default", wanted["rope_type"]):
            self.problems.append(f"its positions are scaled by {wanted['rope_type']}, those of the model by {has}")
            return
        parameters.update(wanted)

    def _yarn_attention(self, scaling: dict[str, Any], factor: float) -> float:
        """What llama.cpp multiplies the tables by; DeepSeek's own multiplier is another matter, and refused."""
        return float(scaling.pop("attn_factor", 1.0)) * (1.0 + 0.1 * math.log(factor))

    def _compare_factors(self, parameters: MutableMapping[str, Any]) -> None:
        """Each wavelength is multiplied by its factor, as Llama 3.1 does by a rule of four numbers."""
        factors = np.asarray(self._numbers(ROPE_FREQS), np.float64)
        if np.allclose(factors, 1.0):
            return
        kind = parameters.get("rope_type", "default")
        if kind == "default":
            base = parameters["rope_theta"]
            parameters.update({"rope_type": "llama3", **_rule_of_factors(factors, base)})
        if not self._is_factor_of(parameters, factors):
            self.problems.append(
                f"{ROPE_FREQS} has factors that are "
                + ("of no rule of Llama 3" if kind == "default" else f"not those of the model's '{kind}' positions")
            )

    def _is_factor_of(self, parameters: Mapping[str, Any], factors: NDArray[np.float64]) -> bool:
        """Whether the frequencies that Transformers computes are those that the factors give."""
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        nested = "full_attention" in self._config.rope_parameters
        compute = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
        has = compute(self._config, None, layer_type="full_attention" if nested else None)[0].double().numpy()
        size = 2 * len(factors)
        said = parameters["rope_theta"] ** (-np.arange(0, size, 2) / size) / factors
        return has.shape == said.shape and bool(np.allclose(has, said, rtol=1e-4, atol=1e-12))

    def _numbers(self, name: str) -> list[float]:
        place = self._header.tensors[name]
        if place.kind != 0:
            self.problems.append(f"{name} is not of float32")
            return []
        with self._file.open("rb") as file:
            file.seek(place.offset)
            found: NDArray[np.float32] = np.frombuffer(file.read(4 * math.prod(place.shape)), np.float32)
        return [float(number) for number in found]


def _rule_of_factors(factors: NDArray[np.float64], base: float) -> dict[str, Any]:
    """The numbers of Llama 3's rule that give these factors, if any do.

    Waves that are shorter than `original / high` keep their length, those longer than `original / low` are `factor` times as
    long, and between them the share of the first falls with the frequency. The rule knows two of the three numbers `original`,
    `low` and `high`, so that `low` is 1 as in the released models.
    """
    size = 2 * len(factors)
    factor = float(factors.max())
    frequencies = base ** (-np.arange(0, size, 2) / size) / (2 * math.pi)
    shares = (1 / factors - 1 / factor) / (1 - 1 / factor)
    between = (shares > 1e-4) & (shares < 1 - 1e-4)
    offset = -1 / 3
    if between.sum() > 1:
        slope, offset = np.polyfit(frequencies[between], shares[between], 1)
    elif between.any():
        slope = (shares[between][0] - offset) / frequencies[between][0]
    else:
        # Any length between that of the last wave that is kept, four times, and that of the first that is not.
        kept, lengthened = frequencies[shares > 0.5], frequencies[shares <= 0.5]
        slope = (1 / 3) * math.sqrt(4 / kept.min() / lengthened.max()) if kept.size else 1 / (6 * lengthened.max())
    high = 1 - 1 / offset if offset < 0 else 4.0
    return {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": round(float(high), 3),
        "original_max_position_embeddings": max(round(float(slope) * (round(float(high), 3) - 1)), 1),
    }


def _same(said: Any, has: Any) -> bool:
    """Whether a value of the header is one of the config; the header's numbers are float32."""
    if isinstance(said, list) or isinstance(has, list) or has is None:
        return bool(said == has)
    return math.isclose(said, has, rel_tol=1e-6) if not isinstance(has, str) else said == has
