"""Tiny models of several architectures, compiled for the NPU and run in the simulator, against eager Transformers in float32."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from qeff_framework import QEFFAutoModel, load_compiled
from qeff_framework.errors import InputError, OptionError
from qeff_framework.plugin_api import CompiledModel
from tests.eager import eager_attention, eager_seq2seq_greedy
from tests.plugins.qnn_backend.htp.simulator import needs_simulator
from tests.tiny_models import tiny_causal_lm, tiny_question_answering, tiny_seq2seq_lm, tiny_token_classifier

pytestmark = [needs_simulator, pytest.mark.usefixtures("session_store")]

#: Longer than the sliding windows of 5 and than one prefill chunk.
PROMPT = [1, 17, 99, 23, 42, 7, 64, 31, 88, 12, 54]
NEW_TOKENS, CHUNK, CTX_LEN = 32, 8, 64
#: Float16 against float32, as a part of the largest logit. Measured: 0.002 to 0.006; an expert that is nearly tied may change.
LARGEST_ERROR = {"mixtral": 0.2}


def tiny_model(model_type: str, **changes: Any) -> torch.nn.Module:
    module, _ = tiny_causal_lm(model_type, **changes)
    if model_type == "gemma3_text":
        # A residual stream that float16 cannot hold, as the real Gemma 3 has one.
        with torch.no_grad():
            for name, weight in module.named_parameters():
                if "post_" in name and "layernorm" in name:
                    weight.add_(1.0).mul_(40_000.0).sub_(1.0)
    return module


def greedy(module: torch.nn.Module) -> tuple[list[int], np.ndarray]:
    """The eager model's tokens and the logits that it chose them from."""
    ids = torch.tensor([PROMPT])
    with torch.no_grad(), eager_attention(module):
        for _ in range(NEW_TOKENS):
            ids = torch.cat([ids, module(ids).logits[:, -1:].argmax(-1)], dim=1)
        logits = module(ids).logits[0, len(PROMPT) - 1 : -1].numpy()
    return ids[0, len(PROMPT) :].tolist(), logits


def teacher_forced(compiled: CompiledModel, tokens: list[int]) -> np.ndarray:
    """The program's logits for the same text, prompt in chunks, then token by token."""
    from qnn_backend.htp.session import HtpSession
    from qnn_backend.options import QnnRuntimeOptions

    session = HtpSession(compiled, QnnRuntimeOptions())
    found = []
    for start in range(0, len(PROMPT), CHUNK):
        part = PROMPT[start : start + CHUNK]
        ids, positions = np.zeros((1, CHUNK), np.int64), np.full((1, CHUNK), -1)
        ids[0, : len(part)], positions[0, : len(part)] = part, range(start, start + len(part))
        outputs = session.run({"input_ids": ids, "position_ids": positions})
    for number, token in enumerate(tokens):
        found.append(outputs["logits"][0, -1].copy())
        outputs = session.run({"input_ids": np.array([[token]]), "position_ids": np.array([[len(PROMPT) + number]])})
    session.close()
    return np.stack(found)


@pytest.mark.parametrize("model_type", ["llama", "mamba", "gpt2", "gemma3_text", "mixtral"])
def test_tokens_are_those_of_eager(model_type: str) -> None:
    module = tiny_model(model_type)
    tokens, expected = greedy(module)
    compiled = QEFFAutoModel(module).compile(backend="qnn", target="SM8650", prefill_seq_len=CHUNK, ctx_len=CTX_LEN)
    program = compiled.program
    assert program["partial"] == {}
    assert all(graph["unsupported"] == [] and graph["nodes_on_npu"] > 90 for graph in program["graphs"].values())
    assert len(program["verification"]["steps"]) == 4
    if model_type == "gemma3_text":
        assert program["residual_scaling"]["largest"] > 65504 < program["residual_scaling"]["factor"] * 65504

    logits = teacher_forced(compiled, tokens)
    assert (logits.argmax(-1) == tokens).sum() >= NEW_TOKENS - 1
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error < LARGEST_ERROR.get(model_type, 0.03), f"largest logit error {error:.4f} of the largest logit"


