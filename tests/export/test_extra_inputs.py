"""Graphs with extra inputs compute what the plain graph does: cache rows by index, part of the context, several logits."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qeff_framework.contracts import EXTRA_INPUTS, TensorSpec
from qeff_framework.errors import ExportError
from qeff_framework.export.portable import export_portable
from tests.portable_loop import PortableLoop

CTX_LEN, ROWS = 12, 5


@pytest.fixture(scope="module")
def full_export(llama, tmp_path_factory):
    """The graph with all extra inputs together."""
    directory = tmp_path_factory.mktemp("llama-extra")
    return export_portable(llama, task="causal-lm", output_dir=directory, extra_inputs=EXTRA_INPUTS)


def test_interface(full_export):
    assert full_export.inputs[2:6] == (
        TensorSpec(name="batch_index", dtype="int64", shape=("batch_size", 1)),
        TensorSpec(name="comp_ctx_lengths", dtype="int64", shape=("comp_ctx_lengths",)),
        TensorSpec(name="num_logits_to_keep", dtype="int64", shape=("num_logits_to_keep", 1)),
        TensorSpec(name="past_key.0", dtype="float32", shape=("full_batch_size", 2, "ctx_len", 8)),
    )
    assert full_export.outputs[0].shape == ("batch_size", "num_logits_to_keep", 128)
    model = onnx.load(full_export.model_path, load_external_data=False)
    assert {function.name for function in model.functions} == {
        "Attention",
        "CausalMask",
        "KVGatherCB",
        "KVUpdateCB",
        "RMSNorm",
    }


class FullLoop:
    """Drives the graph with all extra inputs over one cache of `ROWS` rows."""

    def __init__(self, exported):
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self.session = ort.InferenceSession(str(exported.model_path), options, providers=["CPUExecutionProvider"])
        self.exported = exported
        # What former prompts have left in the cache must not be seen.
        rng = np.random.default_rng(0)
        shape = (ROWS, 2, CTX_LEN, 8)
        self.states = {state.input: rng.standard_normal(shape).astype(np.float32) for state in exported.states}

    def step(self, ids, positions, rows, *, compute=CTX_LEN, keep=1):
        outputs = self.session.run(
            ["logits", *(state.output for state in self.exported.states)],
            {
                "input_ids": np.array(ids),
                "position_ids": np.array(positions),
                "batch_index": np.array(rows)[:, None],
                "comp_ctx_lengths": np.zeros(compute, np.int64),
                "num_logits_to_keep": np.zeros((keep, 1), np.int64),
                **self.states,
            },
        )
        for state, value in zip(self.exported.states, outputs[1:], strict=True):
            self.states[state.input] = value
        return outputs[0]


def test_rows_by_index_and_part_of_the_context_change_nothing(llama_export, full_export):
    plain, full = PortableLoop(llama_export, batch_size=2, ctx_len=CTX_LEN), FullLoop(full_export)
    before = {name: state.copy() for name, state in full.states.items()}
    ids, positions = [[11, 12, 13], [21, 22, 0]], [[0, 1, 2], [0, 1, -1]]
    expected = plain.step(np.array(ids), np.array(positions))
    np.testing.assert_allclose(full.step(ids, positions, [3, 1], compute=4)[:, 0], expected, rtol=1e-4, atol=1e-4)
    # One row alone, then both in another order.
    expected = plain.step(np.array([[14], [0]]), np.array([[3], [-1]]))[:1]
    np.testing.assert_allclose(full.step([[14]], [[3]], [3], compute=5)[:, 0], expected, rtol=1e-4, atol=1e-4)
    expected = plain.step(np.array([[15], [23]]), np.array([[4], [2]]))[::-1]
    np.testing.assert_allclose(
        full.step([[23], [15]], [[2], [4]], [1, 3], compute=7)[:, 0], expected, rtol=1e-4, atol=1e-4
    )
    for name, state in full.states.items():
        np.testing.assert_array_equal(state[[0, 2, 4]], before[name][[0, 2, 4]])


def test_several_logits_are_those_of_single_steps(llama_export, full_export):
    plain, full = PortableLoop(llama_export, batch_size=1, ctx_len=CTX_LEN), FullLoop(full_export)
    singly = [plain.step(np.array([[token]]), np.array([[place]]))[0] for place, token in enumerate([5, 6, 7, 8])]
    # A decode step with fewer drafts than the program has room for.
    logits = full.step([[5, 6, 7, 8, 0]], [[0, 1, 2, 3, -1]], [2], keep=3)
    np.testing.assert_allclose(logits[0], np.stack(singly[1:]), rtol=1e-4, atol=1e-4)


def test_unknown_inputs_are_refused(llama, tmp_path):
    with pytest.raises(ExportError, match="comp_ctx_lengths, batch_index are not of batch_index"):
        export_portable(llama, task="causal-lm", output_dir=tmp_path, extra_inputs=("comp_ctx_lengths", "batch_index"))
