"""The tools' input in one directory, and the two command lines that turn it into a program.

All paths are relative to the directory, except those of the SDK, and the tools are run from inside it: the bundle can be moved.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qeff_framework.lowering import write_weights
from qeff_framework.plugin_api import Specialization, StateSpec, TensorSpec
from qnn_backend.aic import side_files
from qnn_backend.aic.backend_options import backend_options
from qnn_backend.aic.options import AicOptions
from qnn_backend.aic.qaic import shared
from qnn_backend.aic.user_config import UserConfig
from qnn_backend.constants import QnnConstants

MODEL_FILE = f"{QnnConstants.MODEL_NAME}.onnx"
WEIGHTS_FILE = f"{MODEL_FILE}.data"
DLC_FILE = f"{QnnConstants.MODEL_NAME}.dlc"
PROGRAM_FOLDER = "qpc"

#: Smaller initializers stay inside the model file, where shapes and axes are read.
_INLINE_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A directory with everything that the tools read."""

    directory: Path
    #: Without the tool's own path; `None` when a DLC was given.
    converter_arguments: tuple[str, ...] | None
    #: The user's, to be added at the end.
    generator_extension: tuple[str, ...]
    has_data_formats: bool

    @property
    def dlc(self) -> Path:
        """What a successful converter leaves."""
        return self.directory / DLC_FILE

    @property
    def program(self) -> Path:
        """What a successful context generator leaves."""
        return self.directory / PROGRAM_FOLDER / QnnConstants.CONTEXT_BIN_QPC_NAME

    def generator_arguments(self, root: str, *, model_library: bool) -> tuple[str, ...]:
        """The context generator's command line, without its own path, for an SDK at `root`."""
        given = {argument.partition("=")[0] for argument in self.generator_extension}
        return (
            *("--binary_file", QnnConstants.CONTEXT_BIN_NAME),
            *("--backend_binary", QnnConstants.CONTEXT_BIN_QPC_NAME),
            *("--output_dir", PROGRAM_FOLDER),
            *("--backend", QnnConstants.QNN_CONTEXT_LIB_BACKEND.format(root, QnnConstants.TARGET)),
            *(("--model", QnnConstants.QNN_MODEL_LIB.format(root, QnnConstants.TARGET)) if model_library else ()),
            *("--dlc_path", DLC_FILE),
            *("--config_file", QnnConstants.QNN_COMPILER_CONFIG_NAME),
            *(("--data_format_config", QnnConstants.QNN_DATA_FORMAT_CONFIG_NAME) if self.has_data_formats else ()),
            # The tool takes an option once.
            *(() if "--log_level" in given else ("--log_level", QnnConstants.LOG_LEVEL)),
            *self.generator_extension,
        )


def write_bundle(
    directory: Path,
    model: ir.Model,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    states: Sequence[StateSpec],
    specializations: Sequence[Specialization],
    options: AicOptions,
    user: UserConfig,
) -> Bundle:
    """Writes the model with its weights, or the given DLC, and every side file that does not depend on where the SDK lies."""
    if options.dlc_file is None:
        write_weights(model, directory, WEIGHTS_FILE, inline_bytes=_INLINE_BYTES)
        ir.save(model, directory / MODEL_FILE)
    else:
        shutil.copyfile(options.dlc_file, directory / DLC_FILE)
    graphs = side_files.graph_names(specializations)
    has_formats = options.mxint8_kv_cache and any(state.kind == "kv" for state in states)
    files: dict[str, str] = {
        QnnConstants.SPECIALIZATIONS_NAME: shared().flat_specializations(specializations),
        QnnConstants.CUSTOM_IO_CONFIG_NAME: side_files.io_config(
            inputs, outputs, states, specializations, mxint8=options.mxint8_kv_cache
        ),
        QnnConstants.QNN_COMPILE_BACKEND_NAME: side_files.to_json(
            backend_options(options, graphs, user.backend_options)
        ),
    }
    if has_formats:
        files[QnnConstants.QNN_DATA_FORMAT_CONFIG_NAME] = side_files.data_formats(states, graphs)
    if options.num_devices > 1:
        files[QnnConstants.TENSOR_SLICING_NAME] = side_files.tensor_slicing(options.num_devices)
    _write(directory, files)
    return Bundle(
        directory=directory,
        converter_arguments=None if options.dlc_file is not None else converter_arguments(user),
        generator_extension=user.generator_arguments,
        has_data_formats=has_formats,
    )


def write_compiler_config(directory: Path, root: str) -> None:
    """The one file that names a path of the SDK."""
    library = QnnConstants.QNN_CONTEXT_LIB_NET_RUN_EXTENSIONS.format(root, QnnConstants.TARGET)
    _write(directory, {QnnConstants.QNN_COMPILER_CONFIG_NAME: side_files.compiler_config(library)})


def _write(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")


def converter_arguments(user: UserConfig) -> tuple[str, ...]:
    """The converter's command line, without its own path."""
    given = {argument.partition("=")[0] for argument in user.converter_arguments}
    own = (
        *("--input_network", MODEL_FILE),
        *("--output_path", DLC_FILE),
        *("--config", QnnConstants.CUSTOM_IO_CONFIG_NAME),
        *("--float_bias_bitwidth", str(QnnConstants.FLOAT_BIAS_BITWIDTH)),
        *("--float_bitwidth", str(QnnConstants.FLOAT_BITWIDTH)),
        *QnnConstants.CONVERTER_DEFAULT_ARGS,
        *(() if "--target_backend" in given else ("--target_backend", QnnConstants.TARGET_BACKEND)),
    )
    return (*own, *user.converter_arguments)
