"""One process reads the prompts, another one decodes: the states go from session to session, and the tokens are those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qeff_framework import QEFFAutoModelForCausalLM, load_compiled
from qeff_framework.errors import InputError
from tests.eager import eager_greedy
from tests.tiny_models import tiny_causal_lm

PROMPTS = [[5, 17, 99, 23, 42, 7, 64], [71, 3, 90]]
NEW_TOKENS = 6
SIZES = {"prefill_seq_len": 4, "ctx_len": 24, "num_cores": 1}

#: Decodes from states in a file: arguments are the artifact, the file, first tokens and lengths of the prompts as JSON.
_DECODES = """
import json, sys
import numpy as np
from qeff_framework import load_compiled

directory, file, tokens, lengths, count = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
with load_compiled(directory) as program:
    session = program.session
    states = session.read_states()
    with np.load(file) as filled:
        for name in states:
            # The cache has three rows; the prompts take two of them.
            states[name][[2, 0]] = filled[name]
    session.write_states(states)
    rows, index = [[token] for token in tokens], np.array([[2], [0], [1]])
    for step in range(count - 1):
        ids = np.array([[row[-1]] for row in rows] + [[0]])
        positions = np.array([[length + step] for length in lengths] + [[-1]])
        logits = session.run({"input_ids": ids, "position_ids": positions, "batch_index": index})["logits"]
        for row, scores in zip(rows, logits):
            row.append(int(scores[0].argmax()))
print(json.dumps(rows))
"""


def test_another_process_decodes_what_this_one_has_read(session_store: Path, tmp_path: Path) -> None:
    module, _ = tiny_causal_lm("llama")
    expected = [eager_greedy(module, prompt, NEW_TOKENS) for prompt in PROMPTS]
    model = QEFFAutoModelForCausalLM(module)
    decodes = model.compile("ort_sim", full_batch_size=3, prefill_only=False, **SIZES).directory
    model.compile("ort_sim", full_batch_size=2, prefill_only=True, **SIZES)
    first = []
    with load_compiled(model.compiled.directory) as program:
        assert [item.name for item in program.compiled.specializations] == ["prefill"]
        for row, prompt in enumerate(PROMPTS):
            for start in range(0, len(prompt), 4):
                chunk = prompt[start : start + 4]
                padding = [0] * (4 - len(chunk))
                positions = [*range(start, start + len(chunk)), *(-1 for _ in padding)]
                outputs = program.session.run(
                    {
                        "input_ids": np.array([[*chunk, *padding]]),
                        "position_ids": np.array([positions]),
                        "batch_index": np.array([[row]]),
                    }
                )
            first.append(int(outputs["logits"][0, 0].argmax()))
        np.savez(tmp_path / "states.npz", **program.session.read_states())
        with pytest.raises(InputError, match=r"no decode entry.*\(prefill_only=True\) is run through its session"):
            program.generate(prompts=PROMPTS)
    lengths = [len(prompt) for prompt in PROMPTS]
    command = [sys.executable, "-c", _DECODES, str(decodes), str(tmp_path / "states.npz")]
    answer = subprocess.run(
        [*command, *map(json.dumps, (first, lengths, NEW_TOKENS))], check=True, capture_output=True, text=True
    )
    assert json.loads(answer.stdout) == expected


def test_a_program_that_decodes_alone_reads_prompts_token_by_token(session_store: Path) -> None:
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    model.compile("ort_sim", prefill_only=False, **SIZES)
    output = model.generate(prompts=PROMPTS[:1], generation_len=NEW_TOKENS, ignore_eos=True)
    assert output.generated_ids == [eager_greedy(module, PROMPTS[0], NEW_TOKENS)]
