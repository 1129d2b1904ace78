"""Rows C1 to C8: what the stand-in `qaic-compile` accepts on its command line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from onnx import TensorProto
from tests.sdk_standins.graphs import Decoder
from tests.sdk_standins.harness import Compiler

HINT = "Use -h, -help, or --help for list of options."


def test_c1_known_options_of_the_profile(compiler: Compiler) -> None:
    compiler.ok(
        compiler.decoder_arguments(
            "-mxfp6-matmul", "-aic-enable-depth-first", "-mos=2", "-stats-level=70", "-user-tiled", "-sub-functions"
        )
    )


@pytest.mark.parametrize("option", ["-device-group=[0]", "-Convert-to-fp16", "-custom-io-list-file=x", "-batch-size=1"])
def test_c1_unknown_option(compiler: Compiler, option: str) -> None:
    compiler.fails([*compiler.decoder_arguments(), option], f"Invalid option {option}. {HINT}")


@pytest.mark.parametrize(
    ("profile", "option"), [("legacy", "-sub-functions"), ("1.21", "-num-iter=1"), ("1.22", "-compile-only")]
)
def test_c1_option_of_another_profile(compiler_for: Callable[[str], Compiler], profile: str, option: str) -> None:
    compiler = compiler_for(profile)
    compiler.fails([*compiler.decoder_arguments(), option], f"Invalid option {option}. {HINT}")


@pytest.mark.parametrize(
    "option", ["--retained-state", "-retained_state", "--aic-num-cores=4", "-aic_hw", "retained-state"]
)
def test_c2_spelling(compiler: Compiler, option: str) -> None:
    compiler.fails([*compiler.arguments(), option], f"Invalid option {option}. {HINT}")


def test_c2_value_in_an_argument_of_its_own(compiler: Compiler) -> None:
    arguments = compiler.decoder_arguments("-stats-level", "70")
    compiler.fails(arguments, "-stats-level needs a value")
    compiler.fails(compiler.decoder_arguments("-mxfp6-matmul", "true"), f"Invalid option true. {HINT}")


@pytest.mark.parametrize("help_option", ["-h", "-help", "--help", "-u", "--usage"])
def test_c2_help(compiler: Compiler, help_option: str) -> None:
    outcome = compiler([help_option])

    assert outcome.code == 0
    assert "Stand-in" in outcome.stdout
    assert "-custom-IO-list-file" in outcome.stdout


def test_c3_booleans(compiler: Compiler) -> None:
    compiler.ok(compiler.decoder_arguments("-mxfp6-matmul=true", "-combine-inputs=false"))
    for wrong in ("-mxfp6-matmul=True", "-mxfp6-matmul=1", "-mxfp6-matmul=", "-mxfp6-matmul=None"):
        compiler.fails(compiler.decoder_arguments(wrong), "Invalid value", "-mxfp6-matmul")


@pytest.mark.parametrize("value", ["None", "[0]", "0x4", "4.0", "four", "", "(4,)"])
def test_c3_integers(compiler: Compiler, value: str) -> None:
    compiler.fails(compiler.decoder_arguments(f"-stats-level={value}"), "-stats-level")


def test_c3_python_literals_are_refused_everywhere_but_as_a_choice(compiler: Compiler) -> None:
    compiler.fails(compiler.decoder_arguments("-io-encrypt=None"), "Invalid value 'None'")
    compiler.fails(compiler.decoder_arguments("-aic-pmu-events=[1, 2]"), "Invalid value")
    compiler.ok(compiler.decoder_arguments("-quantization-calibration=None"))


def test_c4_repeated_option(compiler: Compiler) -> None:
    mdp = {"partitions": [{"name": "Partition0", "devices": [{"deviceId": 0, "numCores": 4}]}]}
    arguments = compiler.decoder_arguments(mdp=mdp)
    compiler.ok(arguments)
    repeated = next(argument for argument in arguments if argument.startswith("-mdp-load"))
    compiler.fails([*arguments, repeated], "-mdp-load-partition-config appears twice")
    compiler.fails([*compiler.decoder_arguments(), "-model=" + str(compiler.write_model(Decoder().model()))], "twice")


def test_c4_repeatable_option(compiler: Compiler) -> None:
    symbols = [f"-onnx-define-symbol={symbol}" for symbol in ("batch_size,1", "seq_len,2", "ctx_len,8")]
    compiler.ok([*compiler.arguments(), *symbols])
    compiler.fails([*compiler.arguments(), *symbols, "-onnx-define-symbol=ctx_len,16"], "binds a symbol twice")
    compiler.fails([*compiler.arguments(), "-onnx-define-symbol=ctx_len=8"], "<symbol>,<decimal integer>")


@pytest.mark.parametrize("missing", ["-m", "-aic-hw", "-aic-binary-dir"])
def test_c5_required_options(compiler: Compiler, missing: str) -> None:
    arguments = [a for a in compiler.decoder_arguments() if a.partition("=")[0] != missing]
    compiler.fails(arguments, f"Missing required option(s): {missing}.")


def test_c5_legacy_wants_compile_only(compiler_for: Callable[[str], Compiler]) -> None:
    compiler = compiler_for("legacy")
    arguments = compiler.decoder_arguments()
    compiler.fails([a for a in arguments if a != "-compile-only"], "Missing required option(s): -compile-only.")
    compiler.ok(arguments)


@pytest.mark.parametrize(
    ("profile", "accepted", "refused"),
    [
        ("legacy", ["2.0"], ["ai100", "ai200"]),
        ("1.21", ["2.0", "ai100"], ["ai200", "1.0"]),
        ("1.22", ["ai100", "ai200"], ["2.0", "AI100"]),
    ],
)
def test_c6_hardware_version(
    compiler_for: Callable[[str], Compiler], profile: str, accepted: list[str], refused: list[str]
) -> None:
    compiler = compiler_for(profile)
    base = [a for a in compiler.decoder_arguments() if not a.startswith("-aic-hw-version")]
    for version in accepted:
        compiler.ok([*base, f"-aic-hw-version={version}"])
    for version in refused:
        compiler.fails([*base, f"-aic-hw-version={version}"], "-aic-hw-version", version)


def test_c6_bfloat16_needs_ai200(newer_compiler: Compiler) -> None:
    compiler = newer_compiler
    arguments = compiler.arguments(
        Decoder(element_type=TensorProto.BFLOAT16).model(),
        specializations=[{"batch_size": "1", "seq_len": "1", "ctx_len": "8"}],
    )
    compiler.fails(arguments, "bfloat16", "ai100")
    compiler.ok([a.replace("ai100", "ai200") for a in arguments])


@pytest.mark.parametrize(
    ("option", "accepted", "refused"),
    [
        ("-mos", ["1", "4"], ["0", "3", "8", "-1"]),
        ("-ols", ["2"], ["6"]),
        ("-aic-depth-first-mem", ["8", "32"], ["7", "33"]),
        ("-vtcm-working-set-limit-ratio", ["0", "0.5", "1"], ["1.1", "-0.1"]),
        ("-size-split-granularity", ["512", "2048"], ["511", "2049"]),
        ("-allocator-dealloc-delay", ["0", "10"], ["11"]),
    ],
)
def test_c7_ranges(compiler: Compiler, option: str, accepted: list[str], refused: list[str]) -> None:
    for value in accepted:
        compiler.ok(compiler.decoder_arguments(f"{option}={value}"))
    for value in refused:
        compiler.fails(compiler.decoder_arguments(f"{option}={value}"), f"Invalid value '{value}' for option {option}")


def test_c7_cores(compiler: Compiler) -> None:
    base = [a for a in compiler.decoder_arguments() if not a.startswith("-aic-num-cores")]
    for cores in ("1", "16"):
        compiler.ok([*base, f"-aic-num-cores={cores}"])
    for cores in ("0", "17"):
        compiler.fails([*base, f"-aic-num-cores={cores}"], "-aic-num-cores")


def test_c8_specialization_with_device_preprocessing(compiler: Compiler) -> None:
    compiler.fails(compiler.decoder_arguments("-aic-preproc"), "-aic-preproc")
    compiler.ok(compiler.decoder_arguments("-aic-preproc=false"))


def test_options_without_effect_are_announced(compiler: Compiler) -> None:
    outcome = compiler(compiler.decoder_arguments("-mos=2"))

    assert outcome.code == 0
    assert "does not depend on -mos" in outcome.stderr
