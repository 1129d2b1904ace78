"""Lines of users' files end with LF or CR LF, and at no other character."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qeff_framework.textfiles import parse_json, read_input, read_text, split_lines

#: What `str.splitlines` breaks at beside the ends of lines, and a byte order mark inside a text.
ODD = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\ufeff"


@given(lines=st.lists(st.text(st.sampled_from(f"ab \u00e9{ODD}")), max_size=5), end=st.sampled_from(["\n", "\r\n"]))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str) -> None:
    lines = [line.rstrip("\r") for line in lines]
    file = tmp_path_factory.getbasetemp() / "lines.txt"
    content = "".join(line + end for line in lines)
    for mark in ("", "\ufeff"):
        if not mark and content.startswith("\ufeff"):
            continue  # that is a mark
        file.write_bytes((mark + content).encode())
        assert split_lines(read_text(file)) == lines


def test_the_last_line_needs_no_end() -> None:
    assert split_lines("a\n\nb") == ["a", "", "b"]
    assert split_lines("") == []


def test_standard_input_is_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    data = "\ufeffone\r\ntwo\u2028three\n".encode()
    for stream in (io.TextIOWrapper(io.BytesIO(data), encoding="latin-1"), io.StringIO(data.decode())):
        monkeypatch.setattr("sys.stdin", stream)
        assert read_input("-") == "one\ntwo\u2028three\n"


def test_other_encodings_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "utf16").write_text("text", encoding="utf-16")
    with pytest.raises(UnicodeDecodeError):
        read_input(str(tmp_path / "utf16"))


def test_a_name_that_an_object_has_twice_is_refused() -> None:
    assert parse_json('{"a": [{"b": 1}, {"b": 2}], "b": null}') == {"a": [{"b": 1}, {"b": 2}], "b": None}
    with pytest.raises(ValueError, match="an object has the name 'prompt' more than once"):
        parse_json('[{"prompt": "one", "key": 1, "prompt": "two"}]')
