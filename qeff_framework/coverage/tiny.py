"""Tiny random models with the real structure of their family.

The configuration class says which fields exist and which per-layer patterns its default has; `sizes` says how small each
field becomes. What cannot be known from a field's name is in `overrides`.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.coverage import sizes
from qeff_framework.coverage.image_overrides import IMAGE_OVERRIDES
from qeff_framework.coverage.overrides import OVERRIDES
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.tasks import task_spec

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from qeff_framework.contracts import Task

#: Types whose eager attention is not the one to compare with, and why.
_ATTENTION: Final[Mapping[str, str]] = {
    "falcon": "sdpa",  # eager attention adds the biases of ALiBi twice
}

DEPTH_FIELDS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def tiny_config(model_type: str, task: Task, changes: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """A small configuration of `model_type` in which every kind of layer of the family occurs.

    Fields in `changes` get other values; a mapping under the name of a nested configuration changes fields of that one.

    Raises:
        UnsupportedModelError: Transformers has no such model type.
    """
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type, list(CONFIG_MAPPING), n=3)
        raise UnsupportedModelError(
            f"Cannot build a tiny {model_type!r}: this version of Transformers has no such model type. "
            f"{'Near matches: ' + ', '.join(near) if near else 'Check the spelling of config.model_type'}."
        )
    config = _shrink(CONFIG_MAPPING[model_type], changes or {}, task, _TokenIds())
    if task_spec(task).is_encoder_decoder:
        _plain_start(config)
    return config


def tiny_model(model_type: str, task: Task, seed: int = 0, changes: Mapping[str, Any] | None = None) -> torch.nn.Module:
    """The model of `tiny_config` with random float32 weights, in eval mode. Attention is eager, but for types in `_ATTENTION`."""
    import torch
    import transformers

    from qeff_framework.coverage.weights import randomise

    auto = getattr(transformers, task_spec(task).model_class.transformers_class)
    config = tiny_config(model_type, task, changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: torch.nn.Module = auto.from_config(
            config, attn_implementation=_ATTENTION.get(model_type, "eager"), dtype=torch.float32
        )
        randomise(model)
    return model.float().eval()


def tiny_prompts(seed: int = 0) -> list[list[int]]:
    """Two prompts of unequal length, longer than every window, made of ids that no special token uses."""
    source = random.Random(seed)  # noqa: S311  (test data)
    ids = range(sizes.FIRST_PLAIN_TOKEN, 128)
    return [source.sample(ids, k=length) for length in (9, 12)]


def _plain_start(config: Any) -> None:
    """A start of the decoder, and none of the family's forced tokens, which would hide what the model chooses."""
    if getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = sizes.FIRST_PLAIN_TOKEN - 1
    config.forced_bos_token_id = config.forced_eos_token_id = None


class _TokenIds:
    """Maps special token ids into the tiny vocabulary; the same id means the same token in nested configurations."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._free = itertools.count(sizes.FIRST_PLAIN_TOKEN - 1, -1)

    def shrink(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self.shrink(item) for item in value]
        if not isinstance(value, int) or value < 4:
            return value
        if value not in self._known:
            self._known[value] = next(self._free)
        return self._known[value]


def _shrink(
    config_class: type[PretrainedConfig], given: Mapping[str, Any], task: Task, ids: _TokenIds
) -> PretrainedConfig:
    from transformers import PretrainedConfig

    override = OVERRIDES.get(config_class.model_type) or IMAGE_OVERRIDES.get(config_class.model_type)
    fixed = _merged(override.values if override else {}, given)
    declared = declared_fields(config_class)
    switches = {name: value for name, value in sizes.SWITCHES.items() if name in declared}
    nested_values = {name: value for name, value in fixed.items() if name.endswith("_config")}
    try:
        full = config_class(**switches, **nested_values)
    except Exception:  # noqa: BLE001  (checks of any family: tiny parts need not fit the full size of the others)
        full = config_class(**switches)
    values: dict[str, Any] = dict(switches)
    for name, default in declared.items():
        if isinstance(nested := vars(full).get(name), PretrainedConfig):
            values[name] = _shrink(type(nested), fixed.pop(name, {}), task, ids)
        elif name in sizes.SIZES and (default is not None or name in sizes.EVEN_IF_NONE):
            values[name] = sizes.SIZES[name]
        elif name.endswith(("_token_id", "_token_index")):
            values[name] = ids.shrink(vars(full).get(name))
        elif task == "causal-lm" and name in sizes.CAUSAL_SWITCHES:
            values[name] = sizes.CAUSAL_SWITCHES[name]
    values |= _head_sizes(vars(full), declared)
    values |= _expert_groups(declared)
    values |= _layer_patterns(full, declared)
    if task == "image-text-to-text":
        values |= _rope_sections(vars(full), values | fixed)
    return config_class(**(values | fixed))


def _merged(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` over `values`; those of nested configurations are merged in their turn."""
    nested = {
        name: _merged(values[name], value)
        for name, value in given.items()
        if name.endswith("_config") and isinstance(values.get(name), Mapping)
    }
    return {**values, **given, **nested}


