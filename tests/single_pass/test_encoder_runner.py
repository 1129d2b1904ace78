from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.single_pass import EncoderRunner
from qeff_framework.tokenization import normalize_inputs
from tests.generation.fakes import FakeCausalLM, FakeEncoder, encode

ALL = ("input_ids", "attention_mask", "token_type_ids")


@settings(max_examples=150)
@given(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=8), min_size=1, max_size=7),
    st.booleans(),
    st.sampled_from(["left", "right", "none"]),
)
def test_padding_and_splitting_do_not_change_the_result(rows: list[list[int]], pooled: bool, side: str) -> None:
    width = max(map(len, rows))
    fill = [[0] * (width - len(row)) for row in rows]
    padded = np.array([(f + r) if side == "left" else (r + f) for f, r in zip(fill, rows, strict=True)])
    mask = np.array(
        [(f + [1] * len(r)) if side == "left" else ([1] * len(r) + f) for f, r in zip(fill, rows, strict=True)]
    )
    inputs: dict[str, Any] = {"input_ids": rows} if side == "none" else {"input_ids": padded, "attention_mask": mask}
    session = FakeEncoder(pooled=pooled)

    result = EncoderRunner(session)(inputs)
    expected = encode(padded, mask, np.zeros_like(mask), pooled=pooled)
    assert result.shape == expected.shape
    if pooled:
        np.testing.assert_array_equal(result, expected)
    else:
        np.testing.assert_array_equal(result[mask == 1], expected[mask == 1])
    assert {call["input_ids"].shape[1] for call in session.calls} == {4 if width <= 4 else 8}


def test_threads_get_their_own_results() -> None:
    class OneBuffer(FakeEncoder):
        """Its arrays are valid until the next call, as those of a device are."""

        buffer = np.zeros((2, 4, 3), np.float32)

        def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            self.buffer[...] = super().run(inputs)["out"]
            time.sleep(0.0005)  # lets other threads go on
            return {"out": self.buffer}

    session = OneBuffer()
    rows = [[[token, token]] for token in range(10, 34)]
    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(lambda row: EncoderRunner(session)({"input_ids": row}), rows))
    assert [result[0, :, 0].tolist() for result in results] == [row[0] for row in rows]


def test_uses_the_smallest_program_and_fills_it_with_real_rows() -> None:
    session = FakeEncoder(seq_lens=(4, 8), batch_sizes=(1, 3))
    EncoderRunner(session)({"input_ids": [[7, 7], [6, 6]], "attention_mask": [[1, 1], [1, 1]]})
    (call,) = session.calls
    assert call["input_ids"].tolist() == [[7, 7, 9, 9], [6, 6, 9, 9], [7, 7, 9, 9]], "9 is the model's padding id"
    assert call["attention_mask"].tolist() == [[1, 1, 0, 0]] * 3


def test_what_hides_an_id_without_a_row_hides_it_from_the_lookup() -> None:
    session = FakeEncoder()
    EncoderRunner(session)({"input_ids": [[5, -100]], "attention_mask": [[1, 0]]})
    assert session.calls[0]["input_ids"][0].tolist() == [5, 9, 9, 9]


def test_columns_that_are_padding_everywhere_need_no_room() -> None:
    inputs = {"input_ids": torch.tensor([[5, 6] + [0] * 18]), "attention_mask": torch.tensor([[1, 1] + [0] * 18])}
    result = EncoderRunner(FakeEncoder())(inputs)
    assert result.shape == (1, 20, 3)
    assert result[0, :2, 0].tolist() == [5, 6]
    assert not result[0, 2:].any()