@pytest.mark.parametrize("make", [tiny_token_classifier, tiny_question_answering])
def test_heads_with_an_output_for_each_token_at_two_lengths(make) -> None:
    module = make("bert")
    rows = [[5, 17, 99, 8, 33], [23, 42, 7, 64, 31, 88, 12, 54, 9]]
    model = QEFFAutoModel(module)
    compiled = model.compile(backend="qnn", target="SM8650", seq_len=[8, 16])
    assert compiled.program["partial"] == {}
    for row in rows:
        with torch.no_grad():
            expected = module(input_ids=torch.tensor([row]))
        names = ["logits"] if make is tiny_token_classifier else ["start_logits", "end_logits"]
        outputs = model.generate({"input_ids": [row]})
        for name, got in zip(names, [outputs] if len(names) == 1 else outputs, strict=True):
            want = expected[name][0].numpy()
            np.testing.assert_allclose(got[0, : len(row)], want, atol=0.02 * np.abs(want).max())


def test_an_artifact_is_generated_from_and_says_that_it_is_simulated() -> None:
    module = tiny_model("llama")
    tokens, _ = greedy(module)
    compiled = QEFFAutoModel(module).compile(backend="qnn", target="SM8650", prefill_seq_len=CHUNK, ctx_len=CTX_LEN)
    with load_compiled(compiled.directory) as runner:
        output = runner.generate(prompts=[PROMPT], generation_len=8, ignore_eos=True)
        info = runner.info
    assert output.generated_ids[0] == tokens[:8]
    assert info["simulator"] == "yes"
    assert "simulated" in info["device"]
    assert "says nothing about the device" in info["note"]
    assert "says nothing about the device" in str(output.perf_metrics)
    with pytest.raises(OptionError, match="'device_ids', 'timeout_ms' means nothing for target SM8650"):
        load_compiled(compiled.directory, device_ids=(0,), timeout_ms=5)


