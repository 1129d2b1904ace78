"""What the header of a GGUF file says about the model's arithmetic: in the logits, in the config, or refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from qeff_framework.auto.feature_extraction import QEFFAutoModelForFeatureExtraction
from qeff_framework.errors import CheckpointError, UnsupportedModelError
from qeff_framework.sources import CheckpointSource
from qeff_framework.sources.gguf_metadata import complete_config, refuse_unknown_split
from tests.gguf_files import write_file, write_gguf
from tests.tiny_models import tiny_causal_lm

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def as_llama_cpp_has_it(module: Any) -> Any:
    """The module with the rows of queries and keys in the order that files have them in."""
    turned = copy.deepcopy(module)
    for layer in turned.model.layers:
        for matrix, heads in ((layer.self_attn.q_proj, 4), (layer.self_attn.k_proj, 2)):
            weight = matrix.weight.data
            matrix.weight.data = (
                weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()
            )
    return turned


def factors_of_llama3(size: int, base: float, original: int) -> np.ndarray[Any, Any]:
    """What the converter of llama.cpp writes for `LLAMA3`."""
    found = []
    for pair in range(size // 2):
        length = 2 * math.pi * base ** (2 * pair / size)
        share = min(max((original / length - 1) / 3, 0.0), 1.0)
        found.append(1 / ((1 - share) / 8 + share))
    return np.asarray(found, np.float32)


def say_linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def say_yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(16)


def say_llama3(original: int) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_tensor("rope_freqs.weight", factors_of_llama3(8, 10000.0, original))


@pytest.mark.parametrize(
    ("rope", "say"),
    [
        ({"rope_type": "linear", "factor": 4.0}, say_linear),
        (YARN, say_yarn),
        # One wave between those that are kept and those that are lengthened, none, and one.
        *(({**LLAMA3, "original_max_position_embeddings": size}, say_llama3(size)) for size in (127, 400, 2000)),
    ],
    ids=["linear", "yarn", "llama3-apart", "llama3-one", "llama3"],
)
def test_scaled_positions_are_those_of_the_model(
    rope: Mapping[str, Any], say: Callable[[gguf.GGUFWriter], None], tmp_path: Path, store_root: Path
) -> None:
    """Transformers reads none of it, and computes other logits without a word."""
    module = tiny_causal_lm("llama", num_hidden_layers=1, rope_parameters={"rope_theta": 10000.0, **rope})[0].eval()
    file = write_gguf(tmp_path / "a.gguf", as_llama_cpp_has_it(module), say=say)
    plain = write_gguf(tmp_path / "plain.gguf", as_llama_cpp_has_it(module))
    ids = torch.arange(4, 44)[None]
    with torch.no_grad():
        wanted = module(ids).logits
        found = CheckpointSource(file, {}).load("AutoModelForCausalLM")(ids).logits
        unscaled = CheckpointSource(plain, {}).load("AutoModelForCausalLM")(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (unscaled - wanted).abs().max() > 1e-2


def test_of_gemma_3_only_the_layers_without_a_window_are_scaled(tmp_path: Path) -> None:
    """Those of 4 B parameters and more; that of 27 B divides by another root, which llama.cpp knows by its layers."""

    def say(writer: gguf.GGUFWriter) -> None:
        say_linear(writer)
        writer.add_sliding_window(7)
        writer.add_final_logit_softcapping(30.0)

    config = transformers.Gemma3TextConfig(num_hidden_layers=62, hidden_size=5376, num_attention_heads=32, head_dim=128)
    complete_config(config, write_file(tmp_path / "a.gguf", "gemma3", say))
    assert config.rope_parameters["full_attention"]["factor"] == 4.0
    assert config.rope_parameters["sliding_attention"]["rope_type"] == "default"
    assert (config.sliding_window, config.final_logit_softcapping, config.query_pre_attn_scalar) == (7, 30.0, 168)


def test_long_factors_windows_and_parts_of_heads(tmp_path: Path) -> None:
    def say(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_dimension_count(24)
        writer.add_sliding_window(9)
        writer.add_rope_scaling_orig_ctx_len(64)
        writer.add_rope_scaling_attn_factors(1.25)
        for name, value in (("long", 3.0), ("short", 2.0)):
            writer.add_tensor(f"rope_factors_{name}.weight", np.full(12, value, np.float32))

    config = transformers.Phi3Config(
        hidden_size=128, num_attention_heads=4, max_position_embeddings=256, pad_token_id=0
    )
    complete_config(config, write_file(tmp_path / "a.gguf", "phi3", say))
    rope = config.rope_parameters
    assert (rope["rope_type"], rope["long_factor"][0], rope["short_factor"][0]) == ("longrope", 3.0, 2.0)
    assert (rope["original_max_position_embeddings"], rope["attention_factor"]) == (64, 1.25)
    assert (rope["partial_rotary_factor"], config.sliding_window) == (0.75, 9)


@pytest.mark.parametrize(("is_gated", "activation"), [(True, "gelu_new"), (False, "relu")])
def test_t5_has_the_activation_that_goes_with_its_gates(tmp_path: Path, *, is_gated: bool, activation: str) -> None:
    """Transformers reads every T5 as gated by ReLU, which none is: Flan-T5 writes other text, T5 lacks half of its weights."""

    def say(writer: gguf.GGUFWriter) -> None:
        for part in ("ffn_up", "ffn_gate") if is_gated else ("ffn_up",):
            writer.add_tensor(f"enc.blk.0.{part}.weight", np.zeros((4, 4), np.float32))

    config = transformers.T5Config(is_gated_act=True, tie_word_embeddings=False)
    complete_config(config, write_file(tmp_path / "a.gguf", "t5", say))
    remembered = transformers.T5Config.from_dict(config.to_dict())
    for each in (config, remembered):
        assert (each.is_gated_act, each.dense_act_fn, each.scale_decoder_outputs) == (is_gated, activation, False)


def test_a_window_of_nothing_is_no_window(tmp_path: Path) -> None:
    """A converter writes 0 for what a model has not; as a size it would hide every token, as a bound every score."""

    def say(writer: gguf.GGUFWriter) -> None:
        writer.add_sliding_window(0)
        writer.add_final_logit_softcapping(0.0)

    config = transformers.Gemma2Config(num_hidden_layers=2)
    complete_config(config, write_file(tmp_path / "a.gguf", "gemma2", say))
    assert (config.sliding_window, config.final_logit_softcapping) == (None, None)


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (
            lambda w: w.add_logit_scale(0.5),
            r"llama\.logit_scale is 0\.5, for which the config of model_type 'llama' has no field",
        ),
        (
            lambda w: w.add_float32("llama.attention.novel", 1.0),
            r"llama\.attention\.novel is 1\.0, which is unknown here",
        ),
        (lambda w: w.add_sliding_window(8), r"sliding_window is 8, for which the config"),
        (lambda w: w.add_key_length(16), r"key_length is 16, and a head of the model has 8 numbers"),
        (lambda w: w.add_rope_scaling_yarn_log_mul(0.1), r"rope\.scaling\.yarn_log_multiplier is 0\.1"),
        (
            lambda w: w.add_tensor("rope_freqs.weight", np.asarray([1, 3, 2, 9], np.float32)),
            r"factors that are of no rule",
        ),
        (lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(32, np.float32)), r"no place for: blk\.0\.attn_q\.bias"),
        (lambda w: w.add_string("llama.logit_scale", "x"), r"the metadata of .*a\.gguf is damaged: "),
        (lambda w: w.add_uint16("split.count", 2), r"part 1 of 2 of a model; join the parts"),
        (lambda w: w.add_type("adapter"), r"no model but a part of one \('adapter'\)"),
    ],
)
def test_what_cannot_be_carried_is_refused(
    say: Callable[[Any], None], message: str, tmp_path: Path, store_root: Path
) -> None:
    module = tiny_causal_lm("llama", num_hidden_layers=1)[0]
    file = write_gguf(tmp_path / "a.gguf", module, say=say)
    with pytest.raises(CheckpointError, match=message):
        CheckpointSource(file, {}).load("AutoModelForCausalLM")


def test_a_model_without_attention(tmp_path: Path) -> None:
    """Converters say 0 heads of Mamba; FalconMamba, with norms of its own, calls itself Mamba as well."""

    def say(writer: gguf.GGUFWriter) -> None:
        writer.add_head_count(0)
        writer.add_layer_norm_rms_eps(1e-3)
        writer.add_ssm_state_size(16)
        writer.add_ssm_dt_b_c_rms(False)

    config = transformers.MambaConfig()
    complete_config(config, write_file(tmp_path / "a.gguf", "mamba", say))
    assert config.layer_norm_epsilon == pytest.approx(1e-3)
    falcon = write_file(tmp_path / "b.gguf", "mamba", lambda writer: writer.add_ssm_dt_b_c_rms(True))
    with pytest.raises(CheckpointError, match=r"mamba\.ssm\.dt_b_c_rms is True"):
        complete_config(config, falcon)


def test_a_field_that_the_user_gives_stays(tmp_path: Path, store_root: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf", tiny_causal_lm("llama", num_hidden_layers=1)[0], say=say_linear)
    own = {"rope_theta": 500.0, "rope_type": "default"}
    assert CheckpointSource(file, {"rope_parameters": own}).config()["rope_parameters"] == own


def test_embeddings_are_pooled_as_the_file_says(tmp_path: Path, store_root: Path) -> None:
    """llama.cpp does it; without, an embedding model gave the vector of each token."""
    kinds = gguf.PoolingType
    module = tiny_causal_lm("llama", num_hidden_layers=1)[0]
    for kind, pooling in ((None, None), (kinds.NONE, None), (kinds.MEAN, "mean"), (kinds.CLS, "cls"), (3, "lasttoken")):
        file = write_gguf(
            tmp_path / f"{kind}.gguf",
            module,
            say=lambda writer, kind=kind: None if kind is None else writer.add_uint32("llama.pooling_type", int(kind)),
        )
        assert QEFFAutoModelForFeatureExtraction(CheckpointSource(file, {})).pooling == pooling
    file = write_gguf(tmp_path / "rank.gguf", module, say=lambda writer: writer.add_uint32("llama.pooling_type", 4))
    with pytest.raises(UnsupportedModelError, match=r"llama\.pooling_type = 4.*give pooling="):
        QEFFAutoModelForFeatureExtraction(CheckpointSource(file, {}))
    assert QEFFAutoModelForFeatureExtraction(CheckpointSource(file, {}), pooling="cls").pooling == "cls"


@pytest.mark.parametrize(("rule", "is_known"), [("qwen2", True), ("gpt-2", True), ("deepseek-coder", False)])
def test_a_vocabulary_that_splits_text_by_an_unknown_rule_gives_no_tokenizer(
    rule: str, is_known: bool, tmp_path: Path, store_root: Path
) -> None:
    """Transformers splits it as GPT-2 does: other ids without a word."""

    def say(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(rule)

    file = write_file(tmp_path / "a.gguf", "llama", say)
    if is_known:
        refuse_unknown_split(file)
    else:
        with pytest.raises(
            CheckpointError, match="splits text by the rule 'deepseek-coder', which the installed Transformers"
        ):
            refuse_unknown_split(file)
