from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from qeff_framework.errors import OptionError
from qeff_framework.options import (
    CompileOptions,
    MicroscalingOptions,
    check_switches,
    describe_options,
    option,
    parse_options,
)
from qeff_framework.tokenization.chat import ChatOptions


@dataclass(frozen=True, kw_only=True)
class AcmeOptions(MicroscalingOptions):
    target: str = option("a1", "chip", choices=("a1", "a2"))
    ratio: float = option(0.5, "share", minimum=0)
    lengths: int | tuple[int, ...] = option(8, "lengths")
    limit: int | None = option(None, "limit", minimum=1)
    side_file: Path | None = option(None, "file")

    def __post_init__(self) -> None:
        if self.target == "a2" and self.num_cores > 16:
            raise ValueError("target a2 has 16 cores")


def parse(**values: object) -> AcmeOptions:
    return parse_options(AcmeOptions, values, owner="backend 'acme'")


def test_defaults_are_filled_in() -> None:
    assert parse() == AcmeOptions()
    assert parse(num_cores=4).num_cores == 4


def test_misspelt_name_is_told_with_the_right_one() -> None:
    with pytest.raises(OptionError, match=r"unknown option 'num_core', did you mean 'num_cores'\?"):
        parse(num_core=16)


def test_dashes_are_suggested_as_underscores() -> None:
    with pytest.raises(OptionError, match="did you mean 'num_cores'"):
        parse(**{"num-cores": 16})


def test_option_of_another_backend_is_told() -> None:
    with pytest.raises(OptionError, match=r"'target_soc' is an option of backend 'qnn'"):
        parse_options(AcmeOptions, {"target_soc": 1}, owner="backend 'acme'", elsewhere={"target_soc": ["qnn"]})


def test_unset_is_no_choice_and_may_be_given() -> None:
    @dataclass(frozen=True, kw_only=True)
    class WithUnset:
        mode: str | None = option(None, "unset: the compiler decides", choices=("a", "b"))

    assert parse_options(WithUnset, {"mode": None}, owner="test") == WithUnset()
    assert parse_options(WithUnset, {"mode": "none"}, owner="test", from_text=True) == WithUnset()
    with pytest.raises(OptionError, match="'a', 'b'"):
        parse_options(WithUnset, {"mode": "c"}, owner="test")


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(OptionError) as caught:
        parse(num_core=1, target="a9", ratio=-1.0, num_devices="2")
    message = str(caught.value)
    assert "num_core'" in message
    assert "'a9'" in message
    assert "must be at least 0" in message
    assert "'num_devices' must be int, got str '2'" in message


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"num_cores": True}, "must be int, got bool"),
        ({"num_cores": 0}, "must be at least 1"),
        ({"limit": 0}, "must be at least 1"),
        ({"mxfp6_matmul": 1}, "must be bool"),
        ({"lengths": (1, "2")}, "must be"),
        ({"target": "a2", "num_cores": 32}, "a2 has 16 cores"),
    ],
)
def test_values_are_checked(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(OptionError, match=complaint):
        parse(**values)


def test_text_is_read_by_the_type_of_the_field() -> None:
    text = {
        "num_cores": "4",
        "mxfp6_matmul": "true",
        "ratio": "0.25",
        "lengths": "8,16",
        "limit": "none",
        "side_file": "a.yaml",
    }
    options = parse_options(AcmeOptions, text, owner="backend 'acme'", from_text=True)
    assert options == AcmeOptions(num_cores=4, mxfp6_matmul=True, ratio=0.25, lengths=(8, 16), side_file=Path("a.yaml"))
    assert parse_options(AcmeOptions, {"lengths": "8"}, owner="x", from_text=True).lengths == 8


@pytest.mark.parametrize("text", [{"num_cores": "4.5"}, {"mxfp6_matmul": "yes"}, {"ratio": "much"}, {"lengths": "8;9"}])
def test_unreadable_text_is_refused(text: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=f"option '{next(iter(text))}' must be"):
        parse_options(AcmeOptions, text, owner="backend 'acme'", from_text=True)


@dataclass(frozen=True, kw_only=True)
class TileOptions(CompileOptions):
    tile: tuple[int, str]
    shape: tuple[int, int] = option((1, 2), "rows and columns")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "option 'tile' has no default and must be given"),
        ({"tile": (1, 2)}, r"option 'tile' must be tuple\[int, str\], got tuple \(1, 2\)"),
        ({"tile": (1, "a"), "shape": (3,)}, r"option 'shape' must be tuple\[int, int\], got tuple \(3,\)"),
        ({"tile": (1, "a"), "shape": (3, 4, 5)}, "option 'shape' must be"),
    ],
)
def test_options_without_a_default_and_tuples_of_one_length(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(OptionError, match=complaint):
        parse_options(TileOptions, values, owner="backend 'acme'")


def test_text_for_a_tuple_of_one_length() -> None:
    texts = {"tile": "3,a", "shape": "4,5"}
    assert parse_options(TileOptions, texts, owner="x", from_text=True) == TileOptions(tile=(3, "a"), shape=(4, 5))
    with pytest.raises(OptionError, match=r"option 'shape' must be tuple\[int, int\], got 1 values: '3'"):
        parse_options(TileOptions, {**texts, "shape": "3"}, owner="x", from_text=True)


def test_formats_that_a_backend_lacks_are_taken_at_false_only() -> None:
    def parsed(value: object, **how: bool) -> CompileOptions:
        return parse_options(CompileOptions, {"mxfp6_matmul": value}, owner="backend 'plain'", **how)

    assert parsed(False) == parsed("false", from_text=True) == CompileOptions()
    with pytest.raises(OptionError, match="backend 'plain' does not support mxfp6_matmul=True; leave it out"):
        parsed(True)
    with pytest.raises(OptionError, match="must be bool, got str 'no'"):
        parsed("no", from_text=True)


def test_description_has_a_row_for_each_field() -> None:
    rows = {row.name: row for row in describe_options(AcmeOptions)}
    assert list(rows)[:2] == ["num_devices", "num_cores"]
    assert rows["target"].choices == ("a1", "a2")
    assert rows["limit"].type == "int | None"
    assert all(row.help for row in rows.values())


def test_a_path_may_be_given_as_text() -> None:
    @dataclass(frozen=True, kw_only=True)
    class WithFile:
        file: Path | None = option(None, "a file")
        name: str = option("", "a name")

    parsed = parse_options(WithFile, {"file": "a/b.txt", "name": "c"}, owner="test")
    assert parsed == WithFile(file=Path("a/b.txt"), name="c")
    with pytest.raises(OptionError, match="option 'file' must be Path | None, got int 3"):
        parse_options(WithFile, {"file": 3}, owner="test")


def test_arguments_that_are_true_or_false_are_no_texts() -> None:
    """A text is true, whatever it says."""
    check_switches("compile", rebuild=True, dry_run=False, other=None)
    with pytest.raises(OptionError, match="compile: rebuild='false' must be True or False"):
        check_switches("compile", rebuild="false")
    with pytest.raises(OptionError, match="add_generation_prompt=1 must be"):
        ChatOptions(add_generation_prompt=1).ending([{"role": "user"}])  # type: ignore[arg-type]
