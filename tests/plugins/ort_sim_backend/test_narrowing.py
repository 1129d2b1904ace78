"""Which products get 4 bits, as the compile stage decides it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ort_sim_backend import OrtSimOptions
from ort_sim_backend.calibration import calibration_rows
from qeff_framework.options import parse_options
from qeff_framework.plugin_api import CompileError, OptionError
from tests.lowering.graphs import parse
from tests.plugins.ort_sim_backend.programs import compile_program, execute, export, specializations

#: `rough` has weights that 4 bits hold exactly, `fine` has others; `fine` is there twice.
LAYERS = """
layers (int64[batch_size, seq_len] input_ids, float[64, 64] embedding, float[64, 64] rough, float[64, 64] fine, float[64, 8] head)
=> (float[batch_size, seq_len, 8] logits) {
    a = Gather (embedding, input_ids)
    b = MatMul (a, rough)
    c = MatMul (b, fine)
    d = MatMul (c, fine)
    logits = MatMul (d, head)
}
"""
SHAPES = specializations(batch=1, ctx_len=8, chunks=(8,))


def model(text=LAYERS):
    graph = parse(text)
    random = np.random.default_rng(0)
    for value in list(graph.graph.inputs):
        if value.dtype == onnx_ir.DataType.FLOAT and isinstance(value.shape[0], int):
            content = random.standard_normal(tuple(value.shape.numpy())).astype(np.float32) / 8
            if value.name == "rough":
                content = random.integers(-7, 9, content.shape).astype(np.float32) / 32
            graph.graph.inputs.remove(value)
            value.const_value = onnx_ir.tensor(content, name=value.name)
            graph.graph.register_initializer(value)
    return graph


def bits(directory):
    """By the weight's name in front of a dot or underscore, the bits of each product."""
    graph = onnx.load(directory / "model.onnx", load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    return [(n.input[1].split("_")[0], a.i) for n in nodes for a in n.attribute if a.name == "bits"]


@pytest.mark.parametrize(("share", "fine"), [(0.5, 8), (0.0, 4)])
def test_what_four_bits_change_most_keeps_eight(share, fine, tmp_path):
    exported = export(model(), tmp_path / "export", task="encoder", states=())
    plain = compile_program(exported, tmp_path / "plain", SHAPES)
    compiled = compile_program(exported, tmp_path / "w4", SHAPES, precision="w4", eight_bit_share=share)

    assert bits(tmp_path / "w4") == [("rough", 4), ("fine", fine), ("fine", fine), ("head", 8)]
    kept = 2 if fine == 8 else 0
    counts = [compiled.program[name] for name in ("products_4_bits", "products_8_bits", "calibrated")]
    assert counts == [3 - kept, kept, True]
    feeds = {"input_ids": np.arange(8, dtype=np.int64)[None]}
    expected, found = (execute(each).run(feeds)["logits"] for each in (plain, compiled))
    assert 0 < np.sqrt(np.square(found - expected).mean()) / expected.std() < (0.05 if kept else 0.3)
    assert not list((tmp_path / "w4").glob("calibration*"))


RANKED = """
ranked (int64[batch_size, seq_len] input_ids, float[16384, 64] embedding) => (float[batch_size, 2, 16384] logits) {
    a = Gather (embedding, input_ids)
    index = Constant <value = int64[1, 2, 64] {INDEX}> ()
    hidden = GatherElements <axis = 1> (a, index)
    turned = Transpose <perm = [1, 0]> (embedding)
    logits = MatMul (hidden, turned)
}
""".replace("INDEX", ", ".join(["7"] * 64 + ["3"] * 64))


def test_the_best_tokens_have_the_logits_of_eight_bits(tmp_path, monkeypatch):
    graph = model(RANKED)
    (hidden,) = (node.outputs[0] for node in graph.graph if node.op_type == "GatherElements")
    # An export knows it.
    hidden.type, hidden.shape = onnx_ir.TensorType(onnx_ir.DataType.FLOAT), onnx_ir.Shape(("batch_size", 2, 64))
    exported = export(graph, tmp_path / "export", task="encoder", states=())
    options = {"precision": "w8"}
    plain = compile_program(exported, tmp_path / "plain", SHAPES, **options, calibrate=False)
    ranked = compile_program(exported, tmp_path / "ranked", SHAPES, **options)

    assert bits(tmp_path / "plain") == [("embedding", 8)]
    assert bits(tmp_path / "ranked") == [("embedding", 4)]
    assert (ranked.program["products_ranked"], plain.program["products_ranked"]) == (1, 0)
    feeds = {"input_ids": np.arange(8, dtype=np.int64)[None]}
    all_expected, all_found = (execute(each).run(feeds)["logits"][0] for each in (plain, ranked))
    # All rows are read from the file, those of the best tokens between two models.
    for places in (ranked.program["tail"]["rows"], ranked.program["rows"], plain.program["rows"]):
        assert [place["shape"] for place in places] == [[16384, 2, 32], [16384, 2]]
    assert ranked.program["tables"] == plain.program["tables"] == []
    # In one model, the session maps the table; without it, that is left to ONNX Runtime.
    monkeypatch.setattr("ort_sim_backend.packed_weights.cut_off", lambda *given: None)
    mapped = compile_program(exported, tmp_path / "mapped", SHAPES, **options)
    assert [place["shape"] for place in mapped.program["tables"]] == [[16384, 2, 32], [16384, 2]]
    left = replace(mapped, program={name: value for name, value in mapped.program.items() if name != "tables"})
    for other in (mapped, left):
        np.testing.assert_array_equal(execute(other).run(feeds)["logits"][0], all_found)
    for expected, found in zip(all_expected, all_found, strict=True):
        wrong = np.abs(found - expected) / expected.std()
        assert np.argsort(found)[-5:].tolist() == np.argsort(expected)[-5:].tolist()
        # 8-bit activations are in one of the two alone.
        assert wrong[np.argsort(expected)[-20:]].max() < 0.03
        assert 0.02 < np.sqrt(np.square(wrong).mean()) < 0.15


def test_an_input_that_no_text_fills_is_named_and_weights_are_rounded_without_a_measurement(tmp_path):
    text = LAYERS.replace("input_ids,", "input_ids, float[batch_size, seq_len, 64] pictures,").replace(
        "b = MatMul (a, rough)", "both = Add (a, pictures) b = MatMul (both, rough)"
    )
    exported = export(model(text), tmp_path / "export", task="encoder", states=())

    compiled = compile_program(exported, tmp_path / "w4", SHAPES, precision="w4")

    assert [compiled.program[name] for name in ("products_4_bits", "calibrated")] == [3, False]
    assert bits(tmp_path / "w4")[:3] == [("rough", 4), ("fine", 4), ("fine", 4)]


#: Inputs of programs that check drafts and read parts of the cache, and of those that end in a sampler with masks.
DRAFTS = "int64[num_logits_to_keep, 1] num_logits_to_keep, int64[comp_ctx_lengths] comp_ctx_lengths"
FACTORS = ("repetition_penalties", "presence_penalties", "temperatures", "top_ps", "min_ps")
SAMPLER = ", ".join(
    (
        "int64[batch_size, seq_len] last_accepted_output_tokens",
        *(f"float[batch_size, 1] {name}" for name in FACTORS),
        "int32[batch_size, 1] top_ks, float[batch_size, 8] random_numbers, bool[batch_size, 8] token_bitmasks",
    )
)


@pytest.mark.parametrize("inputs", [DRAFTS, SAMPLER])
def test_programs_that_check_drafts_or_sample_are_calibrated(inputs, tmp_path):
    text = LAYERS.replace("input_ids,", f"input_ids, {inputs},")
    if inputs is SAMPLER:  # it returns no logits
        text = text.replace("float[batch_size, seq_len, 8] logits", "int64[batch_size, seq_len, 1] next_tokens")
        text = text.replace("(d, head)", "(d, head) next_tokens = ArgMax <axis = -1> (logits)")
    exported = export(model(text), tmp_path / "export", task="encoder", states=())
    more = {"num_logits_to_keep": 4, "comp_ctx_lengths": 6}
    shapes = [replace(item, dims={**item.dims, **more}) for item in SHAPES]

    compiled = compile_program(exported, tmp_path / "w4", shapes, precision="w4")

    assert [compiled.program[name] for name in ("products_4_bits", "calibrated")] == [1, True]
    assert bits(tmp_path / "w4")[-1] == ("head", 8)


@pytest.mark.parametrize(("calibrate", "calibrated"), [(False, False), (None, False), (True, True)])
def test_a_large_model_is_calibrated_where_that_is_asked_for(calibrate, calibrated, tmp_path, monkeypatch):
    monkeypatch.setattr("ort_sim_backend.narrowing.CALIBRATED_WEIGHTS", 1000)
    exported = export(model(), tmp_path / "export", task="encoder", states=())

    compiled = compile_program(exported, tmp_path / "w4", SHAPES, precision="w4", calibrate=calibrate)

    assert compiled.program["calibrated"] is calibrated
    assert compiled.program["products_4_bits"] == (1 if calibrated else 3)


def test_what_cannot_be_calibrated_is_refused_where_that_is_asked_for(tmp_path):
    text = LAYERS.replace("input_ids,", "input_ids, float[batch_size, seq_len, 64] pictures,").replace(
        "b = MatMul (a, rough)", "both = Add (a, pictures) b = MatMul (both, rough)"
    )
    exported = export(model(text), tmp_path / "export", task="encoder", states=())
    with pytest.raises(CompileError, match="nothing is known for its input pictures"):
        compile_program(exported, tmp_path / "w4", SHAPES, precision="w4", calibrate=True)


def test_prompts_that_cannot_be_used_are_refused(tmp_path):
    exported = export(model(), tmp_path / "export", task="encoder", states=())
    with pytest.raises(CompileError, match="calibration_prompts needs a tokenizer, and the checkpoint has none"):
        compile_program(exported, tmp_path / "w4", SHAPES, precision="w4", calibration_prompts=tmp_path / "prompts.txt")
    for options, told in (
        ({"calibration_prompts": tmp_path}, "calibration_prompts needs precision='w8' or 'w4'"),
        ({"precision": "w4", "eight_bit_share": 1.5}, "a share is at most 1"),
        ({"calibrate": True}, "calibrate=True needs precision='w8' or 'w4'"),
        ({"precision": "w4", "calibrate": False, "calibration_prompts": tmp_path}, "contradict each other"),
    ):
        with pytest.raises(OptionError, match=told):
            parse_options(OrtSimOptions, options, owner="ort_sim")


def test_a_tokenizer_that_makes_no_token_of_a_sentence(tmp_path):
    """Such as one of amino acids without an unknown token."""
    exported = export(model(), tmp_path / "export", task="encoder", states=())
    wanted = calibration_rows(exported, None)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"\u4e00": 0, "\u4e8c": 1}, [])))
    tokenizer.save_pretrained(exported.directory / "tokenizer")
    assert calibration_rows(exported, None) == wanted
    assert wanted
    (file := tmp_path / "prompts.txt").write_text("the fox\n")
    with pytest.raises(CompileError, match="makes no token of its prompts"):
        calibration_rows(exported, file)
