"""LoRA adapters, merged: the logits of peft's own eager model, which computes them beside the weights."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from qeff_framework import QEFFAutoModel, QEFFAutoPeftModelForCausalLM
from qeff_framework.errors import CheckpointError, OptionError
from qeff_framework.sources import CheckpointSource
from tests.gguf_files import write_gguf
from tests.image_models import built, llava, saved_llava
from tests.sources.conftest import change_json
from tests.tiny_models import tiny_causal_lm

TOKENS = torch.tensor([[5, 17, 99, 23, 42, 7, 64]])
#: Fields of the base, and of the adapter.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("llama", {}, {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "rank-stabilised": ("llama", {}, {"target_modules": ["o_proj"], "use_rslora": True}),
    "patterns": (
        "llama",
        {},
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 2, "layers.0.mlp.up_proj": 5},
            "alpha_pattern": {r"layers\.\d+\.self_attn\.v_proj": 3, "down_proj": 1},
        },
    ),
    "dora": ("llama", {}, {"target_modules": ["k_proj", "gate_proj"], "use_dora": True}),
    "biases of its layers": ("llama", {"attention_bias": True}, {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "all biases": ("llama", {"attention_bias": True}, {"target_modules": ["up_proj"], "bias": "all"}),
    "a bias of its own": ("llama", {"attention_bias": True}, {"target_modules": ["q_proj"], "lora_bias": True}),
    "embedding": ("llama", {}, {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding that is tied": ("llama", {"tie_word_embeddings": True}, {"target_modules": ["embed_tokens"]}),
    "head that is tied": ("llama", {"tie_word_embeddings": True}, {"target_modules": ["lm_head"]}),
    "a head of its own": (
        "llama",
        {"tie_word_embeddings": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ),
    "layers of a number": (
        "llama",
        {"num_hidden_layers": 2},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    ),
    "all but some": (
        "llama",
        {"num_hidden_layers": 2},
        {"target_modules": ["q_proj"], "exclude_modules": r".*layers\.1\..*"},
    ),
    "transposed": ("gpt2", {}, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "transposed dora": ("gpt2", {}, {"target_modules": ["c_proj"], "fan_in_fan_out": True, "use_dora": True}),
}


def save_adapter(base: Path, module: Any, folder: Path, seed: int = 0, **fields: Any) -> Any:
    """Saves a random adapter for `module`, which lies in `base`; returns peft's model, which computes with both."""
    with warnings.catch_warnings():
        # peft warns about tied weights and about embeddings that it saves.
        warnings.simplefilter("ignore")
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        module.name_or_path = str(base)
        config = LoraConfig(**{"r": 4, "lora_alpha": 6, "init_lora_weights": False, **fields})
        adapted = get_peft_model(module, config).eval()
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * (0.1 if "lora" in name else 0.3))
        adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("case", CASES)
def test_merged_is_what_peft_computes(case: str, tmp_path: Path, store_root: Path) -> None:
    model_type, of_base, of_adapter = CASES[case]
    module, _ = tiny_causal_lm(model_type, **{"num_hidden_layers": 1, **of_base})
    module.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        plain = module(TOKENS).logits
        expected = save_adapter(tmp_path / "base", module, tmp_path / "lora", **of_adapter)(TOKENS).logits
        assert (expected - plain).abs().max() > 0.05
        source = CheckpointSource(tmp_path / "lora", {})
        loaded: Any = source.load("AutoModelForCausalLM")
        torch.testing.assert_close(loaded(TOKENS).logits, expected, rtol=1e-4, atol=2e-4)
    assert source.notes() == ()
    assert source.name == "base-lora"
    # The key tells adapters apart, and the base alone.
    given = CheckpointSource(tmp_path / "base", {"adapter": str(tmp_path / "lora")})
    assert given.identity() == source.identity()
    weights = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, tmp_path / "lora" / "adapter_model.safetensors")
    keys = [given.identity(), CheckpointSource(tmp_path / "base", {}).identity()]
    assert source.identity() in keys
    assert source.identity() != keys[1]


