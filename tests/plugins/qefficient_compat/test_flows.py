"""What scripts for QEfficient do: their calls, and results in the forms that they read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from qeff_framework.plugin_api import OptionError
from QEfficient import (
    QEFFAutoModel,
    QEFFAutoModelForCausalLM,
    QEFFAutoModelForImageTextToText,
    QEFFAutoModelForSequenceClassification,
    QEffAutoPeftModelForCausalLM,
    QEFFCommonLoader,
)
from QEfficient.generation.cloud_infer import QAICInferenceSession
from QEfficient.utils import load_hf_tokenizer
from tests.checkpoints import save_tiny_checkpoint
from tests.eager import eager_greedy
from tests.gguf_files import write_gguf
from tests.image_models import built, greedy, llava, saved_llava
from tests.sources.quantized import packing
from tests.sources.quantized.test_loading import pack
from tests.sources.test_lora import save_adapter
from tests.tiny_models import tiny_causal_lm, tiny_classifier, tiny_encoder

PROMPTS = ["w5 w9 w3", "w11 w12", "w7 w7 w8 w20 w31 w2 w44"]
SIZES = {"prefill_seq_len": 4, "ctx_len": 24, "num_cores": 2}
NEW = 5


@pytest.fixture(scope="module")
def expected(checkpoint: str) -> list[list[int]]:
    """Transformers' greedy tokens of each prompt."""
    tokenizer = load_hf_tokenizer(checkpoint)
    module = tiny_causal_lm("llama", num_hidden_layers=1, eos_token_id=None)[0]
    return [eager_greedy(module, tokenizer(prompt)["input_ids"], NEW) for prompt in PROMPTS]