def declared_fields(config_class: type[PretrainedConfig]) -> dict[str, Any]:
    """The fields that the family adds to the common ones, with their defaults."""
    from transformers import PretrainedConfig

    inherited = {field.name for field in dataclasses.fields(PretrainedConfig)}
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(config_class)
        if field.name not in inherited
    }


def _head_sizes(full: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of which only the relation to other sizes is known: it must stay the relation of the family's default."""
    values = {}
    head_dim = declared.get("head_dim")
    if isinstance(head_dim, int):
        if head_dim == declared.get("qk_rope_head_dim"):
            values["head_dim"] = sizes.SIZES["qk_rope_head_dim"]
        elif full.get("num_attention_heads", 0) * head_dim == full.get("hidden_size"):
            values["head_dim"] = sizes.HEAD_DIM
        else:
            values["head_dim"] = sizes.WIDE_HEAD_DIM
    if "num_key_value_heads" in declared:
        if "kv_lora_rank" in declared:
            # Latent attention expands the latent to one key and value per head.
            values["num_key_value_heads"] = sizes.HEADS
        elif declared["num_key_value_heads"] == 1:
            values["num_key_value_heads"] = 1
    return values


def _rope_sections(full: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary sections of positions of several axes, which share out half a head; one of them may differ from the others."""
    rope = full.get("rope_parameters")
    if not isinstance(rope, dict) or not isinstance(section := rope.get("mrope_section"), list):
        return {}
    head = values.get("qk_rope_head_dim") if sum(section) * 2 == full.get("qk_rope_head_dim") else None
    head = head or values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    half = int(head * rope.get("partial_rotary_factor", 1.0)) // 2
    count = len(section)
    share = half // count
    other = next((place for place, size in enumerate(section) if section.count(size) == 1), 0)
    shared = [share] * count
    shared[other] = half - share * (count - 1)
    return {"rope_parameters": {**rope, "mrope_section": shared}}


def _expert_groups(declared: Mapping[str, Any]) -> dict[str, int]:
    grouped = (declared.get("n_group") or 1) > 1
    return {"n_group": 4, "topk_group": 2} if grouped else {}


def _layer_patterns(full: PretrainedConfig, declared: Mapping[str, Any]) -> dict[str, Any]:
    """Per-layer lists cut to the layers in which each combination of kinds occurs for the first and the second time."""
    depth = next((size for name in DEPTH_FIELDS if isinstance(size := getattr(full, name, None), int)), None)
    patterns = {name: vars(full)[name] for name in declared if is_pattern(vars(full).get(name), depth)}
    if not patterns:
        return {}
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, kinds in enumerate(zip(*patterns.values(), strict=True)):
        places.setdefault(kinds, []).append(place)
    # A combination that occurs once (a single dense layer in front) is doubled.
    kept = sorted(place for found in places.values() for place in (found * 2)[:2])
    depth_fields = {name: len(kept) for name in DEPTH_FIELDS if name in declared}
    return depth_fields | {name: [kinds[place] for place in kept] for name, kinds in patterns.items()}


def is_pattern(value: Any, depth: int | None) -> bool:
    """Whether a field holds one kind for each of `depth` layers."""
    if not isinstance(value, list | tuple) or len(value) != depth:
        return False
    if all(isinstance(kind, str) for kind in value):
        return True
    # Numbers are kinds when they are flags or fractions that differ; otherwise they are sizes or layer indices.
    return all(isinstance(kind, int | float) and 0 <= kind <= 1 for kind in value) and len(set(value)) > 1
