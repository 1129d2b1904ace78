"""``docs/qaic.md`` says what the code does, and its examples run on the stand-in."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from qaic_backend import QaicOptions, QaicRuntimeOptions
from qeff_framework import cli
from qeff_framework.options import OptionInfo, describe_options
from tests.checkpoints import save_tiny_checkpoint
from tests.docs.markdown import blocks, commands

DOCUMENT = "docs/qaic.md"
TEXT = (Path(__file__).parents[3] / DOCUMENT).read_text(encoding="utf-8")


def row(info: OptionInfo) -> str:
    choices = f" ({', '.join(map(str, info.choices))})" if info.choices else ""
    return f"| `{info.name}` | `{info.default}` | {info.help}{choices} |"


def table(schema: type) -> str:
    rows = "\n".join(row(info) for info in describe_options(schema))
    return f"\n| Option | Default | Meaning |\n|---|---|---|\n{rows}\n\n"


@pytest.mark.parametrize(("place", "schema"), [("compile", QaicOptions), ("execute", QaicRuntimeOptions)])
def test_options_are_those_of_the_schema(place, schema) -> None:
    printed = re.search(rf"<!-- options of {place}: begin -->\n(.*?)<!-- options of {place}: end -->", TEXT, re.DOTALL)
    assert printed is not None
    assert printed[1] == table(schema)


@pytest.fixture
def gpt2(tmp_path, session_store) -> str:
    return str(save_tiny_checkpoint(tmp_path / "gpt2", "gpt2"))


def test_standin_python_examples(standin, gpt2, tmp_path, monkeypatch) -> None:
    standin(profile="1.22")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    found = blocks(DOCUMENT, "python")
    assert found
    for block in found:
        exec(compile(block.text.replace('"gpt2"', repr(gpt2)), DOCUMENT, "exec"), namespace)
    with namespace["model"].load() as runner:
        assert runner.compiled.backend == "qaic"


def test_standin_commands(standin, gpt2, tmp_path, monkeypatch) -> None:
    standin(profile="1.22")
    monkeypatch.chdir(tmp_path)
    found = commands(DOCUMENT)
    assert len(found) == 9
    for command in found:
        arguments = [gpt2 if argument == "gpt2" else argument for argument in shlex.split(command)[1:]]
        assert cli.main(arguments) == 0, command
