"""The module that is handed in comes back as it was, whatever happens."""

from __future__ import annotations

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask

from qeff_framework.errors import ExportError
from qeff_framework.export import causal_lm
from qeff_framework.export.portable import export_portable
from tests.tiny_models import tiny_causal_lm


def snapshot(model: torch.nn.Module) -> dict[str, object]:
    return {
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "experts": model.config._experts_implementation,
        "training": model.training,
        "modules": {
            name: (id(module), type(module), sorted(vars(module)), len(module._forward_pre_hooks))
            for name, module in model.named_modules()
        },
        "tensors": {
            name: (id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad)
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        },
    }


def assert_registries_are_clean():
    assert ALL_MASK_ATTENTION_FUNCTIONS["eager"] is eager_mask
    assert ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is sdpa_mask


def test_after_an_export(tmp_path):
    model, _ = tiny_causal_lm("mixtral")
    model.train()
    before = snapshot(model)
    tokens = torch.tensor([[1, 2, 3]])
    expected = model(tokens).logits

    export_portable(model, task="causal-lm", output_dir=tmp_path)

    assert snapshot(model) == before
    assert torch.equal(model(tokens).logits, expected)
    assert_registries_are_clean()


@pytest.mark.parametrize("failing_step", ["probe", "trace", "translate"])
def test_after_a_failure(failing_step, tmp_path, monkeypatch):
    model, _ = tiny_causal_lm("llama")
    before = snapshot(model)
    original = getattr(causal_lm, failing_step)

    def fails_at_the_end(*arguments):
        original(*arguments)
        raise ValueError("no luck")

    monkeypatch.setattr(causal_lm, failing_step, fails_at_the_end)
    with pytest.raises(ExportError, match=r"LlamaForCausalLM cannot be exported as causal-lm.*ValueError: no luck"):
        export_portable(model, task="causal-lm", output_dir=tmp_path)

    assert snapshot(model) == before
    assert_registries_are_clean()
    assert list(tmp_path.iterdir()) == []
