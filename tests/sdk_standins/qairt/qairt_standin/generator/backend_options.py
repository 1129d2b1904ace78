"""The JSON files of `--config_file`: the extension's paths (row N7) and the back end's options (row N8)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ToolError

_BOOLEANS = (
    "compiler_convert_to_FP16",
    "compiler_retained_state",
    "compiler_enable_depth_first",
    "compiler_mxfp6_matmul_weights",
    "compiler_mxint8_mdp_io",
    "compiler_do_DDR_to_multicast",
    "compiler_perfWarnings",
    "compiler_printDDRStats",
    "compiler_printPerfMetrics",
    "compiler_time_passes",
    "compiler_do_host_preproc",
    "compiler_genCRC",
    "compiler_userDMAProducerDMAEnabled",
    "compiler_enableDebug",
    "compiler_combine_inputs",
    "compiler_combine_outputs",
    "compiler_directApi",
    "compiler_force_VTCM_spill",
)
_INTEGERS = (
    "compiler_num_of_cores",
    "compiler_stat_level",
    "compiler_stats_batch_size",
    "compiler_buffer_dealloc_delay",
    "compiler_crc_stride",
    "compiler_overlap_split_factor",
    "compiler_depth_first_mem",
    "compiler_size_split_granularity",
    "compiler_compileThreads",
    "runtime_num_activations",
    "runtime_submit_timeout",
    "runtime_submit_num_retries",
    "runtime_threads_per_queue",
)
_TEXTS = (
    "compiler_compilation_target",
    "compiler_hardware_version",
    # A number, but the back end wants it as a text.
    "compiler_max_out_channel_split",
    "compiler_mdp_load_partition_config",
    "compiler_mdp_dump_partition_config",
    "compiler_PMU_events",
    "compiler_PMU_recipe_opt",
    "compiler_cluster_sizes",
    "compiler_compilationOutputDir",
    "compiler_exclude_mxfp6_matmul",
)
_NUMBERS = ("compiler_VTCM_working_set_limit_ratio",)
_LISTS = ("graph_names", "runtime_device_ids")

_MAX_CORES = 16


def refused(reason: str) -> ToolError:
    """A refusal in the tool's form."""
    return ToolError(f"[ ERROR ] {reason}")


def read_json(path: Path) -> dict[str, Any]:
    """An object.

    Raises:
        ToolError: no such file, not JSON, or not an object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refused(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise refused(f"{path}: not an object")
    return document


def extension_paths(path: Path) -> tuple[Path, Path]:
    """The back end's options file and the extension library. Relative paths are relative to the working folder.

    Raises:
        ToolError: an unknown key, a missing path, or a file that is not there.
    """
    document = read_json(path)
    extensions = document.get("backend_extensions")
    if set(document) != {"backend_extensions"} or not isinstance(extensions, dict):
        raise refused(f"{path}: needs the object backend_extensions and nothing else")
    if set(extensions) != {"config_file_path", "shared_library_path"}:
        raise refused(
            f"{path}: backend_extensions needs config_file_path and shared_library_path, got {sorted(extensions)}"
        )
    library, options = Path(extensions["shared_library_path"]), Path(extensions["config_file_path"])
    if library.name != "libQnnAicNetRunExtensions.so" or not library.is_file():
        raise refused(f"cannot load the back-end extension {library}")
    if not options.is_file():
        raise refused(f"config_file_path {options}: no such file")
    return options, library


def read_options(path: Path, graphs: Sequence[str]) -> Mapping[str, Any]:
    """The back end's options.

    Raises:
        ToolError: an unknown key, a value of the wrong type, or other graphs than the DLC has.
    """
    options = read_json(path)
    for key, value in options.items():
        _check(key, value)
    if options.get("graph_names") != list(graphs):
        raise refused(f"graph_names {options.get('graph_names')} are not the graphs of the DLC: {list(graphs)}")
    cores = options.get("compiler_num_of_cores", 1)
    if not 1 <= cores <= _MAX_CORES:
        raise refused(f"compiler_num_of_cores must be 1 to {_MAX_CORES}, got {cores}")
    if options.get("compiler_compilation_target", "hardware") != "hardware":
        raise refused("compiler_compilation_target: the stand-in compiles for hardware only")
    if options.get("compiler_hardware_version", "2.0") != "2.0":
        raise refused(f"compiler_hardware_version {options['compiler_hardware_version']!r} is not supported")
    return options


def _check(key: str, value: object) -> None:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    kinds = (
        (_BOOLEANS, isinstance(value, bool), "a boolean"),
        (_INTEGERS, is_int, "an integer"),
        (_TEXTS, isinstance(value, str), "a text"),
        (_NUMBERS, is_int or isinstance(value, float), "a number"),
        (_LISTS, isinstance(value, list), "a list"),
    )
    for names, fits, wanted in kinds:
        if key in names:
            if not fits:
                raise refused(f"{key} must be {wanted}, got {value!r}")
            return
    raise refused(f"Unknown Key = {key} passed in config")
