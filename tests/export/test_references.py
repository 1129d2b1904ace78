"""A graph over the files of a checkpoint is the graph over the numbers that they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch

from qeff_framework.contracts import ExportedModel
from qeff_framework.export.portable import export_portable
from qeff_framework.lowering import weight_of
from qeff_framework.lowering.stored_weights import load_portable
from qeff_framework.sources import CheckpointSource
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
