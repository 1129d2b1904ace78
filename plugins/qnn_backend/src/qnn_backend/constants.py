"""Paths, file names, options and defaults of the QNN tools, in one place.

Names and values are those that users of QEfficient's QNN path know: scripts that read them keep working. Sources: that path's
command lines and files, and Qualcomm's public documents 80-63442 (tools) and 80-87189-2 (options of the Cloud AI back end).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final


class QnnConstants:
    """What `qnn_backend.aic` builds its command lines and files from. Path templates take the SDK's root and `TARGET`."""

    # --- the SDK ---

    QNN_SDK_PATH_ENV_VAR_NAME: Final = "QNN_SDK_ROOT"
    #: Describes the SDK; a flat mapping with a version.
    QNN_SDK_YAML: Final = "sdk.yaml"
    #: The host that the tools run on.
    TARGET: Final = "x86_64-linux-clang"
    #: A Python script; its packages are those of `QNN_PYTHON_PATH`.
    QAIRT_CONVERTER: Final = "{}/bin/{}/qairt-converter"
    QNN_CONTEXT_BIN: Final = "{}/bin/{}/qnn-context-binary-generator"
    QNN_CONTEXT_LIB_BACKEND: Final = "{}/lib/{}/libQnnAic.so"
    QNN_CONTEXT_LIB_NET_RUN_EXTENSIONS: Final = "{}/lib/{}/libQnnAicNetRunExtensions.so"
    #: Reads a DLC for context generators older than `FIRST_WITHOUT_MODEL_LIB`.
    QNN_MODEL_LIB: Final = "{}/lib/{}/libQnnModelDlc.so"
    FIRST_WITHOUT_MODEL_LIB: Final = (2, 36)
    QNN_LIB_PATH: Final = "{}/lib/{}"
    QNN_BIN_PATH: Final = "{}/bin/{}"
    QNN_PYTHON_PATH: Final = "{}/lib/python"

    # --- files of a compilation ---

    #: Stem of the model's files; the graphs of the DLC are named after it.
    MODEL_NAME: Final = "model"
    CUSTOM_IO_CONFIG_NAME: Final = "custom_io_config.yaml"
    QNN_COMPILER_CONFIG_NAME: Final = "qnn_compiler_config.json"
    QNN_COMPILE_BACKEND_NAME: Final = "qnn_compile_backend.json"
    QNN_DATA_FORMAT_CONFIG_NAME: Final = "qnn_data_format_config.json"
    TENSOR_SLICING_NAME: Final = "tensor_slicing.json"
    SPECIALIZATIONS_NAME: Final = "specializations.json"
    #: The context generator appends ``.bin``.
    CONTEXT_BIN_NAME: Final = "qnngraph.serialized"
    CONTEXT_BIN_QPC_NAME: Final = "programqpc.bin"

    # --- the converter ---

    FLOAT_BITWIDTH: Final = 16
    FLOAT_BIAS_BITWIDTH: Final = 32
    #: ``--preserve_io_datatype`` takes a list of names, so an option must follow it.
    CONVERTER_DEFAULT_ARGS: Final = ("--preserve_io_datatype", "--onnx_skip_simplification")
    TARGET_BACKEND: Final = "AIC"
    IMMUTABLE_CONVERTER_ARGS: Final = (
        "--input_network",
        "--output_path",
        "--config",
        "--float_bias_bitwidth",
        "--float_bitwidth",
        "--preserve_io_datatype",
        "--onnx_skip_simplification",
    )

    # --- the context generator ---

    LOG_LEVEL: Final = "error"
    IMMUTABLE_CONTEXT_BIN_GEN_ARGS: Final = (
        "--binary_file",
        "--backend_binary",
        "--output_dir",
        "--backend",
        "--model",
        "--dlc_path",
        "--config_file",
    )
    #: With one shape, and with two; the converter supports no more.
    GRAPH_NAMES_PREFILL_ONLY: Final = (MODEL_NAME,)
    GRAPH_NAMES: Final = (f"{MODEL_NAME}_configuration_1", f"{MODEL_NAME}_configuration_2")
    DATA_FORMAT_MX: Final = "QNN_TENSOR_DATA_FORMAT_MX"

    # --- options of the back end ---

    COMPILER_COMPILATION_TARGET: Final = "hardware"
    COMPILER_HARDWARE_VERSION: Final = "2.0"
    COMPILER_CONVERT_TO_FP16: Final = True
    COMPILER_DO_DDR_TO_MULTICAST: Final = True
    COMPILER_PERF_WARNINGS: Final = False
    COMPILER_PRINT_DDR_STATS: Final = False
    COMPILER_PRINT_PERF_METRICS: Final = False
    COMPILER_RETAINED_STATE: Final = True
    COMPILER_STAT_LEVEL: Final = 10
    COMPILER_STATS_BATCH_SIZE: Final = 1
    COMPILER_TIME_PASSES: Final = False

    # --- the user's qnn_config.json ---

    CONVERTER_ARGS_EXTENSION_STR: Final = "converter_args_extension"
    CONTEXT_BIN_ARGS_EXTENSION_STR: Final = "context_binary_generator_args_extension"
    QNN_COMPILATION_BACKEND_STR: Final = "qnn_compilation_backend"
    SKIP_QNN_CONVERTER_STEP_STR: Final = "SKIP_QNN_CONVERTER_STEP"
    QNN_SAMPLE_CONFIG: Final[Mapping[str, Any]] = {
        CONVERTER_ARGS_EXTENSION_STR: "--onnx_defer_loading",
        CONTEXT_BIN_ARGS_EXTENSION_STR: "--log_level debug",
        QNN_COMPILATION_BACKEND_STR: {
            "compiler_enable_depth_first": True,
            "compiler_printDDRStats": False,
            "compiler_printPerfMetrics": False,
        },
        SKIP_QNN_CONVERTER_STEP_STR: False,
    }
