"""``qnn_config.json``: keys, arguments that the backend sets itself, options of the back end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qeff_framework.errors import OptionError
from qeff_framework.options import parse_options
from qnn_backend import QnnConstants, QnnOptions
from qnn_backend.aic.user_config import UserConfig, read_user_config

CONVERTER = QnnConstants.CONVERTER_ARGS_EXTENSION_STR
GENERATOR = QnnConstants.CONTEXT_BIN_ARGS_EXTENSION_STR
BACKEND = QnnConstants.QNN_COMPILATION_BACKEND_STR
SKIP = QnnConstants.SKIP_QNN_CONVERTER_STEP_STR


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "qnn_config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_sample_is_taken(tmp_path) -> None:
    assert read_user_config(written(tmp_path, dict(QnnConstants.QNN_SAMPLE_CONFIG))) == UserConfig(
        converter_arguments=("--onnx_defer_loading",),
        generator_arguments=("--log_level", "debug"),
        backend_options=QnnConstants.QNN_SAMPLE_CONFIG[BACKEND],
        skip_converter=False,
    )
    assert read_user_config(None) == UserConfig()


@pytest.mark.parametrize(
    ("key", "option"),
    [
        *((CONVERTER, option) for option in QnnConstants.IMMUTABLE_CONVERTER_ARGS),
        *((GENERATOR, option) for option in QnnConstants.IMMUTABLE_CONTEXT_BIN_GEN_ARGS),
    ],
)
@pytest.mark.parametrize("form", ["{} x", "{}=x", "--debug {} x", "{}\tx", "'{}' x", "{}"])
def test_every_form_of_a_forbidden_argument_is_refused(key, option, form, tmp_path) -> None:
    with pytest.raises(ValueError, match=rf"'{option}' in '{key}' is set by the backend"):
        read_user_config(written(tmp_path, {key: form.format(option)}))


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        (CONVERTER, "--input_net x", "'--input_net', which the tool may take for '--input_network'"),
        (CONVERTER, "--conf=x", "may take for '--config'"),
        (CONVERTER, "-i x", "'-i' in"),
        (CONVERTER, "-omodel.dlc", "may take for '-o'"),
        (CONVERTER, "-oss", "'-oss' in"),
        (GENERATOR, "--dlc a,b", "may take for '--dlc_path'"),
        (GENERATOR, "--data_format_config f.json", "use the option 'mxint8_kv_cache'"),
        (GENERATOR, "--log_level info --log_level=debug", "'--log_level' is twice"),
        (CONVERTER, "AIC", "must start with an option, got 'AIC'"),
        (CONVERTER, "--debug 'x", "cannot be split"),
    ],
)
def test_other_arguments_that_cannot_be_passed_on(key, text, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        read_user_config(written(tmp_path, {key: text}))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        # Texts that contain a forbidden option, and are none.
        (CONVERTER, "--op_package_config x.json"),
        (CONVERTER, "--quantization_overrides '/a --config /b.json'"),
        (CONVERTER, "--debug -1"),
        (CONVERTER, "--target_backend AIC"),
        (GENERATOR, "--model_prefix QnnModel"),
        (GENERATOR, "--profiling_level basic --platform_options=a:b"),
    ],
)
def test_similar_arguments_are_passed_on(key, text, tmp_path) -> None:
    config = read_user_config(written(tmp_path, {key: text}))
    assert len([*config.converter_arguments, *config.generator_arguments]) in (1, 2, 3)


@given(st.text("-=abcdefgilnoptuw_ '", max_size=30))
@example("-inf")
def test_no_text_brings_a_forbidden_option_through(text: str) -> None:
    """Whatever is accepted has no token that is, abbreviates or begins with a forbidden option."""
    from qnn_backend.aic import user_config

    problems = user_config._argument_problems("key", text, {"--input_network": "", "-i": ""})
    if not problems:
        import shlex

        names = [token.partition("=")[0] for token in shlex.split(text)]
        assert not [name for name in names if name.startswith("-i")]
        assert not [name for name in names if len(name) > 2 and "--input_network".startswith(name)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ([], "is not a JSON object"),
        ({"converter_args": ""}, "unknown key 'converter_args', did you mean 'converter_args_extension'"),
        ({"x": 1}, "unknown key 'x'; there are converter_args_extension"),
        ({SKIP: "true"}, f"'{SKIP}' must be a boolean"),
        ({CONVERTER: ["--debug"]}, "must be a text"),
        ({BACKEND: []}, "must be an object"),
        ({BACKEND: {"compiler_num_cores": 4}}, "did you mean 'compiler_num_of_cores'"),
        ({BACKEND: {"compiler_time_passes": "true"}}, "must be a boolean, got 'true'"),
        ({BACKEND: {"compiler_stat_level": True}}, "must be an integer, got True"),
        ({BACKEND: {"compiler_max_out_channel_split": 4}}, "must be a text, got 4"),
    ],
)
def test_documents_that_are_refused(content, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        read_user_config(written(tmp_path, content))


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.json cannot be read"):
        read_user_config(tmp_path / "nothing.json")


def test_options_of_newer_sdks_are_left_to_the_tool(tmp_path) -> None:
    new = {"compiler_something_quite_different": [1]}
    assert read_user_config(written(tmp_path, {BACKEND: new})).backend_options == new


# --- together with the options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        (
            {"compiler_num_of_cores": 4},
            {"num_cores": 2},
            "'compiler_num_of_cores' cannot be 4: use the option 'num_cores'",
        ),
        ({"compiler_mxfp6_matmul_weights": True}, {}, "use the option 'mxfp6_matmul'"),
        ({"compiler_retained_state": False}, {}, "it follows from the model"),
        ({"graph_names": ["model"]}, {}, "'graph_names' cannot be .*it follows from the model"),
        ({"compiler_mdp_load_partition_config": "x.json"}, {}, "use the option 'num_devices'"),
        ({"compiler_max_out_channel_split": "4"}, {"mos": 2}, "use the option 'mos'"),
        ({"compiler_enable_depth_first": True}, {"aic_enable_depth_first": False}, "'aic_enable_depth_first'"),
    ],
)
def test_contradictions_are_refused_before_any_work(backend, options, message, tmp_path) -> None:
    values = {"target": "aic", "qnn_config": written(tmp_path, {BACKEND: backend}), **options}
    with pytest.raises(OptionError, match=message):
        parse_options(QnnOptions, values, owner="backend 'qnn'")


def test_what_agrees_or_is_left_open_is_taken(tmp_path) -> None:
    backend = {"compiler_num_of_cores": 2, "compiler_enable_depth_first": True, "compiler_max_out_channel_split": "2"}
    values = {"target": "aic", "qnn_config": written(tmp_path, {BACKEND: backend}), "num_cores": 2}
    assert parse_options(QnnOptions, values, owner="backend 'qnn'").qnn_config == values["qnn_config"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_cores": 17}, "at most 16 cores"),
        ({"num_devices": 17}, "at most 16 devices"),
        ({"mos": 3}, "mos=3 must be a power of two"),
        ({"num_cores": 2, "mos": 4}, "at most num_cores=2"),
        ({"dlc_file": Path("nothing.dlc")}, r"nothing\.dlc does not exist"),
        ({"qnn_config": Path("nothing.json")}, "cannot be read"),
        ({"precision": "w8"}, "'precision' is one of the chips with an NPU and means nothing for target aic"),
        ({"target": "SM8650", "mos": 2}, "'mos' is one of target aic and means nothing for target SM8650"),
        ({"target": "SM8650", "qnn_config": Path("x")}, "'qnn_config' is one of target aic"),
        ({"aic_enable_deep_first": True}, "did you mean 'aic_enable_depth_first'"),
    ],
)
def test_options_that_cannot_work_are_refused_before_any_work(values, message) -> None:
    with pytest.raises(OptionError, match=message):
        parse_options(QnnOptions, {"target": "aic", **values}, owner="backend 'qnn'")


def test_skipping_the_converter_needs_the_dlc(tmp_path) -> None:
    config = written(tmp_path, {SKIP: True})
    with pytest.raises(OptionError, match=rf"{SKIP} needs the option dlc_file"):
        parse_options(QnnOptions, {"target": "aic", "qnn_config": config}, owner="backend 'qnn'")
    dlc = tmp_path / "model.dlc"
    dlc.write_bytes(b"dlc")
    assert (
        parse_options(QnnOptions, {"target": "aic", "qnn_config": config, "dlc_file": dlc}, owner="x").dlc_file == dlc
    )
    config.write_text(json.dumps({CONVERTER: "--debug"}))
    with pytest.raises(OptionError, match="with dlc_file the converter does not run"):
        parse_options(QnnOptions, {"target": "aic", "qnn_config": config, "dlc_file": dlc}, owner="backend 'qnn'")
