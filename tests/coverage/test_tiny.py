"""The tiny models keep the structure of their family, and their output depends on their input."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import qeff_framework
from qeff_framework.coverage.families import causal_lm_types, encoder_types
from qeff_framework.coverage.image_overrides import IMAGE_OVERRIDES
from qeff_framework.coverage.overrides import OVERRIDES
from qeff_framework.coverage.tiny import tiny_config, tiny_model, tiny_prompts
from qeff_framework.errors import UnsupportedModelError
from tests.library_versions import needs_tested_transformers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

SHORTEST_PROMPT = min(map(len, tiny_prompts()))


def text_config(model_type: str) -> Any:
    return tiny_config(model_type, "causal-lm").get_text_config(decoder=True)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3", "gpt_oss", "olmo2", "cohere", "starcoder2"])
def test_grouped_heads(model_type: str) -> None:
    config = text_config(model_type)
    assert 1 < config.num_key_value_heads < config.num_attention_heads


@pytest.mark.parametrize(
    "model_type", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "dbrx", "llama4", "granitemoe", "jamba", "gemma4"]
)
def test_several_experts_of_more_are_chosen(model_type: str) -> None:
    config = text_config(model_type)
    holder = getattr(config, "ffn_config", config)
    experts = first_of(holder, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    chosen = first_of(holder, "num_experts_per_tok", "moe_top_k", "top_k_experts")
    assert 1 < chosen < experts


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3", "gpt_oss", "qwen2", "cohere2", "modernbert-decoder"])
def test_windows_are_shorter_than_the_prompts(model_type: str) -> None:
    config = text_config(model_type)
    assert config.sliding_window < SHORTEST_PROMPT
    assert Counter(config.layer_types).keys() == {"sliding_attention", "full_attention"}


@pytest.mark.parametrize(
    ("model_type", "kinds"),
    [
        ("qwen3_next", {"linear_attention", "full_attention"}),
        ("bamba", {"linear_attention", "full_attention"}),
        ("nemotron_h", {"linear_attention", "full_attention", "moe", "mlp"}),
        ("lfm2", {"conv", "full_attention"}),
        pytest.param(
            "lara_mini",
            {"linear_attention", "sliding_attention", "full_attention"},
            marks=needs_tested_transformers,
        ),
        pytest.param("recurrent_gemma", {"linear_attention", "sliding_attention"}, marks=needs_tested_transformers),
        ("llama4", {"chunked_attention", "full_attention"}),
    ],
)
def test_every_kind_of_layer_occurs_twice(model_type: str, kinds: set[str]) -> None:
    counts = Counter(text_config(model_type).layer_types)
    assert counts.keys() == kinds
    assert min(counts.values()) >= 2


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3", "minicpm3", "kimi_linear"])
def test_latent_attention_has_distinct_sizes(model_type: str) -> None:
    config = text_config(model_type)
    key = config.qk_nope_head_dim + config.qk_rope_head_dim
    assert len({key, config.v_head_dim, config.kv_lora_rank + config.qk_rope_head_dim, config.hidden_size}) == 4


def test_expert_groups_leave_a_choice() -> None:
    config = text_config("deepseek_v3")
    assert 1 < config.topk_group < config.n_group
    assert config.num_experts_per_tok < config.n_routed_experts // config.n_group * config.topk_group


def test_alibi_families_have_no_other_positions() -> None:
    assert tiny_config("mpt", "causal-lm").attn_config.alibi
    names = [name for name, _ in tiny_model("bloom", "causal-lm").named_parameters()]
    assert not [name for name in names if "position" in name]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "xlm"])
def test_encoders_are_causal_only_as_decoders(model_type: str) -> None:
    switch = "causal" if model_type == "xlm" else "is_decoder"
    assert getattr(tiny_config(model_type, "causal-lm"), switch)
    assert not getattr(tiny_config(model_type, "encoder"), switch)


def test_special_tokens_fit_the_vocabulary_and_agree_between_nested_configurations() -> None:
    config = tiny_config("gemma3", "causal-lm")
    ids = [getattr(config, name) for name in ("image_token_index", "boi_token_index", "eoi_token_index")]
    assert len(set(ids)) == 3
    assert max(ids) < min(map(min, tiny_prompts()))
    assert max(text_config("glm").eos_token_id) < text_config("glm").vocab_size


def test_seeds_give_the_weights() -> None:
    first, again, other = (next(tiny_model("llama", "causal-lm", seed).parameters()) for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize(("model_type", "task"), [("phi4_multimodal", "causal-lm"), ("luke", "encoder")])
def test_parts_that_text_never_reaches_stay_small(model_type: str, task: Any) -> None:
    model = tiny_model(model_type, task)
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) < 5_000_000


def test_computed_tables_are_kept() -> None:
    table = tiny_model("marian", "causal-lm").model.decoder.embed_positions.weight
    assert float((table**2).sum(-1).std()) < 1e-4  # sin² + cos² is the same in every row


def test_an_unknown_type_is_named_with_its_neighbours() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'lama'.*llama"):
        tiny_config("lama", "causal-lm")


def test_types_are_those_of_transformers() -> None:
    causal, encoders = causal_lm_types(), encoder_types()
    assert {"llama", "mixtral", "mamba", "gemma3_text"} <= set(causal)
    assert {"bert", "xlm-roberta", "mpnet", "deberta-v2", "modernbert", "nomic_bert", "distilbert"} <= set(encoders)
    assert not {"t5", "bart", "llama"} & set(encoders)
    assert len(encoders) == len(set(encoders))


@needs_tested_transformers
def test_every_override_is_about_a_type_that_exists_and_says_why() -> None:
    from transformers import CONFIG_MAPPING

    overrides = {**OVERRIDES, **IMAGE_OVERRIDES}
    assert len(overrides) == len(OVERRIDES) + len(IMAGE_OVERRIDES)
    assert [name for name in overrides if name not in CONFIG_MAPPING] == []
    assert all(override.reason and override.values for override in overrides.values())


def test_the_export_path_knows_nothing_of_these_tables() -> None:
    core = Path(qeff_framework.__file__).parent
    rooms = [core / name for name in ("auto", "seam", "dialect", "export", "artifacts", "generation", "model.py")]
    files = [file for room in rooms for file in ([room] if room.is_file() else room.rglob("*.py"))]
    assert files
    assert [file.name for file in files if "qeff_framework.coverage" in file.read_text()] == []


def first_of(config: Any, *names: str) -> int:
    return next(value for name in names if isinstance(value := getattr(config, name, None), int))
