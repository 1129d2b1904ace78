"""A graph over the files of a checkpoint is the graph over the numbers that they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx_ir
import pytest
import torch

from qeff_framework.contracts import ExportedModel
from qeff_framework.export.portable import export_portable
from qeff_framework.gguf_blocks import DOMAIN as BLOCKS
from qeff_framework.lowering import link_stored_weights, weight_of, write_weights
from qeff_framework.lowering.stored_weights import load_portable
from qeff_framework.sources import CheckpointSource
from tests.gguf_files import write_gguf
from tests.portable_loop import greedy
from tests.tiny_models import tiny_causal_lm

AUTO = "AutoModelForCausalLM"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedModel, ExportedModel]:
    """A Mixtral of one layer with tied weights, stored in bfloat16 in several files: by reference, and with its numbers."""
    directory = tmp_path_factory.mktemp("mixtral")
    module = tiny_causal_lm("mixtral", num_hidden_layers=1, tie_word_embeddings=True, num_local_experts=3)[0]
    module.to(torch.bfloat16).save_pretrained(directory / "tiny", max_shard_size="20KB")
    found = []
    for kind in ("referring", "written"):
        (directory / kind).mkdir()
        source = CheckpointSource(directory / "tiny", {})
        loaded = source.load(AUTO) if kind == "written" else source.load_for_export(AUTO, directory / kind)
        found.append(export_portable(loaded, task="causal-lm", output_dir=directory / kind))
        assert source.keep_weights(found[-1].metadata.get("weight_files", ())).keys() == {
            path.name for path in (directory / kind).glob("*.safetensors")
        }
    return found[0], found[1]


def test_weights_stay_in_the_files_of_the_checkpoint(exports: tuple[ExportedModel, ExportedModel]) -> None:
    model = onnx_ir.load(exports[0].model_path)

    files = {
        value.const_value.location: value.dtype
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, onnx_ir.ExternalTensor)
    }
    assert len(files) > 1
    assert {Path(file).suffix for file in files} == {".safetensors"}
    assert set(files.values()) == {onnx_ir.DataType.BFLOAT16}


def test_a_backend_gets_the_same_graph(exports: tuple[ExportedModel, ExportedModel]) -> None:
    referring, written = (load_portable(exported.model_path) for exported in exports)

    assert [node.op_identifier() for node in referring.graph] == [node.op_identifier() for node in written.graph]
    assert referring.graph.initializers.keys() == written.graph.initializers.keys()
    for name, value in written.graph.initializers.items():
        found, wanted = weight_of(referring.graph.initializers[name]), weight_of(value)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), name
        assert np.array_equal(found.numpy(), wanted.numpy()), name


def test_the_graph_runs_as_it_is(exports: tuple[ExportedModel, ExportedModel]) -> None:
    referring, written = (greedy(exported, [[5, 6, 7]], new_tokens=4, chunk=3, ctx_len=8) for exported in exports)

    assert referring == written


Type = gguf.GGMLQuantizationType
#: Of the weights of a layer; the others are float32, and queries and keys are put into another order while they are loaded.
KINDS = {
    "v_proj": Type.Q8_0,
    "o_proj": Type.Q4_0,
    "gate_proj": Type.Q5_0,
    "up_proj": Type.Q4_1,
    "embed_tokens": Type.Q5_1,
}


@pytest.fixture(scope="module")
def exports_of_blocks(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedModel, ExportedModel]:
    """A Llama with tied weights in a GGUF file: by reference, and with its numbers."""
    directory = tmp_path_factory.mktemp("blocks")
    module: Any = tiny_causal_lm("llama", intermediate_size=64, tie_word_embeddings=True)[0]
    packed = {}
    for key, state in module.state_dict().items():
        kind = next((kind for part, kind in KINDS.items() if part in key), None)
        if kind is not None:
            packed[key] = (gguf.quants.quantize(state.numpy(), kind), kind)
    file = write_gguf(directory / "a.gguf", module, packed=packed, without="lm_head.weight")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEFF_HOME", str(directory / "home"))
        for kind in ("referring", "written"):
            (directory / kind).mkdir()
            source = CheckpointSource(file, {"tie_word_embeddings": True})
            loaded = source.load(AUTO) if kind == "written" else source.load_for_export(AUTO, directory / kind)
            found.append(export_portable(loaded, task="causal-lm", output_dir=directory / kind))
            wanted = {} if kind == "written" else {"a.gguf"}
            assert {*source.keep_weights(found[-1].metadata.get("weight_files", ()))} == {*wanted}
    return found[0], found[1]


def test_blocks_stay_in_the_file_of_the_checkpoint(exports_of_blocks: tuple[ExportedModel, ExportedModel]) -> None:
    referring, written = exports_of_blocks
    model = onnx_ir.load(referring.model_path)
    made = [node for node in model.graph if node.domain == BLOCKS]
    # Four in each of two layers, and the table, which the head shares.
    assert len(made) == 9
    for node in made:
        (stored,) = node.inputs
        assert stored is not None
        assert isinstance(stored.const_value, onnx_ir.ExternalTensor)
        assert (stored.const_value.location, stored.dtype) == ("a.gguf", onnx_ir.DataType.UINT8)
    # The runtime makes the numbers of the bytes.
    prompts = [[5, 6, 7]]
    wanted = greedy(written, prompts, new_tokens=4, chunk=3, ctx_len=8)
    assert greedy(referring, prompts, new_tokens=4, chunk=3, ctx_len=8) == wanted


def test_a_backend_gets_the_numbers_of_blocks(
    exports_of_blocks: tuple[ExportedModel, ExportedModel], tmp_path: Path
) -> None:
    referring, written = (load_portable(exported.model_path) for exported in exports_of_blocks)

    assert [node.op_identifier() for node in referring.graph] == [node.op_identifier() for node in written.graph]
    assert not [identifier for identifier in referring.functions if identifier[0] == BLOCKS]
    assert BLOCKS not in referring.opset_imports
    wanted = {name: weight_of(value).numpy() for name, value in written.graph.initializers.items()}
    assert {*referring.graph.initializers} == {*wanted}
    for name, value in referring.graph.initializers.items():
        assert weight_of(value).numpy().tobytes() == wanted[name].tobytes(), name
    # No compiler reads blocks: of these weights it is given the numbers, of others the place in the file.
    assert link_stored_weights(referring, tmp_path, types={onnx_ir.DataType.FLOAT}) == ["a.gguf"]
    assert write_weights(referring, tmp_path, "weights") == ["weights"]
    places: dict[str, set[str]] = {"a.gguf": set(), "weights": set()}
    for name, value in referring.graph.initializers.items():
        if isinstance(value.const_value, onnx_ir.ExternalTensor):
            places[value.const_value.location].add(name)
    # The graph calls the table by the name of the head.
    in_blocks = {"lm_head", *KINDS} - {"embed_tokens"}
    assert {kind for kind in in_blocks if any(kind in name for name in places["weights"])} == in_blocks
    assert not [name for name in places["a.gguf"] if any(kind in name for kind in in_blocks)]
    for name in places["weights"]:
        tensor = referring.graph.initializers[name].const_value
        assert tensor is not None
        assert tensor.numpy().tobytes() == wanted[name].tobytes(), name
