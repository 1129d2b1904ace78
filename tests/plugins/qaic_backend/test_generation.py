"""Generation on the stand-in's device with the programs of continuous batching, compute contexts and speculative targets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qeff_framework.contracts import EXTRA_INPUTS, SAMPLER_INPUTS, TOKEN_BITMASKS, TensorSpec
from qeff_framework.errors import CompileError, InputError
from qeff_framework.generation import GenerationSettings, TextGenerator
from tests.eager import eager_greedy
from tests.generation.fakes import FakeContinuous
from tests.plugins.qaic_backend.half_precision import same_up_to_near_ties
from tests.plugins.qaic_backend.sessions import compile_program, open_session
from tests.sdk_standins.qaic import NEGATIVE_SCATTER_VARIABLE, ROUNDING_VARIABLE
from tests.tiny_models import tiny_causal_lm
from tests.twelve_prompts import CTX_LEN, MAX_LENGTH, answers_alone, twelve_prompts

BATCH_INDEX, CONTEXTS, KEPT_LOGITS = EXTRA_INPUTS


@pytest.mark.parametrize("negative_scatter", ["wrap", "drop"])
def test_standin_twelve_prompts_in_four_slots(negative_scatter, standin, exports, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(NEGATIVE_SCATTER_VARIABLE, negative_scatter)
    module, _ = tiny_causal_lm("llama")
    prompts = twelve_prompts()
    eager, eos = answers_alone(module, prompts)
    standin()
    asked = GenerationSettings(max_length=MAX_LENGTH, eos_token_ids=(eos,))
    session = open_session(compile_program(exports("llama"), tmp_path / "single", ctx_len=CTX_LEN))
    generator = TextGenerator(session)
    alone = [generator.generate_ids([prompt], asked).generated_ids[0] for prompt in prompts]
    session.close()
    assert len({len(answer) for answer in alone}) > 5
    equal = [same_up_to_near_ties(module, *case) for case in zip(prompts, alone, eager, strict=True)]
    assert sum(equal) >= 10

    compiled = compile_program(exports("llama", BATCH_INDEX), tmp_path / "program", ctx_len=CTX_LEN, full_batch_size=4)
    session = open_session(compiled)
    generator = TextGenerator(session)
    assert generator.generate_ids(prompts, asked).generated_ids == alone
    assert generator.generate_ids(prompts[5:2:-1], asked).generated_ids == alone[5:2:-1]
    session.close()


def test_standin_blocks_of_the_cache_and_replicated_heads_keep_the_tokens(standin, exports, tmp_path) -> None:
    """With rows of other lengths, of which blocks are empty; also as functions, and where slots are read by positions."""
    standin()
    prompts = [prompt[:7] for prompt in twelve_prompts()[:3]]
    asked = GenerationSettings(max_new_tokens=8)
    contexts = {"full_batch_size": 2, "comp_ctx_lengths_prefill": (8,), "comp_ctx_lengths_decode": (12, 24)}
    changed = {"num_kv_blocks": 3, "replicate_kv_heads": 2, "sub_functions": True}
    tokens = []
    for number, (export, options) in enumerate(
        [
            (exports("llama"), {"batch_size": 3}),
            (exports("llama"), {"batch_size": 3, **changed}),
            (exports("llama", BATCH_INDEX, CONTEXTS), {**contexts, **changed}),
        ]
    ):
        session = open_session(compile_program(export, tmp_path / str(number), **options))
        tokens.append(TextGenerator(session).generate_ids(prompts, asked).generated_ids)
        session.close()
    assert tokens[0] == tokens[1] == tokens[2]
    with pytest.raises(CompileError, match="num_kv_blocks=9 is more than the 8 cache slots that specialization"):
        compile_program(exports("llama", BATCH_INDEX, CONTEXTS), tmp_path / "9", **contexts, num_kv_blocks=9)


def test_standin_spare_slots_and_compute_contexts(standin, exports, tmp_path) -> None:
    module, _ = tiny_causal_lm("llama")
    prompts = twelve_prompts()
    # Half of the prompts begin like another one, which a spare slot still holds.
    prompts = [*prompts[:6], *([*prompts[3][:9], *prompt[:3]] for prompt in prompts[6:])]
    expected, eos = answers_alone(module, prompts)
    standin()
    compiled = compile_program(
        exports("llama", BATCH_INDEX, CONTEXTS),
        tmp_path / "program",
        ctx_len=CTX_LEN,
        full_batch_size=3,
        kv_cache_batch_size=5,
        comp_ctx_lengths_prefill=(8, 20),
        comp_ctx_lengths_decode=(12, 24),
    )
    session = open_session(compiled)
    asked = GenerationSettings(max_length=MAX_LENGTH, eos_token_ids=(eos,))
    output = TextGenerator(session).generate_ids(prompts, asked).generated_ids
    equal = [same_up_to_near_ties(module, *case) for case in zip(prompts, output, expected, strict=True)]
    assert sum(equal) >= 10
    with pytest.raises(InputError, match="a cache row of its own, from 0 to 4"):
        session.run(
            {
                "input_ids": np.zeros((3, 1), np.int64),
                "position_ids": np.zeros((3, 1), np.int64),
                BATCH_INDEX: np.array([[0], [4], [4]]),
                CONTEXTS: np.zeros(12, np.int64),
            }
        )
    session.close()


def test_standin_compute_contexts_of_a_batch(standin, exports, tmp_path) -> None:
    """The window of 5 wraps within each compute context; the rows need different ones, the longest decides."""
    module, _ = tiny_causal_lm("gemma3_text")
    prompts = [[5, 17, 99, 23, 42, 7, 64, 31, 88, 12, 54], [71, 3, 90]]
    standin()
    compiled = compile_program(
        exports("gemma3_text", CONTEXTS),
        tmp_path / "program",
        batch_size=2,
        comp_ctx_lengths_prefill=(8, 16),
        comp_ctx_lengths_decode=(12, 20),
    )
    session = open_session(compiled)
    output = TextGenerator(session).generate(prompts, max_new_tokens=12)
    assert output.generated_ids == [eager_greedy(module, prompt, 12) for prompt in prompts]
    session.close()


def test_standin_speculative_target_with_two_draft_lengths(standin, exports, tmp_path) -> None:
    module, _ = tiny_causal_lm("llama")
    prompt = [5, 17, 99, 23, 42, 7]
    tokens = eager_greedy(module, prompt, 8)
    standin(profile="1.22")
    compiled = compile_program(
        exports("llama", KEPT_LOGITS), tmp_path / "program", ctx_len=96, num_speculative_tokens=(1, 3)
    )
    session = open_session(compiled)
    # Without drafts each step has one token; the places behind it are padding.
    assert TextGenerator(session).generate([prompt], max_new_tokens=8).generated_ids == [tokens]
    longer = {"prompts": [prompt], "max_new_tokens": 80}
    plain = TextGenerator(session).generate(**longer)
    drafted = TextGenerator(session).generate(**longer, prompt_lookup_num_tokens=3)
    assert drafted.generated_ids == plain.generated_ids
    assert drafted.perf_metrics.drafts_proposed > drafted.perf_metrics.drafts_accepted > 0
    # With the right drafts one step confirms all of them.
    session.reset()
    keep = np.zeros((1, 1), np.int64)
    session.run({"input_ids": np.array([prompt[:4]]), "position_ids": np.arange(4)[None], KEPT_LOGITS: keep})
    rest = {"input_ids": np.array([[*prompt[4:], 0, 0]]), "position_ids": np.array([[4, 5, -1, -1]])}
    first = session.run({**rest, KEPT_LOGITS: keep})["logits"]
    assert first.shape == (1, 1, 128)
    assert first[0, 0].argmax() == tokens[0]
    checked = session.run(
        {
            "input_ids": np.array([tokens[:4]]),
            "position_ids": np.arange(6, 10)[None],
            KEPT_LOGITS: np.zeros((4, 1), np.int64),
        }
    )["logits"]
    assert checked[0].argmax(axis=1).tolist() == tokens[1:5]
    session.close()


@pytest.mark.parametrize("sizes", [{}, {"num_devices": 2, "mdp_num_partitions": 2}, {"mxint8_kv_cache": True}])
def test_standin_tokens_chosen_on_the_device(sizes, standin, exports, tmp_path) -> None:
    """Twelve prompts in three of five cache slots, greedy with and without a penalty: as the host chooses from the logits."""
    standin(devices="ultra")
    shared = {"ctx_len": CTX_LEN, "full_batch_size": 3, "kv_cache_batch_size": 5, **sizes}
    asked = {"max_length": MAX_LENGTH, "eos_token_id": 2}
    answers = []
    for extra in ((BATCH_INDEX,), (BATCH_INDEX, *SAMPLER_INPUTS, TOKEN_BITMASKS)):
        include_sampler = len(extra) > 1
        compiled = compile_program(
            exports("llama", *extra),
            tmp_path / f"{include_sampler}",
            include_sampler=include_sampler,
            include_guided_decoding=include_sampler,
            **shared,
        )
        if include_sampler:
            assert (compiled.directory / "custom_io.yaml").read_text().count("penalty_buffer") == 0
        session = open_session(compiled)
        generator = TextGenerator(session)
        answers.append(
            [
                generator.generate(twelve_prompts(), **asked, **more).generated_ids
                for more in ({}, {"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 1, "suppress_tokens": [7]})
            ]
        )
        session.close()
    on_host, on_device = answers
    assert on_device == on_host
    assert on_device[0] not in on_device[1:]


@pytest.mark.parametrize("rounding", ["io", "every_node"])
def test_standin_samples_follow_the_hosts_distribution(rounding, standin, exports, tmp_path, monkeypatch) -> None:
    """First tokens of one prompt: FP16 in every node must not starve what is seldom drawn."""
    monkeypatch.setenv(ROUNDING_VARIABLE, rounding)
    standin()
    count, prompt = 600, [5, 17, 99]
    sizes = {"full_batch_size": 1, "kv_cache_batch_size": 1}
    session = open_session(compile_program(exports("llama", BATCH_INDEX), tmp_path / "logits", **sizes))
    logits = session.run(
        {
            "input_ids": np.array([[*prompt, 0]]),
            "position_ids": np.array([[0, 1, 2, -1]]),
            BATCH_INDEX: np.zeros((1, 1), np.int64),
        }
    )["logits"][0, 0]
    session.close()
    best = np.sort(logits)[::-1][:40]
    expected = np.exp((best - best[0]) / 3) / np.exp((best - best[0]) / 3).sum() * count
    exported = exports("llama", BATCH_INDEX, *SAMPLER_INPUTS, TOKEN_BITMASKS)
    sizes |= {"include_sampler": True, "include_guided_decoding": True}
    session = open_session(compile_program(exported, tmp_path / "sampler", **sizes))
    asked = {"do_sample": True, "temperature": 3.0, "top_k": 40, "seed": 5, "max_new_tokens": 1}
    tokens = [ids[0] for ids in TextGenerator(session).generate([prompt] * count, **asked).generated_ids]
    session.close()
    found = np.bincount(tokens, minlength=len(logits))[np.argsort(-logits, kind="stable")]
    assert found[40:].sum() == 0
    assert abs(found[20:40].sum() - expected[20:].sum()) < 4 * np.sqrt(expected[20:].sum())
    assert (np.abs(found[:40] - expected) < 4 * np.sqrt(expected) + 4).all()


def test_a_program_with_some_of_the_samplers_inputs_is_refused() -> None:
    program = FakeContinuous(batch_size=1, slots=1)
    more = TensorSpec(name="temperatures", dtype="float32", shape=("batch_size", 1))
    program.compiled = replace(program.compiled, inputs=(*program.compiled.inputs, more))
    with pytest.raises(
        InputError, match=r"a part of a sampler's inputs: it lacks last_accepted_output_tokens, .*top_ks"
    ):
        TextGenerator(program)
