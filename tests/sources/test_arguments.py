"""Keyword arguments of ``from_pretrained``: known ones are Transformers' own, and unknown ones fail at the door."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from qeff_framework import QEFFAutoModel, QEFFAutoModelForCausalLM, QEFFAutoModelForFeatureExtraction
from qeff_framework.errors import OptionError
from qeff_framework.sources import CheckpointSource
from qeff_framework.sources.arguments import KNOWN, REFUSED


def test_every_argument_of_transformers_loader_is_known() -> None:
    """Its signature, its docstring, and what it takes out of ``kwargs``."""
    from transformers import AutoModel, PreTrainedModel

    found: set[str] = set()
    for method in (PreTrainedModel.from_pretrained, AutoModel.from_pretrained):
        found |= set(inspect.signature(method).parameters)
        found |= set(re.findall(r"^ {12}(\w+) ?\(`", inspect.getdoc(method) or "", flags=re.MULTILINE))
        found |= set(re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(method)))
    found -= {"pretrained_model_name_or_path", "model_args", "kwargs"}
    found = {name for name in found if not name.startswith("_")}
    assert len(found) > 30
    assert found <= KNOWN | set(REFUSED)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"num_hidden_layer": 1}, "unknown argument 'num_hidden_layer', did you mean 'num_hidden_layers'"),
        ({"trust_remote_cod": True}, "did you mean 'trust_remote_code'"),
        ({"ctx_len": 32, "num_cores": 4}, r"'ctx_len'; unknown argument 'num_cores'; .*given to compile\(\)"),
        ({"to_dict": 1}, "unknown argument 'to_dict'"),
        ({"num_hidden_layers": "many"}, "does not take num_hidden_layers as given: .*many"),
        ({"dtype": "bfloat16"}, "the graph is float32"),
        ({"torch_dtype": {"text_config": "float16"}}, "the graph is float32"),
        ({"state_dict": {}, "tp_plan": "auto"}, "state_dict= cannot be given: .*tp_plan= cannot be given"),
        ({"config": "elsewhere"}, "config= takes a config"),
        ({"config": {"num_hidden_layers": 1}}, "config= is a dict and should be .*num_hidden_layers=1"),
        ({"generation_config": {"eos_token_id": 1}}, "generation_config= is a dict and should be a GenerationConfig"),
        ({"trust_remote_code": "false"}, "trust_remote_code='false' cannot be given: it is True or False"),
        ({"keep_quantized": 1, "use_safetensors": "no"}, "keep_quantized=1 cannot .*use_safetensors='no' cannot"),
        ({"pooling": "mean"}, "pooling= is for text encoders"),
    ],
)
def test_what_has_no_place_is_refused_at_the_door(checkpoint: Path, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(OptionError, match=f"{complaint}"):
        QEFFAutoModel.from_pretrained(checkpoint, **arguments)


def test_a_value_without_a_canonical_form_has_no_key(checkpoint: Path) -> None:
    with pytest.raises(OptionError, match="key_mapping= is a dict, which cannot be told"):
        CheckpointSource(checkpoint, {"key_mapping": {"^x": object()}}).identity()


def test_a_config_with_further_fields_is_refused(checkpoint: Path) -> None:
    """Transformers would hand them to the model's constructor."""
    from transformers import AutoConfig

    with pytest.raises(OptionError, match="unknown argument 'num_hidden_layers'"):
        CheckpointSource(checkpoint, {"config": AutoConfig.from_pretrained(checkpoint), "num_hidden_layers": 1})


def test_fields_of_the_config_are_replaced(checkpoint: Path, tmp_path: Path) -> None:
    model = QEFFAutoModelForCausalLM.from_pretrained(checkpoint, rms_norm_eps=0.5, eos_token_id=9)
    assert (model.config["rms_norm_eps"], model.config["eos_token_id"]) == (0.5, 9)
    assert model.module.config.rms_norm_eps == 0.5
    model._source.save_companions(tmp_path)
    assert '"rms_norm_eps": 0.5' in (tmp_path / "config.json").read_text()


def test_what_changes_nothing_makes_no_other_key(checkpoint: Path) -> None:
    import torch

    plain = CheckpointSource(checkpoint, {}).identity()
    without_effect = {
        "attn_implementation": "eager",
        "dtype": torch.float32,
        "torch_dtype": "float32",
        "device_map": "cpu",
        "trust_remote_code": True,
        "use_safetensors": True,
        "revision": "main",
        "token": "secret",
        "low_cpu_mem_usage": True,
        "ignore_mismatched_sizes": True,
        "experts_implementation": "eager",
        "local_files_only": True,
        "cache_dir": "elsewhere",
        "weights_only": True,
        "disable_mmap": True,
        "max_memory": {0: "1GB"},
        "config": None,
    }
    assert CheckpointSource(checkpoint, without_effect).load("AutoModelForCausalLM") is not None
    for name, value in without_effect.items():
        assert CheckpointSource(checkpoint, {name: value}).identity() == plain, name


def test_what_changes_the_result_makes_another_key(checkpoint: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    keys = [
        CheckpointSource(checkpoint, arguments).identity()
        for arguments in (
            {},
            {"num_attention_heads": 2},
            {"config": AutoConfig.from_pretrained(checkpoint, num_attention_heads=2)},
            {"generation_config": GenerationConfig(eos_token_id=7)},
            {"key_mapping": {"^x": "y"}},
        )
    ]
    assert all(keys.count(key) == 1 for key in keys)


def test_a_pooling_reaches_the_encoder(tmp_path: Path, store_root: Path) -> None:
    from tests.tiny_models import tiny_encoder

    tiny_encoder("bert", num_hidden_layers=1).save_pretrained(tmp_path / "bert")
    model = QEFFAutoModel.from_pretrained(tmp_path / "bert", pooling="cls")
    assert isinstance(model, QEFFAutoModelForFeatureExtraction)
    assert model.pooling == "cls"
