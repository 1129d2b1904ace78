"""The section about target aic in ``docs/qnn.md`` says what the code does."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from qeff_framework.options import MicroscalingOptions, OptionInfo, RuntimeOptions, describe_options
from qnn_backend import QnnConstants
from qnn_backend.aic.options import AicOptions, AicRuntimeOptions
from qnn_backend.aic.user_config import read_user_config

TEXT = (Path(__file__).parents[4] / "docs" / "qnn.md").read_text(encoding="utf-8")
SECTION = TEXT[TEXT.index("## Cloud AI 100 through QAIRT") :]


def row(info: OptionInfo) -> str:
    return f"| `{info.name}` | `{info.default}` | {info.help} |"


@pytest.mark.parametrize(
    ("place", "schema", "base"),
    [("compile", AicOptions, MicroscalingOptions), ("execute", AicRuntimeOptions, RuntimeOptions)],
)
def test_options_are_those_of_the_schema(place, schema, base) -> None:
    inherited = {field.name for field in dataclasses.fields(base)}
    expected = [row(info) for info in describe_options(schema) if info.name not in inherited]
    printed = re.search(
        rf"<!-- options of {place}: begin -->\n(.*?)<!-- options of {place}: end -->", SECTION, re.DOTALL
    )
    assert printed is not None
    header, *rows = printed[1].strip().splitlines()
    assert header == "| Option | Default | Meaning |"
    assert rows[1:] == expected


def test_the_example_of_the_users_file_is_taken(tmp_path) -> None:
    example = re.search(r"```json\n(.*?)```", SECTION, re.DOTALL)
    assert example is not None
    path = tmp_path / "qnn_config.json"
    path.write_text(example[1])
    assert set(json.loads(example[1])) == set(QnnConstants.QNN_SAMPLE_CONFIG)
    assert read_user_config(path).generator_arguments == ("--log_level", "debug")


def test_forbidden_arguments_and_files_are_listed() -> None:
    names = [
        *QnnConstants.IMMUTABLE_CONVERTER_ARGS,
        *QnnConstants.IMMUTABLE_CONTEXT_BIN_GEN_ARGS,
        *(
            value
            for name, value in vars(QnnConstants).items()
            if re.fullmatch(r"(?:\w+_CONFIG|QNN_COMPILE_BACKEND|TENSOR_SLICING|SPECIALIZATIONS)_NAME", name)
        ),
    ]
    assert len(names) == 20
    assert not [name for name in names if f"`{name}`" not in SECTION]