#: How many tokens the base gets before the training, and fields of the base and of the adapter.
GROWN: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "saved whole": (136, {}, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "saved because the vocabulary grew": (136, {}, {}),
    "an embedding that was tied": (136, {"tie_word_embeddings": True}, {"modules_to_save": ["embed_tokens"]}),
    "tied for good": (
        136,
        {"tie_word_embeddings": True},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "rows of tied embeddings": (136, {"tie_word_embeddings": True}, {"trainable_token_indices": [127, 133, 135]}),
    "rows alone": (128, {}, {"trainable_token_indices": {"embed_tokens": [23, 127]}}),
    "fewer": (128 - 8, {}, {"modules_to_save": ["embed_tokens", "lm_head"]}),
}


@pytest.mark.parametrize("case", GROWN)
def test_tokens_that_were_added_for_an_adapter(case: str, tmp_path: Path, store_root: Path) -> None:
    """The base has no rows for them; peft's own loader makes some, and the adapter replaces all."""
    tokens, of_base, of_adapter = GROWN[case]
    module, _ = tiny_causal_lm("llama", num_hidden_layers=1, **of_base)
    module.save_pretrained(tmp_path / "base")
    module.resize_token_embeddings(tokens)
    read = torch.tensor([[5, tokens - 1, 23, tokens - 3]])
    with torch.no_grad():
        adapted = save_adapter(tmp_path / "base", module, tmp_path / "lora", target_modules=["q_proj"], **of_adapter)
        loaded: Any = CheckpointSource(tmp_path / "lora", {}).load("AutoModelForCausalLM")
        torch.testing.assert_close(loaded(read).logits, adapted(read).logits, rtol=1e-4, atol=2e-4)
    assert loaded.config.vocab_size == tokens


def test_an_embedding_without_its_head(tmp_path: Path, store_root: Path) -> None:
    module, _ = tiny_causal_lm("llama", num_hidden_layers=1)
    module.save_pretrained(tmp_path / "base")
    module.resize_token_embeddings(136)
    save_adapter(tmp_path / "base", module, tmp_path / "lora", modules_to_save=["embed_tokens"])
    file = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "lm_head" not in name}, file)
    with pytest.raises(
        CheckpointError, match="embedding of 136 tokens for a model of 128, and no lm_head.weight of as many"
    ):
        CheckpointSource(tmp_path / "lora", {}).load("AutoModelForCausalLM")


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    """A folder with an adapter for `checkpoint`."""
    module = tiny_causal_lm("llama", num_hidden_layers=1)[0]
    save_adapter(checkpoint, module, tmp_path / "lora", target_modules=["q_proj"])
    return tmp_path / "lora"