def test_text_in_batches(
    checkpoint: str, expected: list[list[int]], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Prompts longer than a prefill step, more prompts than the batch; what a CPU has no meaning for is told once."""
    model = QEFFAutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager", torch_dtype=torch.float16)
    assert model.model.config.vocab_size == 128
    assert model.get_model_config["model_type"] == "llama"
    device = {"mxfp6_matmul": True, "mxint8_kv_cache": True, "mos": 1, "aic_enable_depth_first": True, "num_devices": 2}
    path = model.compile(batch_size=2, **SIZES, **device, aic_hw_version="2.0", offload_pt_weights=False)
    told = [record.message for record in caplog.records if record.name == "QEfficient"]
    assert sum("has no meaning on backend 'ort_sim'" in message for message in told) == len(device) + 1
    assert sum("QEFF_COMPAT_SIMULATE=ai100" in message for message in told) == 2
    assert (model.qpc_path, model.onnx_path.name) == (path, "model.onnx")
    assert model.compile(model.onnx_path, batch_size=2, **SIZES, **device) == path
    with pytest.raises(OptionError, match="other.onnx' is not the export of this model"):
        model.compile("other.onnx", **SIZES)
    assert len([record for record in caplog.records if "mxfp6_matmul" in record.message]) == 1

    tokenizer = load_hf_tokenizer(pretrained_model_name_or_path=checkpoint)
    info = model.generate(tokenizer=tokenizer, prompts=PROMPTS, device_id=[0], generation_len=NEW)
    assert [ids.tolist() for ids in info.generated_ids] == [expected[:2], expected[2:]]
    assert info.generated_texts[1] == [tokenizer.decode(expected[2])]
    assert info.batch_size == 2
    assert info.prefill_time == info.perf_metrics.prefill_time > 0
    assert info.generated_texts[0][1] in capsys.readouterr().out
    alone = model.generate(tokenizer, prompts=PROMPTS[0], generation_len=NEW, stream=False)
    assert alone.generated_ids[0].tolist() == [expected[0], expected[0]]
    assert capsys.readouterr().out == ""


def test_awq_with_continuous_batching_and_drafts(tmp_path: Path, checkpoint: str) -> None:
    """A target of speculative decoding, also run step by step, as scripts with a loop of their own do."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "awq"))
    twin = AutoModelForCausalLM.from_pretrained(pack(folder, packing.AWQ, packing.awq), dtype=torch.float32)
    tokenizer = load_hf_tokenizer(str(folder))
    expected = [eager_greedy(twin, tokenizer(prompt)["input_ids"], NEW) for prompt in PROMPTS]
    model = QEFFAutoModelForCausalLM.from_pretrained(
        str(folder), continuous_batching=True, qaic_config={"speculative_model_type": "target"}
    )
    with pytest.raises(OptionError, match="continuous_batching=True needs full_batch_size"):
        model.compile(**SIZES)
    with pytest.raises(OptionError, match="needs num_speculative_tokens"):
        model.compile(full_batch_size=2, **SIZES)
    path = model.compile(batch_size=1, full_batch_size=2, kv_cache_batch_size=3, num_speculative_tokens=[0, 2], **SIZES)
    info = model.generate(tokenizer, PROMPTS, generation_len=NEW, stream=False, prompt_lookup_num_tokens=2, is_tlm=True)
    assert info.generated_ids.tolist() == expected
    assert len(info.generated_texts) == 3
    assert info.batch_size == 2

    session = QAICInferenceSession(path, device_ids=[0])
    session.skip_buffers([name for name in session.input_names if name.startswith("past_")])
    session.skip_buffers([name for name in session.output_names if name.endswith("_RetainedState")])
    session.set_buffers({"logits": np.zeros((1, 1, 128), dtype=np.float32)})
    assert max(shape[session.binding_index_map["input_ids"]][1][1] for shape in session.allowed_shapes) == 4
    tokens = []
    for slot in range(2):
        prompt = tokenizer(PROMPTS[slot], padding="max_length", max_length=4, return_tensors="np")
        prompt["position_ids"] = np.where(prompt.pop("attention_mask"), np.arange(4), -1)
        prompt["batch_index"] = np.array([[slot]])
        first = session.run({**prompt, "num_logits_to_keep": np.zeros((1, 1), dtype=np.int64)})
        tokens.append([int(first["logits"].argmax())])
    # Right drafts: one step yields a token for each of them, and one more.
    lengths = np.array([[3], [2]])
    step = {
        "input_ids": np.array([row[:3] for row in expected[:2]]),
        "position_ids": lengths + np.arange(3),
        "batch_index": np.arange(2)[:, None],
        "num_logits_to_keep": np.zeros((3, 1), dtype=np.int64),
    }
    names = [name for name in session.input_names if name.startswith("past_")]
    states = {name: first[f"{name}_RetainedState"] for name in names}
    assert len(states) == 2
    answers = session.run(step)["logits"].argmax(-1).tolist()
    assert [first + more for first, more in zip(tokens, answers, strict=True)] == [row[:4] for row in expected[:2]]
    # Another session goes on from the same states, as scripts for disaggregated serving do.
    decoding = QAICInferenceSession(path)
    assert decoding.run({**step, **states})["logits"].argmax(-1).tolist() == answers
    with pytest.raises(KeyError):
        first["past_key.9_RetainedState"]
    last = decoding.run(step)
    decoding.run(step)
    with pytest.raises(NotImplementedError, match=r"state 'past_key.0_RetainedState' has changed in a later step"):
        last["past_key.0_RetainedState"]
    decoding.deactivate()
    session.deactivate()


def test_gguf_with_compute_contexts_and_a_sampler(
    tmp_path: Path, checkpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = tiny_causal_lm("llama", num_hidden_layers=1, eos_token_id=None)[0]
    write_gguf(tmp_path / "tiny.gguf", module)
    tokenizer = load_hf_tokenizer(checkpoint)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32).eval()
    expected = [eager_greedy(read, tokenizer(prompt)["input_ids"], NEW) for prompt in PROMPTS]
    config = {
        "include_sampler": True,
        "return_pdfs": True,
        "max_top_k_ids": 512,
        "include_guided_decoding": True,
        "ccl_enabled": True,
    }
    model = QEFFAutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="tiny.gguf", qaic_config=config)
    assert model.ccl_enabled
    contexts = {"comp_ctx_lengths_prefill": "[8]", "comp_ctx_lengths_decode": [16, 24]}
    path = model.compile(batch_size=2, num_speculative_tokens=0, **contexts, **SIZES)
    neutral = {"repetition_penalties": 1.0, "presence_penalties": 0.0, "top_ps": 1.0, "min_ps": 0.0, "top_ks": -1}
    params = {name: np.full((2, 1), value) for name, value in neutral.items()}
    params["random_numbers"] = np.random.default_rng(0).random((2, 512), dtype=np.float32)

    def tokens(temperature: Any, **changes: Any) -> list[list[int]]:
        info = model.generate(
            tokenizer,
            PROMPTS[1:],
            generation_len=NEW,
            stream=False,
            include_sampler=True,
            return_pdfs=True,
            sampling_params={**params, "temperatures": np.broadcast_to(temperature, (2, 1)), **changes},
            seed=3,
        )
        rows: list[list[int]] = info.generated_ids[0].tolist()
        return rows

    assert tokens(0.0, top_ks=np.full((2, 1), 54), top_ps=np.full((2, 1), 0.9)) == expected[1:]
    assert tokens(3.0) == tokens(3.0) != expected[1:]
    assert tokens(3.0, top_ks=np.ones((2, 1), dtype=np.int32)) == expected[1:]
    masks = np.ones((2, 128), dtype=np.bool_)
    masks[:, expected[1]] = False
    assert not {*expected[1]} & {token for row in tokens(0.0, token_bitmasks=masks) for token in row}
    assert QAICInferenceSession(path).output_names[:2] == ["next_tokens", "probs"]
    assert "random_numbers has no effect" in caplog.text
    with pytest.raises(NotImplementedError, match="temperatures differs between the prompts"):
        tokens([[0.5], [0.6]])


