"""A model that cannot be carried is refused by name, with the stage and the reason."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from qeff_framework.coverage.tiny import tiny_config
from qeff_framework.errors import ExportError, OptionError, UnsupportedModelError
from qeff_framework.export.portable import export_portable
from tests.tiny_models import tiny_causal_lm, tiny_encoder


def test_a_model_that_numbers_tokens_by_itself(tmp_path, monkeypatch):
    """Counted from the start of the step, tokens of a second chunk would be wrong without a word."""
    model, _ = tiny_causal_lm("llama")
    original = type(model.model.layers[0].mlp).forward

    def counting_from_one(self, hidden):
        return original(self, hidden) * torch.arange(1, hidden.shape[1] + 1)[None, :, None]

    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", counting_from_one)
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM.*numbers the tokens by their index in the step"):
        export_portable(model, task="causal-lm", output_dir=tmp_path)


def test_an_encoder_is_no_causal_lm(tmp_path):
    model = tiny_encoder("distilbert")

    with pytest.raises(UnsupportedModelError, match="DistilBertModel cannot be exported as causal-lm"):
        export_portable(model, task="causal-lm", output_dir=tmp_path)


def test_a_causal_lm_without_hidden_states_is_no_encoder(llama, tmp_path):
    with pytest.raises(
        UnsupportedModelError, match="LlamaForCausalLM cannot be exported as encoder.*last_hidden_state"
    ):
        export_portable(llama, task="encoder", output_dir=tmp_path)


def test_control_flow_on_data_names_the_stage_and_keeps_the_cause(tmp_path, monkeypatch):
    model, _ = tiny_causal_lm("llama")
    original = type(model.model.layers[0].mlp).forward

    def branching(self, hidden):
        return original(self, hidden) if hidden.sum() > 0 else hidden

    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", branching)
    with pytest.raises(
        UnsupportedModelError, match="LlamaForCausalLM.*the probe run failed: its forward branches on the contents"
    ) as caught:
        export_portable(model, task="causal-lm", output_dir=tmp_path)

    causes = []
    error = caught.value
    while (error := error.__cause__) is not None:
        causes.append(type(error).__name__)
    assert causes[0] == "UnsupportedModelError"
    assert len(causes) > 1, "the exception of the library is chained"


def test_something_that_is_no_transformers_model(tmp_path):
    with pytest.raises(UnsupportedModelError, match="Linear .*not a Transformers model"):
        export_portable(torch.nn.Linear(2, 2), task="encoder", output_dir=tmp_path)


def test_unknown_pooling_and_task(llama, tmp_path):
    with pytest.raises(OptionError, match="'maen' is unknown.*did you mean 'mean'"):
        export_portable(llama, task="encoder", output_dir=tmp_path, pooling="maen")
    with pytest.raises(OptionError, match="there is no task 'translation'"):
        export_portable(llama, task="translation", output_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_attention_with_a_tensor_that_has_no_op(tmp_path, monkeypatch):
    model, _ = tiny_causal_lm("llama")
    original = type(model.model.layers[0].self_attn).forward

    def with_extra(self, *arguments, **kwargs):
        return original(self, *arguments, **kwargs, relative_bias=torch.zeros(1))

    monkeypatch.setattr(type(model.model.layers[0].self_attn), "forward", with_extra)
    with pytest.raises(UnsupportedModelError, match="relative_bias"):
        export_portable(model, task="causal-lm", output_dir=tmp_path)


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        ("bert", "is_decoder", False),
        ("roformer", "is_decoder", False),
        ("gemma3_text", "use_bidirectional_attention", True),
        ("llama", "is_causal", False),
    ],
    ids=["mask over the step", "attention of its own", "windows in both directions", "mask over the cache"],
)
def test_a_decoder_that_looks_ahead(tmp_path, model_type, field, value):
    """Keys that depend on later tokens cannot be kept; Transformers computes other logits as soon as the text goes on."""
    config = tiny_config(model_type, "causal-lm")
    setattr(config, field, value)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert not torch.allclose(model(tokens).logits[:, :8], model(tokens[:, :8]).logits, atol=1e-3)

    with pytest.raises(UnsupportedModelError, match=rf"its attention is not causal \({field}={value} in its config\)"):
        export_portable(model, task="causal-lm", output_dir=tmp_path)


def test_a_mask_that_is_not_over_the_keys(tmp_path, monkeypatch):
    model, _ = tiny_causal_lm("llama")
    mask = torch.ones((1, 1, 3, 3), dtype=torch.bool)
    monkeypatch.setattr("transformers.models.llama.modeling_llama.create_causal_mask", lambda **_: mask)

    with pytest.raises(UnsupportedModelError, match="attention mask over 3 keys, and its attention reads 8"):
        export_portable(model, task="causal-lm", output_dir=tmp_path)


def test_auto_model_of_an_encoder_decoder_is_refused(tmp_path):
    config = AutoConfig.for_model("t5", vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)

    with pytest.raises((UnsupportedModelError, ExportError), match="T5Model cannot be exported as encoder"):
        export_portable(AutoModel.from_config(config), task="encoder", output_dir=tmp_path)