@pytest.mark.parametrize(
    ("fields", "stated"),
    [
        ({"peft_type": "IA3"}, "of peft_type 'IA3', and LORA is read"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'.*path_initial_model_for_weight"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "states layer_replication, which is not read.*merge_and_unload"),
        ({"use_bdlora": {"nblocks": 2}, "target_parameters": ["a"]}, "states target_parameters, use_bdlora"),
        (
            {"target_modules": "(q_proj"},
            r"states target_modules with '\(q_proj', which is no regular expression.*download",
        ),
        ({"exclude_modules": "*"}, r"states exclude_modules with '\*', which is no regular expression"),
        ({"alpha_pattern": {"q_proj)": 2}}, r"states alpha_pattern with 'q_proj\)', which is no regular expression"),
        ({"base_model_name_or_path": None}, r"does not say which model.*from_pretrained\(BASE, adapter="),
        ({"base_model_name_or_path": "/not/there"}, r"model '/not/there', which is not there.*adapter="),
    ],
)
def test_what_is_not_read_is_named(adapter: Path, fields: dict[str, Any], stated: str) -> None:
    change_json(adapter / "adapter_config.json", **fields)
    with pytest.raises(CheckpointError, match=stated):
        CheckpointSource(adapter, {})


def test_a_base_that_lay_beside_the_training(adapter: Path) -> None:
    """Such a name may as well be an id of the hub, which is asked when the model is read."""
    change_json(adapter / "adapter_config.json", base_model_name_or_path="output/base")
    stated = r"lora is for the model 'output/base', which is not there: .*from_pretrained\(BASE, adapter="
    with pytest.raises(CheckpointError, match=stated):
        CheckpointSource(adapter, {"local_files_only": True}).config()
    with pytest.raises(CheckpointError, match=stated):
        QEFFAutoPeftModelForCausalLM.from_pretrained(adapter, local_files_only=True)


def test_a_base_that_is_a_file(adapter: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "base.gguf", tiny_causal_lm("llama", num_hidden_layers=1)[0])
    change_json(adapter / "adapter_config.json", base_model_name_or_path=str(file))
    assert CheckpointSource(adapter, {}).name == f"base-{adapter.name}"


def test_an_adapter_of_another_model(adapter: Path, tmp_path: Path) -> None:
    tiny_causal_lm("gpt2")[0].save_pretrained(tmp_path / "gpt2")
    tiny_causal_lm("llama", num_attention_heads=8)[0].save_pretrained(tmp_path / "wide")
    for base, stated in (
        ("gpt2", "is for a module .*q_proj, which GPT2LMHeadModel does not have"),
        ("wide", r"adds \[32, 32\] to"),
    ):
        with pytest.raises(CheckpointError, match=f"the adapter lora {stated}.*give its base model: .*tiny"):
            CheckpointSource(tmp_path / base, {"adapter": adapter}).load("AutoModelForCausalLM")


def test_incomplete_adapters(adapter: Path, checkpoint: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    key = next(key for key in weights if "lora_A" in key)
    save_file({name: value for name, value in weights.items() if name != key}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="the adapter lora lacks lora_A of .*q_proj"):
        CheckpointSource(adapter, {}).load("AutoModelForCausalLM")
    change_json(adapter / "adapter_config.json", lora_alpha="6")
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="states lora_alpha='6'.*no number for .*q_proj"):
        CheckpointSource(adapter, {}).load("AutoModelForCausalLM")
    change_json(adapter / "adapter_config.json", lora_alpha=math.nan)
    with pytest.raises(CheckpointError, match="states lora_alpha=nan.*no number for .*q_proj"):
        CheckpointSource(adapter, {}).load("AutoModelForCausalLM")
    save_file(
        {**weights, key.removeprefix("base_model.model."): weights[key].clone()}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError, match=f"holds {key} twice, with and without 'base_model.model.' in front"):
        CheckpointSource(adapter, {}).load("AutoModelForCausalLM")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the adapter lora holds no weights"):
        CheckpointSource(adapter, {}).identity()
    with pytest.raises(CheckpointError, match="adapter folder /nowhere does not exist"):
        CheckpointSource(checkpoint, {"adapter": "/nowhere"})
    with pytest.raises(OptionError, match=r"adapter=\['a', 'b'\] is no folder.*for QEFFAutoPeftModelForCausalLM"):
        CheckpointSource(checkpoint, {"adapter": ["a", "b"]})
    with pytest.raises(CheckpointError, match="is an adapter itself, and adapter=other is another one"):
        CheckpointSource(adapter, {"adapter": "other"})


def test_modules_that_the_config_names_and_the_file_lacks(adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_json(adapter / "adapter_config.json", target_modules=["q_proj", "self_attn.v_proj"])
    CheckpointSource(adapter, {}).load("AutoModelForCausalLM")
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "lora holds nothing for model.layers.0.self_attn.v_proj, which the target_modules of its" in told
    change_json(adapter / "adapter_config.json", modules_to_save=["lm_head"])
    with pytest.raises(CheckpointError, match="lora holds no weights of lm_head, and the modules_to_save"):
        CheckpointSource(adapter, {}).load("AutoModelForCausalLM")
    folder = adapter.parent / "several"
    folder.mkdir()
    adapter.rename(folder / "first")
    with pytest.raises(CheckpointError, match="several holds no model, and adapters in its folders first; give one"):
        CheckpointSource(folder, {})
    with pytest.raises(CheckpointError, match="several holds adapters in its folders first; give one of them: .*first"):
        CheckpointSource(folder.parent / "tiny", {"adapter": folder})


@pytest.mark.parametrize(
    ("fields", "stated"),
    [
        ({"r": 8}, "states the rank 8, and its weights have the rank 4 for .*q_proj"),
        ({"rank_pattern": {"q_proj": 2}}, "states the rank 2"),
        ({"use_dora": True}, "states use_dora=true, and its weights hold no lora_magnitude_vector"),
        ({"lora_bias": True}, "states lora_bias=true, and its weights hold no lora_bias"),
        ({"target_modules": ["k_proj"]}, "holds sums for .*q_proj"),
        ({"target_modules": r".*\.k_proj"}, "holds sums for .*q_proj"),
        ({"exclude_modules": ["self_attn.q_proj"]}, "holds sums for .*q_proj"),
        ({"exclude_modules": r".*\.q_proj"}, "holds sums for .*q_proj"),
        (
            {"layers_to_transform": [1], "layers_pattern": "layers"},
            "holds sums for [^,]*layers.0.self_attn.q_proj, and",
        ),
    ],
)
def test_a_config_that_is_not_that_of_the_weights(adapter: Path, fields: dict[str, Any], stated: str) -> None:
    """peft computes by the config: with another scale, or with random numbers in the place of what is absent."""
    change_json(adapter / "adapter_config.json", **fields)
    with pytest.raises(CheckpointError, match=f"the adapter lora {stated}.*download both again"):
        CheckpointSource(adapter, {}).load("AutoModelForCausalLM")


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_an_adapter_with_a_number_that_is_not_finite(adapter: Path, number: float) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    key = max(weights)
    weights[key][0, 0] = number
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=f"numbers that are not finite in {key}: its training failed"):
        CheckpointSource(adapter, {}).load("AutoModelForCausalLM")


def test_an_adapter_without_any_weight(adapter: Path) -> None:
    save_file({}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="the adapter lora holds nothing: there is no weight in adapter_model"):
        CheckpointSource(adapter, {}).load("AutoModelForCausalLM")


def test_an_adapter_that_torch_has_written(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    expected = CheckpointSource(adapter, {}).load("AutoModelForCausalLM").state_dict()
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(weights, adapter / "adapter_model.bin")
    loaded = CheckpointSource(adapter, {}).load("AutoModelForCausalLM").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 4


def test_modules_of_sentence_transformers_that_were_saved_with_an_adapter(adapter: Path, checkpoint: Path) -> None:
    """They would be those of the base, which has none: a vector for each token in place of an embedding."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for path, kind in kinds.items()]
    (adapter / "modules.json").write_text(json.dumps(modules))
    (adapter / "1_Pooling").mkdir()
    (adapter / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    (adapter / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: "}}')
    for source in (CheckpointSource(adapter, {}), CheckpointSource(checkpoint, {"adapter": adapter})):
        found = source.sentence_transformers()
        assert found is not None
        assert str(found.head()) == "lasttoken > normalize"
        assert found.texts({}).prompts["query"] == "q: "
    (adapter / "modules.json").unlink()
    with pytest.raises(CheckpointError, match="1_Pooling/config.json and no modules.json"):
        CheckpointSource(adapter, {}).sentence_transformers()


def test_a_processor_that_was_saved_with_an_adapter_is_taken(adapter: Path, tmp_path: Path, store_root: Path) -> None:
    processor = saved_llava(built(llava)[0], tmp_path / "llava")
    arguments = {"adapter": adapter}
    before = CheckpointSource(tmp_path / "llava", arguments)
    identity = before.identity()
    assert list(before.processor().image_processor.image_mean) == list(processor.image_processor.image_mean)
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(adapter)
    after = CheckpointSource(tmp_path / "llava", arguments)
    assert list(after.processor().image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert after.identity() != identity


@pytest.mark.parametrize(
    ("content", "stated"),
    [([1], "holds no tensors by names"), ({"a": Path}, "holds more than plain tensors")],
)
def test_a_file_of_torch_that_holds_no_adapter(adapter: Path, content: object, stated: str) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(content, adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=f"adapter_model.bin.* {stated}.*download it again"):
        CheckpointSource(adapter, {}).load("AutoModelForCausalLM")


def test_an_adapter_of_8_bit_numbers(adapter: Path) -> None:
    weights = {
        name: value.to(torch.float8_e4m3fn) for name, value in load_file(adapter / "adapter_model.safetensors").items()
    }
    save_file({name: value.float() for name, value in weights.items()}, adapter / "adapter_model.safetensors")
    expected = CheckpointSource(adapter, {}).load("AutoModelForCausalLM").state_dict()
    save_file(weights, adapter / "adapter_model.safetensors")
    found = CheckpointSource(adapter, {}).load("AutoModelForCausalLM").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize("name", ["additional_chat_templates/tool.jinja", "source.spm", "tokenization_own.py"])
def test_every_file_of_the_tokenizer_of_an_adapter_decides(adapter: Path, checkpoint: Path, name: str) -> None:
    """Its class chooses the names of its files; an artifact carries what was made of them."""
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(adapter)
    identities = []
    for text in ("{{ messages }}", "{{ messages[0] }}"):
        (adapter / name).parent.mkdir(exist_ok=True)
        (adapter / name).write_text(text)
        identities.append(CheckpointSource(adapter, {}).identity())
    assert identities[0] != identities[1]


def test_a_tokenizer_that_was_saved_with_an_adapter_is_taken(
    adapter: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The base's reads an added token as others, and renders conversations by a template that the adapter was not trained with."""
    alone = CheckpointSource(adapter, {})
    before = alone.identity()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(adapter)
    (tmp_path / "artifact").mkdir()
    for source in (CheckpointSource(adapter, {}), CheckpointSource(checkpoint, {"adapter": adapter})):
        assert source.identity() != before
        source.require_tokenizer()
        assert source.has_chat_template()
        source.save_companions(tmp_path / "artifact")
        [saved] = (tmp_path / "artifact").rglob("tokenizer.json")
        assert "<tool>" in saved.read_text()
    # Rows that choose among adapters: the first one's, and a warning for those that were trained with another.
    rows = QEFFAutoPeftModelForCausalLM.from_pretrained(adapter)
    assert rows._source.has_chat_template()
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(adapter)
    rows.load_adapter(adapter, "second")
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "saved with the adapter second has other tokens, or another chat template" in told
    change_json(adapter / "adapter_config.json", base_model_name_or_path="org/base", revision="v2")
    assert CheckpointSource(adapter, {})._arguments["revision"] == "v2"


def test_a_classifier_is_a_language_model_with_an_adapter(tmp_path: Path, store_root: Path) -> None:
    """Its head lies in the adapter alone, which says what it is for."""
    tiny_causal_lm("llama", num_hidden_layers=1)[0].save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    adapted = save_adapter(tmp_path / "base", module, tmp_path / "lora", target_modules=["q_proj"], task_type="SEQ_CLS")
    model = QEFFAutoModel.from_pretrained(tmp_path / "lora", num_labels=3)
    assert model.task == "sequence-classification"
    with torch.no_grad():
        expected = adapted(TOKENS).logits
        torch.testing.assert_close(model.module(TOKENS).logits, expected, rtol=1e-4, atol=2e-4)
    assert model._source.unloaded() == frozenset()
    with pytest.raises(CheckpointError, match=r"holds score.weight \[3, 32\], and .* \[2, 32\].*give num_labels=3"):
        assert QEFFAutoModel.from_pretrained(tmp_path / "lora").module
    with pytest.raises(CheckpointError, match=r"is for a classifier \(task_type SEQ_CLS\)"):
        QEFFAutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora")


def test_an_adapter_on_the_hub(adapter: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Here it lies in the hub's cache."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "cache" / "models--org--lora"
    shutil.copytree(adapter, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    offline = {"cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    source = CheckpointSource(checkpoint, {"adapter": "org/lora", **offline})
    assert source.identity() == CheckpointSource(adapter, {}).identity()
    expected = CheckpointSource(adapter, {}).load("AutoModelForCausalLM").state_dict()
    assert all(
        torch.equal(value, expected[key]) for key, value in source.load("AutoModelForCausalLM").state_dict().items()
    )
    with pytest.raises(CheckpointError, match="org/none"):
        CheckpointSource(checkpoint, {"adapter": "org/none", **offline})
