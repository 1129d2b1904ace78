"""Text that was typed becomes the type of the field that it is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from qeff_framework.cli.text_options import typed_options
from qeff_framework.options import option
from qeff_framework.shapes import CausalLMShapes, EncoderShapes


@dataclass(frozen=True, kw_only=True)
class Options:
    flag: bool = option(False, "")
    ratio: float = option(1.0, "")
    name: str = option("", "")
    count: int | None = option(None, "")
    either: int | str = option(0, "")
    flags: tuple[str, ...] = option((), "")
    file: Path | None = None
    ctx_len: str = option("", "shadowed by the size of the same name")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("flag", "true", True),
        ("flag", "0", False),
        ("ratio", "0.5", 0.5),
        ("name", "16", "16"),
        ("name", "a=b,c", "a=b,c"),
        ("count", "16", 16),
        ("count", "none", None),
        ("either", "16", 16),
        ("either", "auto", "auto"),
        ("flags", "-a=1, -b", ("-a=1", "-b")),
        ("flags", "", ()),
        ("file", "some/file", Path("some/file")),
        ("ctx_len", "64", 64),
        ("full_batch_size", "4", 4),
        # Alone it contradicts the default ctx_len; whether it does is for the whole set of sizes to say.
        ("prefill_seq_len", "256", 256),
    ],
)
def test_read_by_type(name, text, value):
    assert typed_options({name: text}, [CausalLMShapes, Options]) == {name: value}


@pytest.mark.parametrize(("text", "value"), [("128", 128), ("64,128", (64, 128))])
def test_lengths_of_an_encoder(text, value):
    assert typed_options({"seq_len": text}, [EncoderShapes]) == {"seq_len": value}


@pytest.mark.parametrize(("name", "text"), [("flag", "perhaps"), ("count", "many"), ("unknown", "5")])
def test_what_cannot_be_read_stays_text(name, text):
    assert typed_options({name: text}, [Options]) == {name: text}
