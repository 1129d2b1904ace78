"""A layer is traced once for all that are alike, and each keeps its own weights and states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime as ort
import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from qeff_framework.coverage.sound import tiny_sound_model
from qeff_framework.export.portable import export_portable
from qeff_framework.seam.layers import LayerKinds, LayerRecorder
from tests.portable_loop import PortableLoop
from tests.tiny_models import tiny_causal_lm


def test_copies_compute_what_traced_layers_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the optimiser could make of the first layer's numbers, it must not make of the others'."""
    module = tiny_causal_lm("llama", attention_bias=True, num_hidden_layers=3)[0]
    with torch.no_grad():
        for name, parameter in module.model.layers.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_()
            if name.startswith("0.") and "bias" in name:
                parameter.zero_()
        module.model.layers[0].post_attention_layernorm.weight.copy_(module.model.layers[0].input_layernorm.weight)
    stamped = export_portable(module, task="causal-lm", output_dir=tmp_path / "stamped", use_onnx_subfunctions=True)
    monkeypatch.setattr(LayerRecorder, "kinds", lambda self: LayerKinds())
    traced = export_portable(module, task="causal-lm", output_dir=tmp_path / "traced")

    graphs = [onnx_ir.load(exported.model_path).graph for exported in (stamped, traced)]
    calls = [(node.op_type, node.name) for node in graphs[0] if node.domain == "qeff.layers"]
    # Equal weights are one: layer 0 reads one where the others read several, so that it is no call of their function.
    assert calls == [("Layer0", f"model.layers.{number}") for number in (1, 2)]
    assert any(str(node.name).startswith("model.layers.0/") for node in graphs[0])
    assert not any("LayerCall" in str(node.op_type) for node in graphs[0])
    assert stamped.inputs == traced.inputs
    assert stamped.states == traced.states
    positions = np.array([[0, 1, 2], [0, 1, -1]])
    loops = [PortableLoop(exported, batch_size=2, ctx_len=8) for exported in (stamped, traced)]
    for start in (0, 3):
        steps = [loop.step(np.array([[5, 6, 7], [8, 9, 0]]), positions + start * (positions >= 0)) for loop in loops]
        assert np.array_equal(*steps)
    for name, state in loops[0].states.items():
        assert state.any()
        assert np.array_equal(state, loops[1].states[name])


def test_layers_of_an_image_encoder_share_the_constants_that_their_code_makes(tmp_path: Path) -> None:
    """The mask of ones that stands for none is another tensor in each layer."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    vision = {**sizes, "num_hidden_layers": 3, "image_size": 8, "patch_size": 4}
    text = {
        **sizes,
        "num_hidden_layers": 1,
        "vocab_size": 9,
        "max_position_embeddings": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
        pixels = torch.randn(2, 3, 8, 8)
    exported = export_portable(
        module,
        task="zero-shot-image-classification",
        output_dir=tmp_path,
        program="image",
        program_inputs={"name": "pixel_values", "shape": (3, 8, 8)},
    )

    attentions = [node for node in onnx_ir.load(exported.model_path).graph if node.op_type == "Attention"]
    stack = "vision_model.encoder.layers"
    assert [str(node.name).partition("/")[0] for node in attentions] == [f"{stack}.{number}" for number in range(3)]
    (found,) = ort.InferenceSession(str(exported.model_path)).run(None, {"pixel_values": pixels.numpy()})
    with torch.no_grad():
        features = module.get_image_features(pixels).pooler_output
    np.testing.assert_allclose(found, torch.nn.functional.normalize(features).numpy(), rtol=1e-4, atol=1e-5)


def test_layers_of_a_model_of_sound_are_traced_once_and_see_no_padding(tmp_path: Path) -> None:
    """Each has convolutions over frames, and statistics of a batch normalisation, which are no parameters."""
    sizes = {"num_hidden_layers": 3, "conv_dim": (8,), "conv_stride": (40,), "conv_kernel": (40,)}
    module = tiny_sound_model("wav2vec2-conformer", "ctc", num_feat_extract_layers=1, **sizes)
    stack = "wav2vec2_conformer.encoder.layers"
    statistics = module.get_submodule(f"{stack}.0.conv_module.batch_norm").get_buffer("running_mean")
    assert not torch.equal(
        statistics, module.get_submodule(f"{stack}.1.conv_module.batch_norm").get_buffer("running_mean")
    )
    exported = export_portable(
        module,
        task="ctc",
        output_dir=tmp_path,
        program_inputs={"name": "input_values", "shape": (None,)},
    )

    norms = [node for node in onnx_ir.load(exported.model_path).graph if node.op_type == "BatchNormalization"]
    assert [str(node.name).partition("/")[0] for node in norms] == [f"{stack}.{number}" for number in range(3)]
    clips = torch.randn(2, 1600, generator=torch.Generator().manual_seed(0))
    mask = np.ones((2, 1600), np.int64)
    mask[1, 900:] = 0
    (found,) = ort.InferenceSession(str(exported.model_path)).run(
        None, {"input_values": clips.numpy(), "attention_mask": mask}
    )
    for row, length in enumerate((1600, 900)):
        with torch.no_grad():
            wanted = module(clips[row : row + 1, :length]).logits[0].numpy()
        np.testing.assert_allclose(found[row, : len(wanted)], wanted, atol=2e-3)
