"""Weights that did not load are not hidden: missing, unexpected, mismatched, and quantised without scales."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qeff_framework import QEFFAutoModel
from qeff_framework.dialect.reference import quantized_matrix
from qeff_framework.errors import CheckpointError, UnsupportedModelError
from qeff_framework.sources import CheckpointSource
from tests.gguf_files import write_gguf
from tests.sources.conftest import change_json
from tests.tiny_models import tiny_causal_lm, tiny_encoder

Edit = Callable[[Callable[[dict[str, Any]], object]], Path]
PROJECTION = "model.layers.0.self_attn.q_proj"


def load(folder: Path, **arguments: Any) -> CheckpointSource:
    source = CheckpointSource(folder, arguments)
    source.load("AutoModelForCausalLM")
    return source


def test_a_whole_checkpoint(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = load(checkpoint)
    assert source.unloaded() == frozenset()
    assert source.notes() == ()


@pytest.mark.parametrize(
    ("fields", "stated"),
    [
        ({"num_hidden_layers": "2"}, "expected int, got str"),
        (
            {"hidden_act": "sillu"},
            "its config.json states hidden_act='sillu', which the installed Transformers does not know",
        ),
        ({"rope_parameters": {"rope_type": "ntk", "factor": 2.0}}, "states rope_parameters.rope_type='ntk', which"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": None}},
            "rope_parameters=.* has no rope_theta, the base of the rotary frequencies; give",
        ),
        ({"dtype": "float8"}, "dtype='float8' is no type of torch; write"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "4"}},
            "rope_parameters.factor='4' is a text; write the number",
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 8,
                    "factor": 4.0,
                    "short_factor": [1.0, 1.0, 1.0],
                    "long_factor": [2.0] * 4,
                }
            },
            "of its config.json, Transformers says: .*short_factor field must have length",
        ),
        ({"pad_token_id": 999}, r"pad_token_id=999 is no token of a vocabulary of vocab_size=\d+; write"),
        ({"quantization_config": "int4"}, "quantization_config='int4' is no object with a quant_method; write"),
        ({"quantization_config": {}}, "states a quantization_config without a quant_method"),
    ],
)
def test_a_config_that_transformers_does_not_take(fields: dict[str, Any], stated: str, checkpoint: Path) -> None:
    """Its own message has two lines, or the value alone."""
    change_json(checkpoint / "config.json", **fields)
    with pytest.raises(CheckpointError, match=f"tiny.*{stated}"):
        load(checkpoint)


def test_python_without_docstrings(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers reads its own docstrings when it imports the code of a model: no checkpoint is at fault."""
    change_json(checkpoint / "config.json", hidden_act="sillu")
    flags = SimpleNamespace(optimize=2)
    monkeypatch.setattr("qeff_framework.sources.checkpoint.sys", SimpleNamespace(flags=flags))
    with pytest.raises(CheckpointError, match="Python was started without docstrings .*PYTHONOPTIMIZE=2"):
        load(checkpoint)


def test_what_a_config_says_beside_the_model(checkpoint: Path) -> None:
    """A GPU's attention is no part of the graph, and one architecture may stand alone."""
    change_json(checkpoint / "config.json", architectures="LlamaForCausalLM", _attn_implementation="flash_attention_2")
    assert load(checkpoint).config()["architectures"] == ["LlamaForCausalLM"]
    load(checkpoint, attn_implementation="flash_attention_3")


def test_what_is_missing_is_known_by_name(edit_weights: Edit) -> None:
    """Whether it matters is decided by the graph, see ``tests/export/test_unloaded.py``."""
    source = load(edit_weights(lambda weights: weights.pop(f"{PROJECTION}.weight")))
    assert source.unloaded() == {f"{PROJECTION}.weight"}


def test_tied_weights_are_not_missing(tmp_path: Path, store_root: Path) -> None:
    tiny_causal_lm("llama", num_hidden_layers=1, tie_word_embeddings=True)[0].save_pretrained(tmp_path)
    assert load(tmp_path).unloaded() == frozenset()


def test_names_with_a_foreign_prefix(edit_weights: Edit, saved: Path) -> None:
    def rename(weights: dict[str, Any]) -> None:
        for key in list(weights):
            weights[f"_orig_mod.{key}"] = weights.pop(key)

    folder = edit_weights(rename)
    with pytest.raises(CheckpointError, match=r"no weight of LlamaForCausalLM.*begin with '_orig_mod\.'.*key_mapping"):
        load(folder)
    # What the message advises works.
    right = load(saved).load("AutoModelForCausalLM").state_dict()
    mapped = load(folder, key_mapping={r"^_orig_mod\.": ""}).load("AutoModelForCausalLM").state_dict()
    assert all(torch.equal(mapped[key], value) for key, value in right.items())


