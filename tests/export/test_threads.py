"""Exports in several threads, while another one generates with Transformers."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import onnx
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.utils import logging as transformers_logging

from qeff_framework.export.portable import export_portable
from tests.eager import eager_greedy
from tests.tiny_models import tiny_causal_lm

PROMPT, NEW_TOKENS = [5, 17, 99, 23], 6


def state_of_the_process():
    return (
        dict(ALL_MASK_ATTENTION_FUNCTIONS),
        list(warnings.filters),
        transformers_logging.get_verbosity(),
        logging.getLogger("torch.onnx").level,
        dict(torch.nn.modules.module._global_forward_hooks),
        torch.nn.Module.__call__,
    )


def test_two_exports_and_a_generation(llama_export, tmp_path, capsys):
    models = {"llama": tiny_causal_lm("llama")[0], "gpt2": tiny_causal_lm("gpt2", n_layer=1)[0]}
    generating, _ = tiny_causal_lm("gemma2", num_hidden_layers=1)
    expected = eager_greedy(generating, PROMPT, NEW_TOKENS)
    before, done, answers = state_of_the_process(), threading.Event(), []

    def generate() -> None:
        while not done.is_set():
            answers.append(eager_greedy(generating, PROMPT, NEW_TOKENS))
            print("generated")
            time.sleep(0.05)

    def export(name: str) -> bytes:
        exported = export_portable(models[name], task="causal-lm", output_dir=tmp_path / name)
        return onnx.load(exported.model_path, load_external_data=False).SerializeToString()

    with ThreadPoolExecutor(3) as pool:
        generation = pool.submit(generate)
        results = list(pool.map(export, models))
        while len(answers) <= 3:  # however fast an export is, several generations run beside it
            results = list(pool.map(export, models))
        done.set()
        generation.result()
    assert len(answers) > 3
    assert all(answer == expected for answer in answers)
    assert capsys.readouterr().out.count("generated") == len(answers)
    assert state_of_the_process() == before
    assert results[0] == onnx.load(llama_export.model_path, load_external_data=False).SerializeToString()
