"""A table that tokens look their positions up in bounds the sizes that a model is compiled for; computed positions do not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import onnx_ir
import pytest

from qeff_framework import QEFFAutoModelForCausalLM
from qeff_framework.errors import OptionError
from qeff_framework.export.portable import export_portable
from qeff_framework.export.position_limits import position_limits
from tests.recording_backend import RecordingBackend, RecordingHooks
from tests.tiny_models import tiny_causal_lm, tiny_encoder, tiny_seq2seq_lm


def limits(graph: str, *, has_cache: bool = True) -> dict[str, int]:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> {graph}')
    return position_limits(onnx_ir.serde.deserialize_model(proto), has_cache=has_cache)


@pytest.mark.parametrize(
    ("indices", "limit"),
    [
        ("at = Identity (position_ids)", 10),
        ("zero = Constant <value_int = 0> () at = Max (position_ids, zero)", 10),
        ("two = Constant <value_int = 2> () at = Add (position_ids, two)", 8),
        ("last = Constant <value_int = 9> () at = Min (position_ids, last)", None),
        ("at = Identity (input_ids)", None),
    ],
    ids=["plain", "clamped below", "with an offset", "clamped into the table", "tokens"],
)
def test_the_limit_is_where_indices_leave_the_table(indices: str, limit: int | None) -> None:
    found = limits(
        f"""g (int64[B, S] input_ids, int64[B, S] position_ids, float[10, 4] table) => (float[B, S, 4] y) {{
            {indices} y = Gather (table, at)
        }}"""
    )
    assert found == ({} if limit is None else {"ctx_len": limit})


def test_the_smallest_table_counts() -> None:
    found = limits(
        """g (int64[B, S] position_ids, float[10, 4] a, float[7, 4] b) => (float[B, S, 4] y) {
            x = Gather (a, position_ids) z = Gather (b, position_ids) y = Add (x, z)
        }"""
    )
    assert found == {"ctx_len": 7}


def test_indices_cut_out_of_a_table_run_out() -> None:
    found = limits(
        """g (int64[B, S] input_ids, float[20, 4] table) => (float[1, S, 4] y)
        <int64[1, 6] numbers = {0, 1, 2, 3, 4, 5}, int64[1] first = {0}, int64[1] axis = {1}> {
            length = Shape <start = 1, end = 2> (input_ids) at = Slice (numbers, first, length, axis)
            y = Gather (table, at)
        }""",
        has_cache=False,
    )
    assert found == {"seq_len": 6}


def test_a_long_table_of_token_types_ends_behind_its_last_one() -> None:
    """It gives the kind of each position, and kinds have a table of one row."""
    found = limits(
        f"""g (int64[1, S] position_ids, float[1, 4] table) => (float[1, S, 4] y)
        <int64[1, 100] types = {{{", ".join("0" * 100)}}}> {{
            at = GatherElements <axis = 1> (types, position_ids) y = Gather (table, at)
        }}"""
    )
    assert found == {"ctx_len": 100}


@pytest.mark.parametrize(
    ("module", "task", "expected"),
    [
        (lambda: tiny_causal_lm("llama", max_position_embeddings=64)[0], "causal-lm", {}),
        # Its padding token takes a row, and positions begin behind that.
        (lambda: tiny_encoder("roberta", max_position_embeddings=66, pad_token_id=1), "encoder", {"seq_len": 64}),
        (
            lambda: tiny_seq2seq_lm("bart", max_position_embeddings=64),
            "seq2seq-lm",
            {"ctx_len": 64, "encoder_seq_len": 64},
        ),
    ],
    ids=["llama", "roberta", "bart"],
)
def test_models(module: Any, task: Any, expected: Mapping[str, int], tmp_path: Path) -> None:
    made = module()
    made = made[0] if isinstance(made, tuple) else made
    assert export_portable(made, task=task, output_dir=tmp_path).metadata["position_limits"] == expected


@pytest.mark.usefixtures("session_store")
def test_a_context_beyond_the_table_is_refused_before_compiling() -> None:
    model = QEFFAutoModelForCausalLM(tiny_causal_lm("gpt2", max_position_embeddings=64)[0])
    compiled = RecordingHooks.compiled
    with pytest.raises(OptionError, match=r"^ctx_len=65 is more than .* ends after 64; give ctx_len=64 or less"):
        model.compile(RecordingBackend, ctx_len=65)
    with pytest.raises(OptionError, match=r"^ctx_len=128 \(the default\) is more"):
        model.compile(RecordingBackend)
    assert RecordingHooks.compiled == compiled
    model.compile(RecordingBackend, ctx_len=64)
    assert RecordingHooks.compiled == compiled + 1