def test_a_new_process_loads_and_does_not_compile() -> None:
    """Shown by ONNX Runtime's own log: a cached context is read, no graph is composed or finalised."""
    module = tiny_model("llama")
    tokens, _ = greedy(module)
    compiled = QEFFAutoModel(module).compile(backend="qnn", target="SM8650", prefill_seq_len=CHUNK, ctx_len=CTX_LEN)
    script = (
        "from qnn_backend.htp import provider\n"
        "provider._ERRORS = 0  # verbose\n"
        "from qeff_framework import load_compiled\n"
        f"with load_compiled({str(compiled.directory)!r}) as model:\n"
        f"    print(model.generate(prompts=[{PROMPT}], generation_len=4, ignore_eos=True).generated_ids)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    # The simulator prints to it as well, before or behind, as Python writes at once or at its end.
    assert str([tokens[:4]]) in ended.stdout.splitlines()
    assert "LoadCachedQnnContextFromBuffer" in ended.stderr
    for made in ("ComposeGraph", "FinalizeGraphs"):
        assert made not in ended.stderr


@pytest.mark.parametrize(("precision", "least"), [("w8", 29), ("a16w8", 20), ("w4", 10)])
def test_fewer_bits(precision: str, least: int) -> None:
    """Random weights suffer more from few bits than trained ones; the programs are verified all the same."""
    module = tiny_model("llama")
    tokens, _ = greedy(module)
    compiled = QEFFAutoModel(module).compile(
        backend="qnn", prefill_seq_len=CHUNK, ctx_len=CTX_LEN, precision=precision, calibration_samples=8
    )
    steps = compiled.program["verification"]["steps"].values()
    assert min(step["cosine"] for step in steps) > (0.98 if precision == "a16w8" else 0.999)
    same = int((teacher_forced(compiled, tokens).argmax(-1) == tokens).sum())
    assert same >= least, f"{same} of {NEW_TOKENS} tokens as in float32"


def test_an_embedding_on_the_host_changes_nothing_but_the_size() -> None:
    """Gemma: one table for the embedding and the head; its hidden states are scaled as well."""
    # A table of many pages: programs are padded to whole ones.
    module = tiny_model("gemma3_text", vocab_size=1024, num_hidden_layers=1, layer_types=["full_attention"])
    tokens = greedy(module)[0][:8]
    sizes = {"prefill_seq_len": CHUNK, "ctx_len": CTX_LEN}
    inside = QEFFAutoModel(module).compile(backend="qnn", **sizes)
    beside = QEFFAutoModel(module).compile(backend="qnn", host_embedding_mb=0, **sizes)
    assert inside.program["host_tables"] == []
    [table] = beside.program["host_tables"]
    assert np.load(beside.directory / table["file"]).dtype == np.float16
    saved = [(one.directory / "decode_ctx_qnn.bin").stat().st_size for one in (inside, beside)]
    assert saved[0] - saved[1] > 0.9 * (beside.directory / table["file"]).stat().st_size
    expected, found = teacher_forced(inside, tokens), teacher_forced(beside, tokens)
    np.testing.assert_allclose(found, expected, atol=0.005 * np.abs(expected).max())


def test_a_token_that_the_embedding_has_not_is_refused_before_the_step() -> None:
    compiled = QEFFAutoModel(tiny_model("llama")).compile(
        backend="qnn", prefill_seq_len=1, ctx_len=CTX_LEN, host_embedding_mb=0, verify=False
    )
    session = load_compiled(compiled.directory).session
    first = {"input_ids": np.array([[5]]), "position_ids": np.array([[0]])}
    expected = session.run(first)["logits"].copy()
    for wrong in (100_000, -1):
        with pytest.raises(InputError, match=f"input_ids holds {wrong}: the model's embedding has the rows 0 to"):
            session.run({**first, "input_ids": np.array([[wrong]])})
    np.testing.assert_array_equal(session.run(first)["logits"], expected)


def test_shared_weights_and_dlc_lie_beside_the_programs() -> None:
    compiled = QEFFAutoModel(tiny_model("llama")).compile(
        backend="qnn", prefill_seq_len=CHUNK, ctx_len=CTX_LEN, weight_sharing=True, dlc=True
    )
    shared = compiled.program["shared"]
    assert shared["loadable_on_x86"] is False
    folder = compiled.directory / shared["folder"]
    binaries = [path.stat().st_size for path in folder.glob("*.bin")]
    single = [path.stat().st_size for path in compiled.directory.glob("*.bin")]
    assert len(binaries) == 1
    assert len(single) == 2
    assert binaries[0] < sum(single)
    assert set(compiled.program["dlc"]) == {"prefill", "decode"}
    assert all((compiled.directory / name).read_bytes()[:2] == b"PK" for name in compiled.program["dlc"].values())


def test_a_dry_run_leaves_static_graphs() -> None:
    import onnx

    compiled = QEFFAutoModel(tiny_model("llama")).compile(
        backend="qnn", prefill_seq_len=CHUNK, ctx_len=CTX_LEN, dry_run=True
    )
    model = onnx.load(str(compiled.directory / "graphs" / "prefill.onnx"))
    assert all(dim.dim_value for value in model.graph.input for dim in value.type.tensor_type.shape.dim)
    assert {node.domain for node in model.graph.node} == {""}
    assert not list(compiled.directory.rglob("*_ctx*"))


def test_an_encoder_decoder_gives_the_tokens_of_eager() -> None:
    """T5 sorts relative positions, which are integers, into buckets."""
    module = tiny_seq2seq_lm("t5").eval()
    source = [5, 9, 11, 23, 7, 3, 8]
    model = QEFFAutoModel(module)
    model.compile("qnn", encoder_seq_len=8, ctx_len=16, target="SM8650")
    output = model.generate({"input_ids": [source]}, generation_len=8, ignore_eos=True)
    assert output.generated_ids == [eager_seq2seq_greedy(module, source, 8)]
