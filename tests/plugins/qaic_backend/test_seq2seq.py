"""Encoder-decoders on the stand-in's device: one program whose specializations share the states of cross-attention."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest

from qeff_framework.contracts import ExportedModel
from qeff_framework.errors import InputError
from qeff_framework.export.portable import export_portable
from qeff_framework.generation import TextGenerator
from tests.eager import eager_seq2seq_greedy
from tests.plugins.qaic_backend.sessions import compile_program, open_session
from tests.sdk_standins.qaic import NEGATIVE_SCATTER_VARIABLE
from tests.tiny_models import tiny_seq2seq_lm

SOURCES = [[5, 17, 99, 23, 42, 7, 64, 31, 88, 12, 54], [71, 30, 90], [11, 29, 47, 83]]
NEW_TOKENS = 10


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Exports of tiny encoder-decoders, each made once."""

    @functools.cache
    def made(model_type: str) -> ExportedModel:
        directory = tmp_path_factory.mktemp(model_type)
        return export_portable(tiny_seq2seq_lm(model_type), task="seq2seq-lm", output_dir=directory)

    return made


@pytest.mark.parametrize(
    ("model_type", "profile", "negative_scatter", "fp16"),
    [("t5", "1.21", "wrap", False), ("bart", "1.22", "drop", True), ("marian", "1.21", "wrap", True)],
)
def test_standin_same_tokens_as_eager(
    model_type, profile, negative_scatter, fp16, standin, export, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv(NEGATIVE_SCATTER_VARIABLE, negative_scatter)
    module = tiny_seq2seq_lm(model_type)
    expected = [eager_seq2seq_greedy(module, source, NEW_TOKENS) for source in SOURCES]
    standin(profile=profile)
    compiled = compile_program(
        export(model_type),
        tmp_path / "program",
        encoder_seq_len=(6, 16),
        ctx_len=12,
        batch_size=3,
        convert_to_fp16=fp16,
    )
    session = open_session(compiled)
    generator = TextGenerator(session, generation_defaults={"decoder_start_token_id": 3})

    # Sources of unequal length together; then shorter ones in their own program, over what the longer one has left.
    assert generator.generate(SOURCES[:2], max_new_tokens=NEW_TOKENS).generated_ids == expected[:2]
    assert generator.generate(SOURCES[1:], max_new_tokens=NEW_TOKENS).generated_ids == expected[1:]
    with pytest.raises(InputError, match="position 16 of row 0 does not fit into the context: encoder_ctx_len is 16"):
        session.run(
            {
                "input_ids": np.zeros((3, 1), np.int64),
                "position_ids": np.zeros((3, 1), np.int64),
                "encoder_input_ids": np.zeros((3, 1), np.int64),
                "encoder_position_ids": np.full((3, 1), 16),
                "encoder_lengths": np.ones((3, 1), np.int64),
            }
        )
    session.close()


def test_standin_specializations_are_named_for_what_they_do(standin, export, tmp_path) -> None:
    standin(profile="1.22")
    compiled = compile_program(
        export("marian"), tmp_path / "program", encoder_seq_len=(6, 16), ctx_len=12, dry_run=True
    )

    written = json.loads((compiled.directory / "specializations.json").read_text())["specializations"]

    assert [entry["name"] for entry in written] == ["Encoder_0", "Encoder_1", "Decode"]
    assert [entry["symbols"]["encoder_seq_len"] for entry in written] == ["6", "16", "1"]
    assert {entry["symbols"]["encoder_ctx_len"] for entry in written} == {"16"}
    assert "past_key_cross.0_RetainedState" in (compiled.directory / "custom_io.yaml").read_text()


def test_a_program_without_a_decode_entry_is_refused(standin, export, tmp_path) -> None:
    standin()
    compiled = compile_program(export("marian"), tmp_path / "program", encoder_seq_len=6, ctx_len=12)
    session = open_session(compiled)
    session.compiled = replace(compiled, specializations=compiled.specializations[:1])
    with pytest.raises(InputError, match="encoder_seq_len=1 to decode"):
        TextGenerator(session)
    session.close()
