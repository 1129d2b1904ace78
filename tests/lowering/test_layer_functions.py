"""Layers as ONNX functions: the same graph in another form, in the export and in what a compiler gets."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from qeff_framework.contracts import ExportedModel
from qeff_framework.export.portable import export_portable
from qeff_framework.lowering import InlineLayers, LayerFunctions, load_portable
from qeff_framework.lowering.layer_functions import LAYERS_DOMAIN
from tests.portable_loop import greedy
from tests.tiny_models import tiny_causal_lm


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """Four layers: one of them has other sizes of attention than the rest."""
    module = tiny_causal_lm(
        "gemma3_text", num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2
    )[0]
    return export_portable(module, task="causal-lm", output_dir=tmp_path_factory.mktemp("flat"))


def _calls(model: ir.Model) -> list[tuple[str, str | None]]:
    return [(node.op_type, node.name) for node in model.graph if node.domain == LAYERS_DOMAIN]


def test_layers_become_calls_and_compute_the_same(flat: ExportedModel) -> None:
    model = ir.load(flat.model_path)
    nodes = len(model.graph)

    assert LayerFunctions().run(model)

    assert sorted(name for _, name in _calls(model)) == [f"model.layers.{number}" for number in range(4)]
    functions = [function for key, function in model.functions.items() if key[0] == LAYERS_DOMAIN]
    assert len(functions) <= 2
    assert len(model.graph) + sum(len(function) for function in functions) < nodes
    ir.save(model, flat.directory / "functions.onnx")
    called = dataclasses.replace(flat, model_file="functions.onnx")
    prompts = [[5, 6, 7], [8, 9]]
    results = [greedy(exported, prompts, new_tokens=4, chunk=3, ctx_len=16) for exported in (flat, called)]
    assert results[0] == results[1]


def test_a_backend_gets_the_flat_graph(flat: ExportedModel) -> None:
    model = ir.load(flat.model_path)
    LayerFunctions().run(model)
    ir.save(model, flat.directory / "called.onnx")

    loaded, known = load_portable(flat.directory / "called.onnx"), load_portable(flat.model_path)

    assert not _calls(loaded)
    assert LAYERS_DOMAIN not in loaded.opset_imports
    assert sorted(node.op_type for node in loaded.graph) == sorted(node.op_type for node in known.graph)
    assert not InlineLayers().run(known)


def test_a_layer_that_differs_stays_flat(flat: ExportedModel) -> None:
    model = ir.load(flat.model_path)
    changed = next(
        node for node in model.graph if str(node.name).startswith("model.layers.1/") and node.op_type == "Mul"
    )
    after = ir.node("Neg", [changed.outputs[0]])
    model.graph.insert_after(changed, after)
    for user, place in list(changed.outputs[0].uses()):
        if user is not after:
            user.replace_input_with(place, after.outputs[0])

    LayerFunctions().run(model)

    assert [name for _, name in _calls(model)] == ["model.layers.0", "model.layers.2", "model.layers.3"]