@pytest.mark.parametrize(
    "key",
    [
        *(f"{PROJECTION}.{name}" for name in ("weight_scale", "weight_zero_point", "input_scale", "scales", "SCB")),
        f"{PROJECTION}.weight.absmax",
        f"{PROJECTION}.bias",
        f"{PROJECTION}.lora_A.default.weight",
        "model.norm.bias",
        "lm_head.bias",
    ],
)
def test_what_stands_beside_a_loaded_weight_is_refused(edit_weights: Edit, key: str) -> None:
    folder = edit_weights(lambda weights: weights.update({key: torch.ones(1)}))
    with pytest.raises(CheckpointError, match=f"holds {key} beside weights"):
        load(folder)


def test_other_weights_too_many_are_a_warning(edit_weights: Edit) -> None:
    """A part that the model does not have, and scales of a quantised cache, change nothing about its own weights."""
    extra = {"vision.proj.weight": torch.ones(2, 2), "model.layers.0.self_attn.k_scale": torch.ones(1)}
    folder = edit_weights(lambda weights: weights.update(extra))
    (note,) = load(folder).notes()
    assert all(key in note for key in extra)


def test_buffers_that_old_checkpoints_hold_are_no_matter(tmp_path: Path, store_root: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_causal_lm("gpt2", n_layer=1)[0].save_pretrained(tmp_path)
    weights = {
        key.removeprefix("transformer."): value for key, value in load_file(tmp_path / "model.safetensors").items()
    }
    mask = torch.ones(1, 1, 256, 256, dtype=torch.uint8)
    save_file({**weights, "h.0.attn.bias": mask}, tmp_path / "model.safetensors", {"format": "pt"})
    source = load(tmp_path)
    assert (source.unloaded(), source.notes()) == (frozenset(), ())


def test_a_weight_of_another_shape(edit_weights: Edit) -> None:
    folder = edit_weights(lambda weights: weights.update({f"{PROJECTION}.weight": torch.ones(31, 32)}))
    with pytest.raises(CheckpointError, match=rf"{PROJECTION}\.weight is \[31, 32\] in the checkpoint and \[32, 32\]"):
        load(folder)
    assert load(folder, ignore_mismatched_sizes=True).unloaded() == {f"{PROJECTION}.weight"}


@pytest.fixture
def silent_transformers() -> Iterator[None]:
    """The user wants no warnings of Transformers; some of its errors refer to them."""
    library = logging.getLogger("transformers")
    before = library.level
    library.setLevel(logging.CRITICAL)
    yield
    left = library.level
    library.setLevel(before)
    assert left == logging.CRITICAL


@pytest.mark.usefixtures("silent_transformers")
def test_weights_that_the_loader_puts_together(tmp_path: Path, store_root: Path) -> None:
    """The experts of Mixtral are one tensor each in the file, and one for all in the module."""
    from safetensors.torch import load_file, save_file

    tiny_causal_lm("mixtral", num_hidden_layers=1)[0].save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    assert load(tmp_path).unloaded() == frozenset()
    expert = next(key for key in whole if "experts.1.w2" in key)
    for changed, complaint in (
        (
            {key: value for key, value in whole.items() if key != expert},
            rf"experts\.down_proj is \[3, .*; its files do not hold {re.escape(expert)}, but others of that kind: download",
        ),
        (
            {key: value for key, value in whole.items() if key != expert.replace("w2", "w1")},
            rf"gate_up_proj cannot be made .*: Sizes of tensors must match .* hold {re.escape(expert.replace('w2', 'w1'))}, but",
        ),
        ({**whole, expert: whole[expert][:-1].contiguous()}, r"experts\.down_proj cannot be made .*equal size"),
        ({**whole, expert: whole[expert].to(torch.int8)}, "as numbers of type I8"),
    ):
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(CheckpointError, match=complaint):
            load(tmp_path)


def test_integers_in_a_file_of_torch(checkpoint: Path) -> None:
    module = tiny_causal_lm("llama", num_hidden_layers=1)[0]
    states = {**module.state_dict(), f"{PROJECTION}.weight": torch.ones(32, 32, dtype=torch.int8)}
    (checkpoint / "model.safetensors").unlink()
    torch.save(states, checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"{PROJECTION}\.weight as numbers of type int8"):
        load(checkpoint)


def test_the_file_of_a_training_run(checkpoint: Path) -> None:
    """Transformers loads nothing of it and gives random numbers."""
    state = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save({"state_dict": state, "epoch": 3}, checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"torch.load\(file, weights_only=True\)\['state_dict'\] into a file"):
        load(checkpoint)


def test_files_that_change_while_they_are_read(
    checkpoint: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key was made for other contents."""
    model = QEFFAutoModel.from_pretrained(checkpoint)
    loaded = CheckpointSource.load_for_export

    def load_and_overwrite(source: CheckpointSource, auto_class: str, directory: Path) -> torch.nn.Module:
        module = loaded(source, auto_class, directory)
        (checkpoint / "generation_config.json").write_text("{}")
        return module

    monkeypatch.setattr(CheckpointSource, "load_for_export", load_and_overwrite)
    with pytest.raises(CheckpointError, match="changed while they were read"):
        model.export()
    assert not list((store_root / "exports").glob("*"))


def test_zeros_are_told(edit_weights: Edit) -> None:
    """What a download that was cut leaves where the file's space was reserved."""
    folder = edit_weights(lambda weights: weights[f"{PROJECTION}.weight"].zero_())
    (note,) = load(folder).notes()
    assert f"nothing but zeros for {PROJECTION}.weight" in note


def test_the_base_of_a_model_with_a_head(tmp_path: Path, store_root: Path) -> None:
    """The names of the file and of the module differ by the prefix of the base model."""
    from transformers import BertForMaskedLM

    config = tiny_encoder("bert", num_hidden_layers=1).config
    BertForMaskedLM(config).save_pretrained(tmp_path)
    source = CheckpointSource(tmp_path, {})
    source.load("AutoModel")
    assert source.unloaded() == {"pooler.dense.weight", "pooler.dense.bias"}
    (note,) = source.notes()
    assert "cls.predictions.bias" in note


# --- quantised --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", [{"quant_method": "someone", "quant_algo": "FP8"}, {"bits": 4}])
def test_an_unknown_quantisation_is_refused(checkpoint: Path, stated: dict[str, object]) -> None:
    change_json(checkpoint / "config.json", quantization_config=stated)
    with pytest.raises(CheckpointError, match="which the installed Transformers does not know"):
        load(checkpoint)


def test_float8_weights_are_scaled(checkpoint: Path, edit_weights: Edit) -> None:
    wanted: dict[str, torch.Tensor] = {}

    def quantise(weights: dict[str, Any]) -> None:
        for key in [key for key in weights if key.endswith("proj.weight")]:
            scale = weights[key].abs().max() / 448
            weights[key] = (weights[key] / scale).to(torch.float8_e4m3fn)
            wanted[key] = weights[key].float() * scale
            rows, columns = (-(-size // 128) for size in weights[key].shape)
            weights[f"{key}_scale_inv"] = scale.expand(rows, columns).contiguous()

    edit_weights(quantise)
    stated = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    change_json(checkpoint / "config.json", quantization_config=stated)
    source = load(checkpoint)
    loaded = source.load("AutoModelForCausalLM").state_dict()
    assert source.notes() == ()
    assert wanted
    assert all(torch.allclose(loaded[key], value, atol=1e-6) for key, value in wanted.items())


def test_the_advice_for_float8_can_be_followed() -> None:
    """A cast to float32 would leave the scales behind."""
    from qeff_framework.sources.configs import checked_module

    module = torch.nn.Linear(2, 2, bias=False)
    module.weight = torch.nn.Parameter(torch.ones(2, 2).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="float8_e4m3fn.*they are quantised: .*dequantize=True"):
        checked_module(module)
    with pytest.raises(UnsupportedModelError, match="load it with dtype=torch.float32"):
        checked_module(torch.nn.Linear(2, 2, dtype=torch.bfloat16))


# --- GGUF -------------------------------------------------------------------------------------------------------------


def test_a_gguf_file(tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, decoy = (tiny_causal_lm("llama", seed, num_hidden_layers=1)[0] for seed in (0, 1))
    file = write_gguf(tmp_path / "a.gguf", module)
    (tmp_path / "elsewhere").mkdir()
    write_gguf(tmp_path / "elsewhere" / "a.gguf", decoy)
    # The loader would look for the bare name in the working directory first.
    monkeypatch.chdir(tmp_path / "elsewhere")
    source = load(file)
    assert source.unloaded() == frozenset()
    loaded: Any = source.load("AutoModelForCausalLM")
    assert torch.equal(loaded.lm_head.weight, module.lm_head.weight)

    partial = write_gguf(tmp_path / "b.gguf", module, without=f"{PROJECTION}.weight")
    assert load(partial).unloaded() == {f"{PROJECTION}.weight"}


def test_every_type_of_gguf(tmp_path: Path, store_root: Path) -> None:
    """A matrix of each type that the gguf package decodes, with any bytes whose scales are numbers."""
    import gguf
    import numpy as np

    #: For files of llama.cpp that no model is published in.
    unused = {"NVFP4"}
    kinds = [kind for kind in gguf.GGMLQuantizationType if kind.name not in unused and _is_decoded(kind)]
    assert {"F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ4_XS", "IQ1_M"} <= {
        kind.name for kind in kinds
    }
    parts = ("self_attn.v", "mlp.gate", "mlp.up", "mlp.down")
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": -(-len(kinds) // len(parts))}
    module = tiny_causal_lm("llama", **sizes)[0]
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    names = [f"model.layers.{layer}.{part}_proj.weight" for layer in range(len(kinds)) for part in parts]
    generator = np.random.default_rng(0)
    packed, wanted = {}, {}
    for kind, key in zip(kinds, names, strict=False):
        elements, width = gguf.GGML_QUANT_SIZES[kind]
        content = generator.integers(0, 60, (shapes[key][0], 256 // elements * width), dtype=np.uint8)
        packed[key] = content, kind
        wanted[key] = torch.from_numpy(gguf.quants.dequantize(content, kind).astype(np.float32))
        assert torch.isfinite(wanted[key]).all()
        assert wanted[key].abs().max() > 0
    loaded = load(write_gguf(tmp_path / "a.gguf", module, packed=packed)).load("AutoModelForCausalLM").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in wanted.items())


def test_blocks_of_a_gguf_file_that_are_kept(tmp_path: Path, store_root: Path) -> None:
    """Rows of queries and keys stand in another order in the file than in the module."""
    import gguf
    import numpy as np

    module = tiny_causal_lm("llama", num_hidden_layers=1, intermediate_size=64)[0]
    kinds = {"self_attn.q": "Q4_0", "self_attn.k": "Q8_0", "mlp.up": "Q5_0", "mlp.down": "Q4_1"}
    packed = {}
    for part, kind in kinds.items():
        key = f"model.layers.0.{part}_proj.weight"
        packed[key] = (
            gguf.quants.quantize(module.state_dict()[key].numpy(), gguf.GGMLQuantizationType[kind]),
            gguf.GGMLQuantizationType[kind],
        )
    file = write_gguf(tmp_path / "a.gguf", module, packed=packed)
    source = CheckpointSource(file, {"keep_quantized": True})
    kept = source.packed_matrices(source.load_for_export("AutoModelForCausalLM", tmp_path))
    loaded = load(file).load("AutoModelForCausalLM")
    assert {name: matrix.bits for name, matrix in kept.items()} == {
        "model.layers.0.self_attn.q_proj.weight": 4,
        "model.layers.0.self_attn.k_proj.weight": 8,
        "model.layers.0.mlp.up_proj.weight": 8,
    }
    for name, matrix in kept.items():
        numbers = quantized_matrix(*matrix.read(), bits=matrix.bits, input_size=matrix.shape[1])
        np.testing.assert_array_equal(numbers.T, loaded.state_dict()[name].numpy())
    query = next(iter(packed))
    stored = torch.from_numpy(gguf.quants.dequantize(*packed[query]))
    assert not torch.equal(stored, loaded.state_dict()[query])


def _is_decoded(kind: Any) -> bool:
    import gguf
    import numpy as np

    elements, width = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, 256 // elements * width), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.04, 0.5, 0.9999])
def test_a_gguf_file_that_was_cut(tmp_path: Path, store_root: Path, kept: float) -> None:
    file = write_gguf(tmp_path / "a.gguf", tiny_causal_lm("llama", num_hidden_layers=1)[0])
    config = dict(CheckpointSource(file, {}).config())
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"a\.gguf .*(empty|cut|no GGUF file).*again"):
        load(file)
    assert config["model_type"] == "llama"
