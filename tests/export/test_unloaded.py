"""A graph that reads a weight which the checkpoint did not hold is refused; one that does not is as good as ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qeff_framework import QEFFAutoModel
from qeff_framework.contracts import Task
from qeff_framework.errors import CheckpointError
from qeff_framework.export.image_and_text import image_and_text_graph
from qeff_framework.export.portable import export_portable
from qeff_framework.export.portable_graph import GraphRequest
from qeff_framework.export.unloaded import refuse_unloaded, tracking_unloaded
from tests.image_models import clip_of_words, resnet
from tests.tiny_models import tiny_causal_lm, tiny_classifier, tiny_encoder, tiny_seq2seq_lm

LAYER = {"num_hidden_layers": 1}


def causal_lm(**fields: Any) -> Any:
    return tiny_causal_lm("llama", **LAYER, **fields)[0]


@pytest.mark.parametrize(
    ("task", "build", "unloaded"),
    [
        ("causal-lm", causal_lm, ["model.layers.0.mlp.down_proj.weight", "model.norm.weight"]),
        # Biases are initialised to zeros, which the optimiser would drop.
        ("sequence-classification", lambda: tiny_classifier("bert"), ["bert.pooler.dense.bias", "classifier.bias"]),
        (
            "seq2seq-lm",
            lambda: tiny_seq2seq_lm("t5", num_layers=1, num_decoder_layers=1),
            ["decoder.block.0.layer.1.EncDecAttention.k.weight"],
        ),
    ],
)
def test_what_reaches_the_graph_is_named(
    task: Task, build: Callable[[], Any], unloaded: list[str], tmp_path: Path
) -> None:
    module = build()
    for name in unloaded:
        if name.endswith("bias"):
            module.get_parameter(name).data.zero_()
    with pytest.raises(CheckpointError, match=f"holds no {', '.join(unloaded)}, "):
        export_portable(module, task=task, output_dir=tmp_path / "export", unloaded=frozenset(unloaded))
    assert not (tmp_path / "export").exists()


def test_one_tensor_with_two_names() -> None:
    """It stands in the graph under one of them."""
    import onnx_ir

    module = causal_lm(tie_word_embeddings=True)
    weight = onnx_ir.Value(name="model.embed_tokens.weight", const_value=onnx_ir.tensor([0.0]))
    node = onnx_ir.Node("", "Identity", [weight])
    graph = onnx_ir.Graph([], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 18})
    model = onnx_ir.Model(graph, ir_version=10)
    refuse_unloaded(model, module, frozenset({"model.norm.weight"}))
    with pytest.raises(CheckpointError, match=r"holds no lm_head\.weight"):
        refuse_unloaded(model, module, frozenset({"lm_head.weight"}))


def test_a_buffer(tmp_path: Path) -> None:
    """Buffers are folded into constants where nothing keeps them apart."""
    sizes = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0}
    lora = {"q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    module = tiny_causal_lm("deepseek_v3", **LAYER, **sizes, **lora, moe_intermediate_size=16)[0]
    buffer = "model.layers.0.mlp.gate.e_score_correction_bias"
    assert buffer in module.state_dict()
    with pytest.raises(CheckpointError, match=f"holds no {buffer}"):
        export_portable(module, task="causal-lm", output_dir=tmp_path, unloaded=frozenset({buffer}))


@pytest.mark.parametrize("state", ["running_var", "weight"])
def test_a_batch_norm_that_became_part_of_its_convolution(state: str, tmp_path: Path) -> None:
    """Its states have no names in the finished graph."""
    unloaded = f"resnet.embedder.embedder.normalization.{state}"
    module = resnet()[0]
    pixels = {"name": "pixel_values", "shape": (3, 32, 32)}
    with pytest.raises(CheckpointError, match=f"holds no {unloaded}, "):
        export_portable(
            module,
            task="image-classification",
            output_dir=tmp_path,
            unloaded=frozenset({unloaded}),
            program_inputs=pixels,
        )


def test_numbers_that_are_no_part_of_the_graph() -> None:
    """The temperature of an image and text model is multiplied on the host."""
    module, request = clip_of_words()[0], GraphRequest(program="image")
    with tracking_unloaded({"logit_scale"}), pytest.raises(CheckpointError, match="holds no logit_scale, "):
        image_and_text_graph(module, request)


def test_a_pooler_that_nobody_asks_for(tmp_path: Path, session_store: Path) -> None:
    import onnx_ir
    from safetensors.torch import load_file, save_file

    tiny_encoder("bert", **LAYER).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith("pooler.")}
    assert len(kept) == len(weights) - 2
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    model = onnx_ir.load(QEFFAutoModel.from_pretrained(tmp_path).export().model_path)
    names = set(model.graph.initializers)
    assert "embeddings.word_embeddings.weight" in names
    assert not any("pooler" in name for name in names)


def test_a_head_that_was_never_trained(tmp_path: Path, store_root: Path) -> None:
    """A base model whose config claims a classifier: nothing is published."""
    tiny_encoder("bert", **LAYER).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="holds no classifier.bias, classifier.weight"):
        QEFFAutoModel.from_pretrained(tmp_path).export()
    assert not list((store_root / "exports").glob("*"))
