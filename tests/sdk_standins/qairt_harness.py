"""How the tests of the stand-in QAIRT SDK run its tools."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import yaml
from tests.sdk_standins.graphs import Decoder
from tests.sdk_standins.harness import Outcome
from tests.sdk_standins.qairt import StandinQairt
from tests.sdk_standins.qairt.qairt_standin.converter.main import main as convert
from tests.sdk_standins.qairt.qairt_standin.generator.main import main as generate

Item = tuple[str, str | None]

#: What the plugin asks for: prefill and decode, the state in FP16.
INPUTS: Mapping[str, Item] = {
    "input_ids": ("int64", "(1, 4), (1, 1)"),
    "position_ids": ("int64", "(1, 4), (1, 1)"),
    "past_key.0": ("float16", "(1, 2, 16, 4)"),
}
OUTPUTS: Mapping[str, Item] = {"logits": ("float32", None), "past_key.0_RetainedState": ("float16", None)}
GRAPHS = ["model_configuration_1", "model_configuration_2"]
OPTIONS: Mapping[str, Any] = {
    "compiler_compilation_target": "hardware",
    "compiler_hardware_version": "2.0",
    "compiler_convert_to_FP16": True,
    "compiler_retained_state": True,
    "compiler_num_of_cores": 4,
    "graph_names": GRAPHS,
}


class Tools:
    """Runs both tools on files in a folder of their own, in this process unless told otherwise."""

    def __init__(self, sdk: StandinQairt, folder: Path) -> None:
        self.sdk, self.folder = sdk, folder
        (folder / "qpc").mkdir(exist_ok=True)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def write(self, name: str, content: Any) -> str:
        path = self.folder / name
        if not isinstance(content, str):
            content = yaml.safe_dump(content, sort_keys=False) if path.suffix == ".yaml" else json.dumps(content)
        path.write_text(content)
        return str(path)

    # --- the converter ---------------------------------------------------------------------------------------------

    def converter_arguments(
        self, *extra: str, model: onnx.ModelProto | None = None, config: Any = None, output: str = "model.dlc"
    ) -> list[str]:
        onnx.save_model(model or Decoder().model(), self.path("model.onnx"))
        return [
            *("--input_network", self.path("model.onnx")),
            *("--output_path", self.path(output)),
            *("--config", self.write("custom_io_config.yaml", io_config() if config is None else config)),
            *("--float_bias_bitwidth", "32", "--float_bitwidth", "16"),
            *("--preserve_io_datatype", "--onnx_skip_simplification", "--target_backend", "AIC"),
            *extra,
        ]

    def convert(self, *extra: str, **files: Any) -> Outcome:
        return self.run_converter(self.converter_arguments(*extra, **files))

    def run_converter(self, arguments: Sequence[str]) -> Outcome:
        return self._call(convert, arguments)

    # --- the generator ---------------------------------------------------------------------------------------------

    def generator_arguments(
        self, *extra: str, options: Any = None, without: Sequence[str] = (), **values: str
    ) -> list[str]:
        """A complete command line. Keywords replace the value of an option."""
        layout = self.sdk.layout
        content = dict(OPTIONS) if options is None else options
        backend_options = self.write("qnn_compile_backend.json", content)
        given = {
            "binary_file": "qnngraph.serialized",
            "backend_binary": "programqpc.bin",
            "output_dir": self.path("qpc"),
            "backend": str(layout.backend_library),
            "dlc_path": self.path("model.dlc"),
            "config_file": self.write(
                "qnn_compiler_config.json",
                {
                    "backend_extensions": {
                        "config_file_path": backend_options,
                        "shared_library_path": str(layout.extensions_library),
                    }
                },
            ),
            "log_level": "error",
            **values,
        }
        pairs = [(f"--{name}", value) for name, value in given.items() if name not in without]
        return [*(part for pair in pairs for part in pair), *extra]

    def generate(self, *extra: str, **files: Any) -> Outcome:
        return self._call(generate, self.generator_arguments(*extra, **files))

    def program(self, *, config: Any = None, model: onnx.ModelProto | None = None, **files: Any) -> Path:
        """Convert and generate, expect success, return the folder of the program."""
        for outcome in (self.convert(config=config, model=model), self.generate(**files)):
            assert outcome.code == 0, outcome.stderr
        assert (self.folder / "qpc" / "programqpc.bin").is_file()
        return self.folder / "qpc"

    def _call(self, main: Any, arguments: Sequence[str]) -> Outcome:
        stdout, stderr = io.StringIO(), io.StringIO()
        inherited = {name: value for name, value in os.environ.items() if name.startswith("QAIRT_STANDIN")}
        with (
            mock.patch.dict(os.environ, {**self.sdk.environment, **inherited}),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            code = main(arguments, self.sdk.layout)
        return Outcome(code=code, stdout=stdout.getvalue(), stderr=stderr.getvalue(), folder=self.folder / "qpc")

    def in_subprocess(self, tool: Path, arguments: Sequence[str], **environment: str) -> Outcome:
        done = subprocess.run(
            [str(tool), *arguments],
            env={**self.sdk.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return Outcome(code=done.returncode, stdout=done.stdout, stderr=done.stderr, folder=self.folder / "qpc")


def io_config(
    inputs: Mapping[str, Item | None] | None = None, outputs: Mapping[str, Item | None] | None = None
) -> dict[str, Any]:
    """The IO file, with some tensors described differently; `None` leaves a tensor out."""

    def section(items: Mapping[str, Item | None]) -> list[dict[str, Any]]:
        return [
            {"Name": name, "Desired Model Parameters": {"DataType": item[0], **({"Shape": item[1]} if item[1] else {})}}
            for name, item in items.items()
            if item is not None
        ]

    return {
        "Input Tensor Configuration": section({**INPUTS, **(inputs or {})}),
        "Output Tensor Configuration": section({**OUTPUTS, **(outputs or {})}),
    }
