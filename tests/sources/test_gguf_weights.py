"""GGUF files whose weights are not read: each is what Transformers makes of the file, tensor by tensor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import modeling_gguf_pytorch_utils as library

from qeff_framework.artifacts import content_digest
from qeff_framework.errors import CheckpointError
from qeff_framework.seam.deferred import (
    ComputedTensor,
    DeferredTensor,
    StoredTensor,
    beginnings,
    pieces,
    without_casts,
)
from qeff_framework.sources import CheckpointSource
from qeff_framework.sources.gguf_header import GGUFHeader, quick_reading
from qeff_framework.sources.gguf_weights import deferring_gguf, loading_gguf
from tests.gguf_files import finish, write_gguf
from tests.tiny_models import tiny_causal_lm

AUTO = "AutoModelForCausalLM"
Type = gguf.GGMLQuantizationType


def write_blocks(path: Path, architecture: str, model: Any) -> Path:
    """A random tensor of blocks, or of plain numbers, for each that Transformers expects of the model; values as it wants them."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", config.num_attention_heads))
    writer.add_token_list([f"w{number}" for number in range(config.vocab_size)])
    processor = library.TENSOR_PROCESSORS.get(architecture, library.TensorProcessor)(config=config.to_dict())
    generator = np.random.default_rng(0)
    shapes = {name: tuple(state.shape) for name, state in model.state_dict().items()}
    for name, key in library.get_gguf_hf_weights_map(model, processor).items():
        shape = shapes[key]
        if architecture == "gpt2" and len(shape) == 2 and "embd" not in name and name != "output.weight":
            shape = shape[::-1]
        if name.endswith(("ffn_gate_exps", "ffn_up_exps")):
            shape = (shape[0], shape[1] // 2, shape[2])
        numbers = generator.standard_normal(shape).astype(np.float32)
        kind = Type.F32 if len(shape) == 1 or shape[-1] % 32 else Type.Q8_0
        # Names of experts come without the suffix that files have.
        written = f"{name}.weight" if name.endswith("_exps") else name
        writer.add_tensor(written, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    finish(writer)
    return path


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [("llama", "llama"), ("gemma3", "gemma3_text"), ("gpt2", "gpt2"), ("qwen3moe", "qwen3_moe")],
)
def test_each_weight_is_what_transformers_makes_of_it(architecture: str, model_type: str, tmp_path: Path) -> None:
    """Rows in another order, norms less one, transposed matrices, and experts joined from two tensors."""
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 64}
    model = tiny_causal_lm(model_type, **({} if model_type == "gpt2" else sizes))[0]
    file = write_blocks(tmp_path / "a.gguf", architecture, model)
    wanted = library.load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]

    with deferring_gguf(file, file):
        found = library.load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    assert set(found) == set(wanted)
    assert len(wanted) > 10
    for name, tensor in wanted.items():
        assert isinstance(found[name], DeferredTensor)
        assert torch.equal(found[name].float().materialise(), tensor), name
        assert torch.equal(torch.cat(list(pieces(found[name].float(), 512))), tensor), name
    with loading_gguf():
        loaded = library.load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    assert {name: tensor.dtype for name, tensor in loaded.items()} == dict.fromkeys(wanted, torch.float32)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in wanted.items())
    kinds = {type(tensor.recipe) for tensor in found.values()}
    assert ComputedTensor in kinds


def test_blocks_that_a_graph_cannot_refer_to_are_read_where_they_lie(tmp_path: Path, store_root: Path) -> None:
    module = tiny_causal_lm("llama", num_hidden_layers=1, intermediate_size=64)[0]
    generator = np.random.default_rng(0)
    packed = {}
    for key, state in module.state_dict().items():
        if state.dim() > 1:
            # A float16 scale, and 32 levels of 4 bits.
            blocks = generator.integers(0, 256, (len(state), state.shape[1] // 32, 18), dtype=np.uint8)
            blocks[..., 1] = 40
            packed[key] = (blocks.reshape(len(state), -1), Type.IQ4_NL)
    file = write_gguf(tmp_path / "a.gguf", module, packed=packed)
    (directory := tmp_path / "export").mkdir()

    source = CheckpointSource(file, {})
    deferred = dict(source.load_for_export(AUTO, directory).named_parameters())
    assert all(isinstance(parameter, DeferredTensor) for parameter in deferred.values())
    for name, parameter in CheckpointSource(file, {}).load(AUTO).named_parameters():
        assert torch.equal(deferred[name].materialise(), parameter), name  # type: ignore[operator]
    assert [path.name for path in directory.iterdir()] == ["tokenizer"]
    assert not source.keep_weights(())
    os.utime(file, ns=(0, 0))
    with pytest.raises(CheckpointError, match=r"a\.gguf of a changed while it was exported"):
        source.keep_weights(())


def test_an_export_of_plain_numbers_has_the_file(tmp_path: Path, store_root: Path) -> None:
    """llama.cpp writes the rows of queries and keys in another order; all other weights can be referred to."""
    module = tiny_causal_lm("llama", num_hidden_layers=1)[0]
    states = module.state_dict()
    halves = {name: (state.half().numpy(), Type.F16) for name, state in states.items() if state.dim() == 2}
    file = write_gguf(tmp_path / "a.gguf", module, packed=halves)
    (directory := tmp_path / "export").mkdir()

    source = CheckpointSource(file, {})
    deferred: Any = dict(source.load_for_export(AUTO, directory).named_parameters(remove_duplicate=False))
    assert (directory / "a.gguf").samefile(file)
    stored = {name for name in deferred if isinstance(without_casts(deferred[name].recipe), StoredTensor)}
    assert {*deferred} - stored == {f"model.layers.0.self_attn.{side}_proj.weight" for side in "qk"}
    for name in {*stored} & {*halves}:
        assert torch.equal(deferred[name].materialise(), states[name].half().float())
        assert [leaf.path for leaf in beginnings(deferred[name].recipe)] == [directory / "a.gguf"]  # type: ignore[union-attr]
    assert source.keep_weights({"a.gguf"}) == {"a.gguf": content_digest(file)}


def test_the_header_is_that_of_the_package(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf", tiny_causal_lm("llama", num_hidden_layers=1)[0])
    wanted = library.load_gguf_checkpoint(str(file))
    with quick_reading(with_vocabulary=True):
        found = library.load_gguf_checkpoint(str(file))
    # Nobody asks for the numbers in front of the header.
    assert {**found, "ignore": wanted["ignore"]} == wanted
    assert wanted["tokenizer"]["tokens"][5] == "w1"
    with quick_reading():
        assert library.load_gguf_checkpoint(str(file))["config"] == wanted["config"]
    places = GGUFHeader(file).tensors
    assert {tensor.name: tensor.data_offset for tensor in gguf.GGUFReader(file).tensors} == {
        name: place.offset for name, place in places.items()
    }


def test_a_file_with_two_tensors_of_one_name_is_refused(tmp_path: Path, store_root: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf", tiny_causal_lm("llama", num_hidden_layers=1)[0])
    content = file.read_bytes()
    assert content.count(b"blk.0.attn_v.weight") == 1
    file.write_bytes(content.replace(b"blk.0.attn_v.weight", b"blk.0.attn_k.weight"))
    (directory := tmp_path / "export").mkdir()
    for load in (CheckpointSource.load, lambda source, kind: source.load_for_export(kind, directory)):
        with pytest.raises(CheckpointError, match=r"a.*two of its tensors are named blk\.0\.attn_k\.weight"):
            load(CheckpointSource(file, {}), AUTO)