@pytest.mark.parametrize("names", [ALL, ALL[:2]])
def test_token_types_reach_a_graph_that_takes_them(names: tuple[str, ...]) -> None:
    session = FakeEncoder(inputs=names)
    given_types = EncoderRunner(session)({"input_ids": [3, 4], "attention_mask": [1, 1], "token_type_ids": [0, 1]})
    assert given_types[0, :, 1].tolist() == ([0, 1] if names == ALL else [0, 0])
    assert EncoderRunner(session)({"input_ids": [3, 4]})[0, :, 1].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [[1] * 9]}, r"has 9 tokens, the program was compiled for seq_len 4, 8.*max_length=8"),
        ({"input_ids": []}, "no inputs were given"),
        ({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [0, 0]]}, "row 1 of the inputs has no tokens"),
        (
            {"input_ids": [[1]], "pixel_values": [[1]]},
            "does not take pixel_values, only attention_mask, input_ids, token_type_ids",
        ),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "attention_mask has rows of"),
        ({"input_ids": [["a"]]}, "row 0, must be a list of whole numbers"),
        ([[1]], "a mapping with input_ids.*got list"),
        # A lookup takes -1 for the last row.
        ({"input_ids": [[5, 6], [5, -1]]}, "row 1 of the inputs holds the token id -1, the model knows 0 to 99"),
        ({"input_ids": [[100]]}, "row 0 of the inputs holds the token id 100"),
        ({"input_ids": [[5]], "token_type_ids": [[2]]}, "holds the token type 2, the model knows 0 to 1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: Any, message: str) -> None:
    session = FakeEncoder(inputs=ALL)
    with pytest.raises(InputError, match=message):
        EncoderRunner(session)(inputs)
    assert session.calls == []


def test_a_type_that_a_model_without_types_does_not_know_is_refused() -> None:
    """The graph of a model with one type has no input for it; Transformers' lookup raises."""
    session = FakeEncoder()
    session.compiled = replace(session.compiled, metadata={"type_vocab_size": 1})
    runner = EncoderRunner(session)
    runner({"input_ids": [[5, 6]], "token_type_ids": [[0, 0]]})
    with pytest.raises(InputError, match="holds the token type 1, the model knows 0 to 0"):
        runner({"input_ids": [[5, 6]], "token_type_ids": [[0, 1]]})


def test_a_graph_without_a_mask_takes_full_rows_only() -> None:
    runner = EncoderRunner(FakeEncoder(seq_lens=(2,), inputs=("input_ids",)))
    assert runner({"input_ids": [[1, 2]]})[0, :, 0].tolist() == [1, 2]
    with pytest.raises(InputError, match=r"takes no attention_mask.*rows of 2 tokens"):
        runner({"input_ids": [[1]]})


def test_programs_of_other_tasks_are_refused() -> None:
    with pytest.raises(InputError, match="use TextGenerator"):
        EncoderRunner(FakeCausalLM())


@pytest.mark.parametrize(("number", "told"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_result_that_is_no_number_is_refused(
    pooled: bool, number: float, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The greatest score of a row with NaN is some class; what padding holds means nothing."""
    session = FakeEncoder(pooled=pooled)
    inputs = {"input_ids": [[1, 2, 3], [4, 5]]}
    clean = session.run
    place = (1,) if pooled else (1, 1)

    def run(feed: Any) -> Any:
        outputs = {name: np.array(value, dtype=np.float32) for name, value in clean(feed).items()}
        for value in outputs.values():
            value[place] = number
        return outputs

    monkeypatch.setattr(session, "run", run)
    with pytest.raises(ExecutionError, match=rf"the \w+ of row 1 contain {told}: the program overflowed"):
        EncoderRunner(session)(inputs)
    place = (0,) if pooled else (1, 2)
    if not pooled:
        assert not np.isfinite(EncoderRunner(session)(inputs)[1, 2]).any()


def test_tokens_of_padded_rows_are_found_on_either_side() -> None:
    assert normalize_inputs({"input_ids": [[0, 1, 2], [3, 0, 0]], "attention_mask": [[0, 1, 1], [1, 0, 0]]}) == [
        [1, 2],
        [3],
    ]
    assert normalize_inputs(torch.tensor([4, 5])) == [[4, 5]]
    assert normalize_inputs([torch.tensor([4, 5]), np.array([6])]) == [[4, 5], [6]]
