"""Many LoRA adapters in one program: each prompt of a batch gets the tokens of peft's eager model with its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from qeff_framework import QEFFAutoPeftModelForCausalLM, load_compiled
from qeff_framework.errors import CheckpointError, InputError, OptionError
from qeff_framework.serving import Engine
from qeff_framework.serving.http.app import create_app
from tests.eager import eager_greedy
from tests.serving.running import serving
from tests.sources.quantized import packing
from tests.sources.quantized.test_loading import pack
from tests.sources.test_lora import save_adapter
from tests.tiny_models import tiny_causal_lm

PROMPTS = [[5, 17, 99, 23, 42, 7, 64], [71, 3, 90], [11, 29, 47, 83, 101], [5, 17, 99, 23, 8]]
NEW_TOKENS = 6
#: Adapters of other ranks for other layers; one of them for the head.
ADAPTERS: dict[str, dict[str, Any]] = {
    "a": {"target_modules": ["q_proj", "down_proj"], "lora_alpha": 24},
    "b": {"target_modules": ["v_proj", "up_proj", "lm_head"], "r": 3, "use_rslora": True},
}


def save_adapters(folder: Path, model_type: str, adapters: dict[str, dict[str, Any]]) -> dict[str, list[list[int]]]:
    """Saves a base and adapters; returns the tokens of each with each prompt."""
    fields = {"num_hidden_layers": 1, "eos_token_id": None}
    module = tiny_causal_lm(model_type, **fields)[0]
    module.save_pretrained(folder / "base")
    expected = {"base": [eager_greedy(module, prompt, NEW_TOKENS) for prompt in PROMPTS]}
    for seed, (name, adapter) in enumerate(adapters.items()):
        module = tiny_causal_lm(model_type, **fields)[0]
        adapted = save_adapter(folder / "base", module, folder / name, seed, **adapter)
        expected[name] = [eager_greedy(adapted, prompt, NEW_TOKENS) for prompt in PROMPTS]
    assert len({str(tokens) for tokens in expected.values()}) == len(expected)
    return expected


def test_prompts_choose_their_adapters(tmp_path: Path, session_store: Path) -> None:
    expected = save_adapters(tmp_path, "llama", ADAPTERS)
    model = QEFFAutoPeftModelForCausalLM.from_pretrained(tmp_path / "a", adapter_name="a")
    model.load_adapter(tmp_path / "b", "b")
    assert (model.adapters, model.active_adapter) == (("a", "b"), "a")
    compiled = model.compile(backend="ort_sim", prefill_seq_len=4, ctx_len=32, batch_size=3, num_cores=2)
    chosen = ["b", "base", "a"]

    def tokens(names: list[str], **mapping: Any) -> bool:
        output = model.generate(prompts=PROMPTS[: len(names)], generation_len=NEW_TOKENS, ignore_eos=True, **mapping)
        return output.generated_ids == [expected[name][row] for row, name in enumerate(names)]

    assert tokens(chosen, prompt_to_adapter_mapping=chosen)
    assert tokens(["a", "a"])
    model.set_adapter("b")
    assert tokens(["b", "b", "b"])
    model.set_adapter("base")
    assert tokens(["base"])
    assert model.compiled is compiled
    model.unload_adapter("a")
    assert tokens(["a"], prompt_to_adapter_mapping="a")
    model.load_adapter(tmp_path / "b", "a")
    with pytest.raises(OptionError, match="'a' was another adapter when the program was compiled; call compile"):
        tokens(["a", "b"], prompt_to_adapter_mapping=["base", "a"])

    with load_compiled(compiled.directory) as loaded:
        output = loaded.generate(
            prompts=PROMPTS[:1], generation_len=NEW_TOKENS, ignore_eos=True, prompt_to_adapter_mapping="b"
        )
        assert output.generated_ids == expected["b"][:1]
        with pytest.raises(InputError, match="names the adapter 'c', and the program holds a, b; load it"):
            loaded.generate(prompts=PROMPTS[:1], prompt_to_adapter_mapping=["c"])
        with pytest.raises(InputError, match="names 2 adapters for 1 prompts"):
            loaded.generate(prompts=PROMPTS[:1], prompt_to_adapter_mapping=["a", "b"])


def test_adapters_come_and_go_without_another_program(tmp_path: Path, session_store: Path) -> None:
    """They are states of the program, of any ranks up to the one that it was compiled for."""
    more = {"c": {"target_modules": ["v_proj", "q_proj"], "r": 2}, "wide": {"target_modules": ["q_proj"], "r": 9}}
    expected = save_adapters(tmp_path, "llama", {**ADAPTERS, **more, "other": {"target_modules": ["o_proj"]}})
    model = QEFFAutoPeftModelForCausalLM.from_pretrained(tmp_path / "a", adapter_name="a")
    model.load_adapter(tmp_path / "b", "b")
    sizes: dict[str, Any] = {"prefill_seq_len": 4, "ctx_len": 32, "batch_size": 3, "num_cores": 2}
    compiled = model.compile(backend="ort_sim", max_loras=2, **sizes)

    def tokens(names: list[str], **mapping: Any) -> bool:
        output = model.generate(prompts=PROMPTS[: len(names)], generation_len=NEW_TOKENS, ignore_eos=True, **mapping)
        return output.generated_ids == [expected[name][row] for row, name in enumerate(names)]

    assert tokens(["b", "base", "a"], prompt_to_adapter_mapping=["b", "base", "a"])
    with pytest.raises(OptionError, match="'c' is adapter number 3; unload another one, or compile with max_loras=3"):
        model.load_adapter(tmp_path / "c", "c")
    model.unload_adapter("b")
    for name, message in (("wide", "has the rank 9; compile with max_lora_rank=9"), ("other", "adds to .*o_proj")):
        with pytest.raises(OptionError, match=f"'{name}' {message}"):
            model.load_adapter(tmp_path / name, name)
    model.load_adapter(tmp_path / "c", "c")
    assert tokens(["a", "a"])
    model.set_adapter("c")
    assert model.active_adapter == "c"
    assert tokens(["c", "a", "base"], prompt_to_adapter_mapping=["c", "a", None])
    assert tokens(["c", "c", "c"])
    with pytest.raises(InputError, match="names the adapter 'b', and the program holds a, c"):
        tokens(["b"], prompt_to_adapter_mapping="b")
    assert model.compiled is compiled
    assert {state.kind for state in compiled.states} == {"kv", "adapter"}
    # The program is the same for whatever adapters of these layers.
    other = QEFFAutoPeftModelForCausalLM.from_pretrained(tmp_path / "b", adapter_name="b")
    other.load_adapter(tmp_path / "a", "a")
    assert other.compile(backend="ort_sim", max_loras=2, **sizes).directory == compiled.directory


def test_with_continuous_batching(tmp_path: Path, session_store: Path) -> None:
    """Also where all tokens of all rows are one matrix, which lies transposed; prompts that begin alike share no cache."""
    adapters = {"c": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}}
    expected = save_adapters(tmp_path, "gpt2", adapters)
    model = QEFFAutoPeftModelForCausalLM.from_pretrained(tmp_path / "base", "c", adapter=tmp_path / "c")
    model.compile(
        backend="ort_sim", prefill_seq_len=4, ctx_len=32, full_batch_size=2, kv_cache_batch_size=3, num_cores=2
    )
    chosen = ["c", "base", "base", "base"]
    output = model.generate(
        prompts=PROMPTS, generation_len=NEW_TOKENS, ignore_eos=True, prompt_to_adapter_mapping=chosen
    )
    assert output.generated_ids == [expected[name][row] for row, name in enumerate(chosen)]

    engine = Engine(model.compiled.directory)
    requests = [
        engine.add(PROMPTS[row], adapter=name, max_new_tokens=NEW_TOKENS, ignore_eos=True)
        for row, name in enumerate(["base", "c", None])
    ]
    pieces = [[token for piece in engine.stream(request) for token in piece.tokens] for request in requests]
    assert pieces == [expected[name][row] for row, name in enumerate(["base", "c", "base"])]
    scores = {}
    for name in ("base", "c"):
        request = engine.add(PROMPTS[1], adapter=name, max_new_tokens=NEW_TOKENS, ignore_eos=True, logprobs=0)
        scores[name] = [entry.logprob for piece in engine.stream(request) for entry in piece.logprobs]
    assert scores["base"] != scores["c"]
    engine.close()
    names_of_models_choose_adapters(model.compiled.directory, scores)


def names_of_models_choose_adapters(directory: Path, scores: dict[str, list[float]]) -> None:
    """The texts of random models are hard to tell apart; the log-probabilities are not."""
    with serving(load_compiled(directory)) as served:
        assert [(model.id, getattr(model, "parent", None)) for model in served.client.models.list()] == [
            ("tiny", None),
            ("c", "tiny"),
        ]
        for name, key in (("tiny", "base"), ("c", "c"), ("tiny", "base")):
            answer = served.client.completions.create(
                model=name, prompt=PROMPTS[1], max_tokens=NEW_TOKENS, logprobs=0, extra_body={"ignore_eos": True}
            )
            assert answer.model == name
            assert answer.choices[0].logprobs is not None
            assert answer.choices[0].logprobs.token_logprobs == pytest.approx(scores[key])
        with pytest.raises(openai.NotFoundError, match="'a' is not served here; 'tiny', 'c' are"):
            served.client.completions.create(model="a", prompt=PROMPTS[1])
    with pytest.raises(InputError, match="an adapter that is called 'c'; give the model another name"):
        create_app(load_compiled(directory), model="c")


def test_beside_weights_that_stay_packed(tmp_path: Path, session_store: Path) -> None:
    """As adapters are trained over a quantised base: the sums are those of the dequantised weights, which stay in their blocks."""
    module = tiny_causal_lm("llama", num_hidden_layers=1, eos_token_id=None)[0]
    module.save_pretrained(tmp_path / "base")
    twin = pack(tmp_path / "base", packing.W4A16, packing.w4a16)
    reference = AutoModelForCausalLM.from_pretrained(twin, dtype=torch.float32).eval()
    plain = eager_greedy(reference, PROMPTS[0], NEW_TOKENS)
    adapted = save_adapter(
        tmp_path / "base", reference, tmp_path / "lora", target_modules=["q_proj", "up_proj"], lora_alpha=24
    )
    expected = eager_greedy(adapted, PROMPTS[0], NEW_TOKENS)
    assert plain != expected
    model = QEFFAutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora", keep_quantized=True)
    compiled = model.compile(backend="ort_sim", prefill_seq_len=4, ctx_len=32, batch_size=2, num_cores=2)
    output = model.generate(
        prompts=PROMPTS[:1] * 2,
        generation_len=NEW_TOKENS,
        ignore_eos=True,
        prompt_to_adapter_mapping=["default", "base"],
    )
    assert output.generated_ids == [expected, plain]
    assert len(compiled.metadata["packed_weights"]) == 7


def test_names_and_kinds_that_are_refused(tmp_path: Path, session_store: Path) -> None:
    fields = {"target_modules": ["q_proj"], "use_dora": True}
    save_adapters(tmp_path, "llama", {"dora": fields})
    model = QEFFAutoPeftModelForCausalLM.from_pretrained(tmp_path / "dora")
    assert model.active_adapter == "default"
    with pytest.raises(OptionError, match="'default' is loaded already"):
        model.load_adapter(tmp_path / "dora", "default")
    with pytest.raises(OptionError, match="'base' is the model alone"):
        model.load_adapter(tmp_path / "dora", "base")
    with pytest.raises(OptionError, match="there is no adapter 'x'; there are default, base"):
        model.set_adapter("x")
    with pytest.raises(OptionError, match="'default' is active; set_adapter to another one first"):
        model.unload_adapter("default")
    with pytest.raises(
        CheckpointError, match=r"dora changes DoRA of model\.layers\.0\.self_attn\.q_proj.*merge this one"
    ):
        model.export()
    model.set_adapter("base")
    model.unload_adapter("default")
    assert model.adapters == ()