def longest(last_hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Pooling of a script: the maximum over the tokens, written in place."""
    last_hidden_states[attention_mask.unsqueeze(-1).expand(last_hidden_states.size()) == 0] = -1e9
    return torch.max(last_hidden_states, 1)[0]


def test_embeddings_with_own_pooling(tmp_path: Path) -> None:
    module = tiny_encoder("bert", num_hidden_layers=1)
    folder = str(save_tiny_checkpoint(tmp_path, module=module))
    tokenizer = load_hf_tokenizer(folder)
    tokens = tokenizer(["w5 w9 w3", "w1"], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = module(**tokens).last_hidden_state
    model = QEFFAutoModel.from_pretrained(folder, pooling=longest)
    path = model.compile(num_cores=16, seq_len=[4, 8])
    output = model.generate(tokens)
    wanted = hidden.masked_fill(tokens["attention_mask"][..., None] == 0, -1e9).amax(1)
    np.testing.assert_allclose(output["output"], wanted.numpy(), atol=1e-5)

    session = QAICInferenceSession(path)
    assert session.output_names == ["output"]
    one = tokenizer("w5 w9 w3 w4", return_tensors="np")
    assert session.run(dict(one))["output"].shape == (1, 32)
    session.deactivate()
    with pytest.raises(NotImplementedError, match="QEFFCommonLoader: .* is for QEFFAutoModelForFeatureExtraction"):
        QEFFCommonLoader.from_pretrained(folder)


def test_classes(tmp_path: Path) -> None:
    module = tiny_classifier("distilbert")
    folder = str(save_tiny_checkpoint(tmp_path, module=module))
    tokens = load_hf_tokenizer(folder)("w5 w9 w3", return_tensors="pt")
    model = QEFFAutoModelForSequenceClassification.from_pretrained(folder)
    model.compile(num_cores=16, seq_len=[16, 64], batch_size=2)
    logits = model.generate(tokens)["logits"]
    with torch.no_grad():
        torch.testing.assert_close(logits, module(**tokens).logits, atol=1e-5, rtol=0)
    assert model.model.config.id2label[int(logits.argmax())].startswith("LABEL_")


def test_adapters(checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One active adapter, and adapters that prompts choose; one that comes later is written into the program, if it fits."""
    tokenizer = load_hf_tokenizer(checkpoint)
    tokens = tokenizer(PROMPTS[0], return_tensors="pt")
    wanted = {}
    layers = {"first": ["v_proj", "down_proj"], "second": ["v_proj", "down_proj"], "other": ["q_proj"]}
    for seed, name in enumerate(layers):
        module = tiny_causal_lm("llama", num_hidden_layers=1, eos_token_id=None)[0]
        adapted = save_adapter(Path(checkpoint), module, tmp_path / name, seed, target_modules=layers[name])
        wanted[name] = eager_greedy(adapted, tokens["input_ids"][0].tolist(), NEW)
    assert wanted["first"] != wanted["second"]

    model = QEffAutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "first"), "first")
    path = model.compile(**SIZES)
    model.set_adapter("first")
    assert model.generate(**tokens, max_new_tokens=NEW + 1)[0].tolist()[:NEW] == wanted["first"]
    model.load_adapter(str(tmp_path / "second"), "second")
    model.set_adapter("second")
    assert model.generate(**tokens, max_new_tokens=NEW).tolist() == [wanted["second"]]
    assert model.active_adapter == "second"
    model.set_adapter("first")
    assert model.generate(**tokens, max_new_tokens=NEW).tolist() == [wanted["first"]]
    assert "compiled again" not in caplog.text
    model.load_adapter(str(tmp_path / "other"), "other")
    model.set_adapter("other")
    assert model.generate(**tokens, max_new_tokens=NEW).tolist() == [wanted["other"]]
    assert "compiled again" in caplog.text

    many = QEffAutoPeftModelForCausalLM.from_pretrained(
        str(tmp_path / "first"), "first", continuous_batching=False, finite_adapters=True
    )
    assert many.load_adapter(str(tmp_path / "second"), "second") == 2
    assert not many.unload_adapter("third")
    assert many.compile(**SIZES) == path
    info = many.generate(
        tokenizer=tokenizer,
        prompts=[PROMPTS[0]] * 3,
        generation_len=NEW,
        stream=False,
        prompt_to_adapter_mapping=["first", "second", "base"],
    )
    rows = [ids[0].tolist() for ids in info.generated_ids]
    assert rows[:2] == [wanted["first"], wanted["second"]]
    assert rows[2] not in rows[:2]


