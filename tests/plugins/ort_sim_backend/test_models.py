"""Token-exact parity of lowered models in a session with the portable graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import pytest

from ort_sim_backend import OrtSimBackend
from ort_sim_backend.session import OrtSession
from qeff_framework import QEFFAutoModel
from qeff_framework.export.portable import export_portable
from qeff_framework.plugin_api import OptionError
from tests.plugins.ort_sim_backend.programs import compile_program, execute, specializations
from tests.portable_loop import greedy
from tests.tiny_models import tiny_causal_lm

#: The chunks of 4 leave partial ones, rows that are all padding, and a last chunk that ends with the context.
PROMPTS = [[3, 17, 42, 9, 88, 5, 61, 23, 90, 12, 77], [101, 4, 56, 31, 8, 64]]
CHUNK, CTX_LEN, NEW_TOKENS = 4, 24, 13

#: Kernels that write the caches, by model type; the rest of the attention of ALiBi models keeps its standard ops.
CACHE_KERNELS = {
    "llama": {"GroupQueryAttention": 2},
    "gpt2": {"GroupQueryAttention": 2},
    "mistral": {"GroupQueryAttention": 2},
    "gemma2": {"GroupQueryAttention": 3},
    "gpt_oss": {"GroupQueryAttention": 2},
    "bloom": {"ScatterND": 4},
}


@pytest.mark.usefixtures("session_store")
@pytest.mark.parametrize("model_type", CACHE_KERNELS)
def test_greedy_tokens_equal_the_portable_graph(model_type, tmp_path):
    model, _ = tiny_causal_lm(model_type)
    exported = QEFFAutoModel(model).export()
    expected = greedy(exported, PROMPTS, new_tokens=NEW_TOKENS, chunk=CHUNK, ctx_len=CTX_LEN)
    shapes = specializations(batch=len(PROMPTS), ctx_len=CTX_LEN, chunks=(CHUNK, 1))

    compiled = compile_program(exported, tmp_path / "program", shapes)

    ops = Counter(
        node.op_type for node in onnx.load(compiled.directory / "model.onnx", load_external_data=False).graph.node
    )
    assert {op: ops[op] for op in ("GroupQueryAttention", "ScatterND") if ops[op]} == CACHE_KERNELS[model_type]
    assert compiled.program["in_place"] == [state.input for state in compiled.states]
    assert continuation(execute(compiled), PROMPTS) == expected


@pytest.mark.parametrize(
    ("model_type", "ops"),
    [("llama", {"product": 15}), ("mixtral", {"product": 9, "QMoE": 2}), ("mamba", {"product": 7})],
)
def test_compressed_weights_give_nearly_the_same_logits(model_type, ops, tmp_path):
    # Weights as small as those of trained models: with wide ones a rounding error grows from layer to layer.
    model, _ = tiny_causal_lm(model_type, hidden_size=64, intermediate_size=64, initializer_range=0.1)
    (tmp_path / "export").mkdir()
    exported = export_portable(model, task="causal-lm", output_dir=tmp_path / "export")
    shapes = specializations(batch=1, ctx_len=CTX_LEN, chunks=(16,))
    feeds = {"input_ids": np.zeros((1, 16), np.int64), "position_ids": np.full((1, 16), -1)}
    feeds["input_ids"][0, :11], feeds["position_ids"][0, :11] = PROMPTS[0], range(11)

    logits = {}
    for precision in ("fp32", "w8", "w4"):
        compiled = compile_program(exported, tmp_path / precision, shapes, precision=precision)
        logits[precision] = execute(compiled).run(feeds)["logits"][0, 0]

    graph = onnx.load(tmp_path / "w8" / "model.onnx", load_external_data=False).graph
    # Which kernel a product gets is for the CPU to say.
    kinds = {"MatMulNBits": "product", "MatMulIntegerToFloat": "product", "QMoE": "QMoE"}
    assert Counter(kinds[op] for op in _op_types(graph) if op in kinds) == ops
    # Behind the last attention there is one token, also where a calibration has looked at all of them.
    assert ("GatherND" in _op_types(graph)) == (model_type == "llama")
    with pytest.raises(OptionError, match="pack_weights=False does not go with a program of precision 'w4'"):
        OrtSimBackend().check_runtime(OrtSimBackend.runtime_options(pack_weights=False), compiled.options)
    similar = {name: float(np.corrcoef(each, logits["fp32"])[0, 1]) for name, each in logits.items()}
    # Another expert may win a near tie.
    assert (0.99 if "QMoE" in ops else 0.998) < similar["w8"] < 1
    assert 0.9 < similar["w4"] < similar["w8"]


def _op_types(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            yield from _op_types(attribute.g)


def continuation(session: OrtSession, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Greedy continuation of prompts that are read in chunks."""
    chosen = [0] * len(prompts)
    for start in range(0, max(map(len, prompts)), CHUNK):
        input_ids = np.zeros((len(prompts), CHUNK), np.int64)
        position_ids = np.full((len(prompts), CHUNK), -1)
        pieces = [prompt[start : start + CHUNK] for prompt in prompts]
        for row, piece in enumerate(pieces):
            input_ids[row, : len(piece)] = piece
            position_ids[row, : len(piece)] = range(start, start + len(piece))
        logits = session.run({"input_ids": input_ids, "position_ids": position_ids})["logits"]
        assert np.isfinite(logits).all()
        chosen = [int(logits[row, 0].argmax()) if piece else chosen[row] for row, piece in enumerate(pieces)]
    results = [[token] for token in chosen]
    for step in range(NEW_TOKENS - 1):
        feeds = {
            "input_ids": np.array([[row[-1]] for row in results]),
            "position_ids": np.array([[len(prompt) + step] for prompt in prompts]),
        }
        for row, token in zip(results, session.run(feeds)["logits"][:, 0].argmax(axis=1), strict=True):
            row.append(int(token))
    return results
