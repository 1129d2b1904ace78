"""What every consumer of a portable causal LM relies on: names, shapes, ops, and how padding behaves."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import onnx
import onnx_ir
import pytest

from qeff_framework.contracts import StateSpec, TensorSpec
from qeff_framework.export.portable import export_portable
from tests.portable_loop import PortableLoop

STATE_SHAPE = ("batch_size", 2, "ctx_len", 8)
STATES = ("past_key.0", "past_value.0", "past_key.1", "past_value.1")


def test_interface(llama_export):
    tokens = ("batch_size", "seq_len")
    assert llama_export.inputs == (
        TensorSpec(name="input_ids", dtype="int64", shape=tokens),
        TensorSpec(name="position_ids", dtype="int64", shape=tokens),
        *(TensorSpec(name=name, dtype="float32", shape=STATE_SHAPE) for name in STATES),
    )
    assert llama_export.outputs == (
        TensorSpec(name="logits", dtype="float32", shape=("batch_size", 1, 128)),
        *(TensorSpec(name=f"{name}_RetainedState", dtype="float32", shape=STATE_SHAPE) for name in STATES),
    )
    assert llama_export.states == tuple(
        StateSpec(input=name, output=f"{name}_RetainedState", kind="kv") for name in STATES
    )
    assert llama_export.metadata["architecture"] == "LlamaForCausalLM"


def test_files_and_opset(llama_export):
    model = onnx.load(llama_export.model_path, load_external_data=False)

    assert {file.name for file in llama_export.directory.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18, "qeff": 1}
    assert {function.name for function in model.functions} == {"Attention", "CausalMask", "KVUpdate", "RMSNorm"}


def test_weights_keep_their_names_in_the_checkpoint(llama, llama_export):
    model = onnx_ir.load(llama_export.model_path)

    assert {name for name, _ in llama.named_parameters()} <= set(model.graph.initializers)


def test_no_path_of_this_machine_is_written(llama_export):
    assert b"site-packages" not in llama_export.model_path.read_bytes()
    assert sys.prefix.encode() not in llama_export.model_path.read_bytes()


def test_only_one_row_goes_through_the_head(llama_export):
    model = onnx_ir.load(llama_export.model_path)
    (head,) = [node for node, _ in model.graph.initializers["lm_head.weight"].uses()]

    assert head.op_type == "MatMul"
    assert [str(size) for size in head.inputs[0].shape] == ["batch_size", "1", "32"]


@pytest.mark.parametrize(("batch", "seq", "ctx"), [(1, 1, 1), (3, 1, 7), (2, 7, 7), (1, 5, 300)])
def test_any_sizes(llama_export, batch, seq, ctx):
    loop = PortableLoop(llama_export, batch_size=batch, ctx_len=ctx)
    positions = np.tile(np.arange(seq), (batch, 1))

    logits = loop.step(np.full((batch, seq), 5), positions)

    assert logits.shape == (batch, 128)
    assert np.isfinite(logits).all()
    assert np.ptp(logits, axis=0).max() < 1e-5, "equal rows have equal logits"


def test_padding_writes_nothing_and_changes_no_logits(llama_export):
    plain = PortableLoop(llama_export, batch_size=1, ctx_len=8)
    padded = PortableLoop(llama_export, batch_size=1, ctx_len=8)
    for name, state in padded.states.items():
        state[:, :, 3:] = 7.0  # what a former occupant of the slots has left
        plain.states[name][...] = state

    expected = plain.step(np.array([[11, 12, 13]]), np.array([[0, 1, 2]]))
    logits = padded.step(np.array([[99, 11, 98, 12, 13, 97]]), np.array([[-1, 0, -1, 1, 2, -1]]))

    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    for name in STATES:
        np.testing.assert_allclose(padded.states[name], plain.states[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(padded.states[name][:, :, 3:], 7.0)


def test_a_row_of_padding_only_leaves_its_caches_bit_for_bit(llama_export):
    loop = PortableLoop(llama_export, batch_size=2, ctx_len=4)
    rng = np.random.default_rng(0)
    before = {name: rng.standard_normal(state.shape).astype(np.float32) for name, state in loop.states.items()}
    loop.states.update({name: state.copy() for name, state in before.items()})

    logits = loop.step(np.array([[1, 2], [3, 4]]), np.array([[0, 1], [-1, -1]]))

    assert np.isfinite(logits).all()
    for name, state in loop.states.items():
        np.testing.assert_array_equal(state[1], before[name][1])
        assert not np.array_equal(state[0], before[name][0])


def test_export_is_silent(llama, tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_portable(llama, task="causal-lm", output_dir=tmp_path)

    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
