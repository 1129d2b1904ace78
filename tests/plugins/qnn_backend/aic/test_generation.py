"""Continuous batching at the hooks: two graphs, prefill of one row and decode of all, over the cache rows of every prompt."""

from __future__ import annotations

from pathlib import Path

import yaml

from qeff_framework.contracts import EXTRA_INPUTS, ExportedModel
from qeff_framework.export.portable import export_portable
from qeff_framework.generation import GenerationSettings, TextGenerator
from qeff_framework.shapes import CausalLMShapes
from tests.plugins.qnn_backend.aic.programs import compile_program, open_session
from tests.tiny_models import tiny_causal_lm
from tests.twelve_prompts import CTX_LEN, MAX_LENGTH, answers_alone, twelve_prompts

SIZES = {"prefill_seq_len": 4, "ctx_len": CTX_LEN}


def test_standin_twelve_prompts_in_four_rows(
    standin_qairt, standin_card, llama_export: ExportedModel, tmp_path: Path
) -> None:
    standin_qairt()
    standin_card()
    module, _ = tiny_causal_lm("llama")
    prompts = twelve_prompts()
    _, eos = answers_alone(module, prompts)
    asked = GenerationSettings(max_length=MAX_LENGTH, eos_token_ids=(eos,))
    single = compile_program(llama_export, tmp_path / "single", shapes=CausalLMShapes(**SIZES).specializations())
    session = open_session(single)
    alone = [TextGenerator(session).generate_ids([prompt], asked).generated_ids[0] for prompt in prompts]
    session.close()
    assert len({len(answer) for answer in alone}) > 5

    batch_index = EXTRA_INPUTS[0]
    (tmp_path / "export").mkdir()
    exported = export_portable(module, task="causal-lm", output_dir=tmp_path / "export", extra_inputs=(batch_index,))
    rows = CausalLMShapes(full_batch_size=4, **SIZES).specializations()
    compiled = compile_program(exported, tmp_path / "program", shapes=rows)
    document = yaml.safe_load((compiled.directory / "custom_io_config.yaml").read_text())
    inputs = {item["Name"]: item["Desired Model Parameters"] for item in document["Input Tensor Configuration"]}
    assert inputs[batch_index] == {"DataType": "int64", "Shape": "(1, 1), (4, 1)"}
    assert inputs["past_key_0"]["Shape"] == f"(4, 2, {CTX_LEN}, 8)"
    session = open_session(compiled)
    assert TextGenerator(session).generate_ids(prompts, asked).generated_ids == alone
    session.close()
