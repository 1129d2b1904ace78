"""Which types there are, and what is said about names that are none."""

from __future__ import annotations

import pytest

from qeff_framework.coverage.families import KINDS, chosen_types, types_of
from qeff_framework.errors import OptionError


def test_no_name_is_every_type() -> None:
    assert chosen_types("encoder", []) == types_of("encoder")
    assert chosen_types("causal-lm", ["llama", "bert", "llama"]) == ["llama", "bert"]


def test_unknown_types_are_told_all_at_once_with_what_was_meant() -> None:
    with pytest.raises(OptionError) as caught:
        chosen_types("causal-lm", ["lama", "mpnet", "zzzzzz", "gpt2"])
    message = str(caught.value)
    assert "'lama' (did you mean llama" in message
    assert "'mpnet' (use --task encoder)" in message
    assert message.endswith("'zzzzzz'")
    assert "gpt2" not in message


def test_the_kinds_are_different_types_of_the_mapping() -> None:
    assert len(set(KINDS.values())) == len(KINDS) >= 12
    assert set(KINDS.values()) <= set(types_of("causal-lm"))
