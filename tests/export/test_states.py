"""Convolution and recurrent states in the portable graph, run by ONNX Runtime without any lowering."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from qeff_framework.coverage.tiny import tiny_model, tiny_prompts
from qeff_framework.export import loops
from qeff_framework.export.portable import export_portable
from qeff_framework.export.trace import trace
from tests.library_versions import needs_tested_transformers

#: No more layers than two of a kind.
LAYERS = {"mamba": {"num_hidden_layers": 2}, "recurrent_gemma": {"num_hidden_layers": 3}}


@pytest.fixture(
    scope="module", params=["lfm2", "mamba", pytest.param("recurrent_gemma", marks=needs_tested_transformers)]
)
def graph(request, tmp_path_factory):
    module = tiny_model(request.param, "causal-lm", changes=LAYERS.get(request.param))
    traced = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "trace", lambda step, *args: traced.append(step.site.name) or trace(step, *args))
        exported = export_portable(module, task="causal-lm", output_dir=tmp_path_factory.mktemp(request.param))
    return Graph(exported, traced)


class Graph:
    def __init__(self, exported, traced):
        self.exported = exported
        self.traced = traced
        self.session = onnxruntime.InferenceSession(exported.model_path, providers=["CPUExecutionProvider"])

    def states(self, batch):
        held = {state.input for state in self.exported.states}
        sizes = {"batch_size": batch, "ctx_len": 16}
        return {
            spec.name: np.zeros([d if isinstance(d, int) else sizes[d] for d in spec.shape], np.float32)
            for spec in self.exported.inputs
            if spec.name in held
        }

    def step(self, tokens, positions, states):
        feeds = {"input_ids": np.array(tokens), "position_ids": np.array(positions), **states}
        logits, *new = self.session.run(None, feeds)
        return logits[:, 0], dict(zip(states, new, strict=True))


def test_the_states_are_named_and_typed(graph):
    kinds = {state.kind for state in graph.exported.states}
    assert kinds in ({"conv", "kv"}, {"conv", "recurrent"}, {"conv", "recurrent", "kv"})
    for state in graph.exported.states:
        assert state.output == f"{state.input}_RetainedState"
        assert state.input.startswith("past_")


def test_of_steps_that_are_alike_one_is_traced(graph):
    bodies = {node.name for node in onnx.load(graph.exported.model_path, load_external_data=False).graph.node}
    looped = sorted(name for name in bodies if name.endswith(".loop"))
    assert [f"{name}.loop" for name in graph.traced] == looped[:1]
    assert len(looped) in (0, 2)


def test_chunks_padding_and_single_tokens_agree_with_one_pass(graph):
    prompt = tiny_prompts()[0]
    whole, final = graph.step([prompt], [list(range(9))], graph.states(1))

    states = graph.states(1)
    for start in (0, 4, 8):
        chunk = prompt[start : start + 4]
        padding = 4 - len(chunk)
        positions = [*range(start, start + len(chunk)), *[-1] * padding]
        chunked, states = graph.step([chunk + [7] * padding], [positions], states)
    np.testing.assert_allclose(chunked, whole, rtol=1e-4, atol=1e-4)

    single = graph.states(1)
    for position, token in enumerate(prompt):
        alone, single = graph.step([[token]], [[position]], single)
    np.testing.assert_allclose(alone, whole, rtol=1e-4, atol=1e-4)
    for name, state in final.items():
        np.testing.assert_allclose(states[name], state, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(single[name], state, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_row_of_padding_keeps_its_states_bit_for_bit(graph):
    first, second = tiny_prompts()
    _, states = graph.step([first[:8], second[:8]], [list(range(8))] * 2, graph.states(2))
    _, after = graph.step([[5, 6], [7, 7]], [[8, 9], [-1, -1]], states)
    for name, state in states.items():
        assert np.array_equal(after[name][1], state[1]), name
        assert not np.array_equal(after[name][0], state[0]), name


def test_position_0_begins_anew_whatever_the_states_hold(graph):
    prompt = tiny_prompts()[0][:6]
    clean, _ = graph.step([prompt], [list(range(6))], graph.states(1))
    states = graph.states(1)
    for state in graph.exported.states:
        if state.kind != "kv":  # nobody looks at the slots of a cache that lie ahead, but a NaN there would show
            states[state.input][:] = np.nan
    stale, _ = graph.step([prompt], [list(range(6))], states)
    np.testing.assert_array_equal(stale, clean)