def test_images(tmp_path: Path) -> None:
    from PIL import Image

    module, _ = built(llava)
    processor = saved_llava(module, tmp_path)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    inputs = processor(text=["<image> w3 w4"], images=photo, return_tensors="pt", padding="max_length", max_length=24)
    real = inputs["attention_mask"][0].bool()
    with torch.no_grad():
        wanted = greedy(module, inputs["input_ids"][0][real].tolist(), [{"pixel_values": inputs["pixel_values"]}])
    model = QEFFAutoModelForImageTextToText.from_pretrained(
        str(tmp_path), kv_offload=False, attn_implementation="eager"
    )
    model.compile(
        prefill_seq_len=8, ctx_len=48, batch_size=2, img_size=28, num_cores=16, num_devices=1, mxfp6_matmul=False
    )
    put: list[int] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            put.extend(value.tolist())

        def end(self) -> None:
            put.append(-1)

    info = model.generate(inputs=inputs, streamer=Streamer(), device_ids=[0], generation_len=4)
    assert info.generated_ids.tolist() == [wanted[:4]]
    assert put == [*wanted[:4], -1]
    assert not model._core.compiled.programs
    assert isinstance(QEFFCommonLoader.from_pretrained(str(tmp_path)), QEFFAutoModelForImageTextToText)
