"""The options of the Cloud AI back end, which the context generator reads from ``qnn_compile_backend.json``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from qnn_backend.constants import QnnConstants

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
    # A number, which the back end wants as a text.
    "compiler_max_out_channel_split",
    "compiler_mdp_load_partition_config",
    "compiler_mdp_dump_partition_config",
    "compiler_PMU_events",
    "compiler_PMU_recipe_opt",
    "compiler_cluster_sizes",
    "compiler_compilationOutputDir",
    "compiler_exclude_mxfp6_matmul",
)
#: Options that are known, and the type of each. Newer SDKs have more: what is not here is left to the tool to refuse.
_TYPES: Mapping[str, type[object]] = {
    **dict.fromkeys(_BOOLEANS, bool),
    **dict.fromkeys(_INTEGERS, int),
    **dict.fromkeys(_TEXTS, str),
    "compiler_VTCM_working_set_limit_ratio": float,
    "graph_names": list,
    "runtime_device_ids": list,
}
_TYPE_NAMES = {bool: "a boolean", int: "an integer", str: "a text", float: "a number", list: "a list"}
_NEAR = 0.85

_DEFAULTS: Mapping[str, Any] = {
    "compiler_compilation_target": QnnConstants.COMPILER_COMPILATION_TARGET,
    "compiler_hardware_version": QnnConstants.COMPILER_HARDWARE_VERSION,
    "compiler_convert_to_FP16": QnnConstants.COMPILER_CONVERT_TO_FP16,
    "compiler_do_DDR_to_multicast": QnnConstants.COMPILER_DO_DDR_TO_MULTICAST,
    "compiler_perfWarnings": QnnConstants.COMPILER_PERF_WARNINGS,
    "compiler_printDDRStats": QnnConstants.COMPILER_PRINT_DDR_STATS,
    "compiler_printPerfMetrics": QnnConstants.COMPILER_PRINT_PERF_METRICS,
    "compiler_stat_level": QnnConstants.COMPILER_STAT_LEVEL,
    "compiler_stats_batch_size": QnnConstants.COMPILER_STATS_BATCH_SIZE,
    "compiler_time_passes": QnnConstants.COMPILER_TIME_PASSES,
    "compiler_enable_depth_first": False,
    "compiler_mxint8_mdp_io": False,
}
#: What is decided by a compile option, or (``""``) by the model.
_DECIDED_BY = {
    "compiler_num_of_cores": "num_cores",
    "compiler_mxfp6_matmul_weights": "mxfp6_matmul",
    "compiler_max_out_channel_split": "mos",
    "compiler_enable_depth_first": "aic_enable_depth_first",
    "compiler_mxint8_mdp_io": "allow_mxint8_mdp_io",
    "compiler_mdp_load_partition_config": "num_devices",
    "compiler_retained_state": "",
    "graph_names": "",
}


class Deciding(Protocol):
    """The compile options that decide about options of the back end."""

    @property
    def num_cores(self) -> int:
        """NSP cores of one device."""

    @property
    def num_devices(self) -> int:
        """Devices that share a program."""

    @property
    def mxfp6_matmul(self) -> bool:
        """Weights of products in MXFP6."""

    @property
    def mos(self) -> int | None:
        """Effort to save on-chip memory."""

    @property
    def aic_enable_depth_first(self) -> bool | None:
        """Schedule depth first."""

    @property
    def allow_mxint8_mdp_io(self) -> bool | None:
        """Compress the traffic between devices."""


def backend_options(options: Deciding, graph_names: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the file. `given` are the user's own options; they come over our defaults and under `options`."""
    return {**_DEFAULTS, **given, **_decided(options), "graph_names": list(graph_names)}


def _decided(options: Deciding) -> dict[str, Any]:
    result: dict[str, Any] = {
        "compiler_retained_state": QnnConstants.COMPILER_RETAINED_STATE,
        "compiler_num_of_cores": options.num_cores,
        "compiler_mxfp6_matmul_weights": options.mxfp6_matmul,
    }
    if options.mos is not None:
        result["compiler_max_out_channel_split"] = str(options.mos)
    if options.aic_enable_depth_first is not None:
        result["compiler_enable_depth_first"] = options.aic_enable_depth_first
    if options.allow_mxint8_mdp_io is not None:
        result["compiler_mxint8_mdp_io"] = options.allow_mxint8_mdp_io
    if options.num_devices > 1:
        result["compiler_mdp_load_partition_config"] = QnnConstants.TENSOR_SLICING_NAME
    return result


def problems_of(given: Mapping[str, Any]) -> list[str]:
    """Misspelt names and values of the wrong type among the user's own options."""
    found = []
    for key, value in given.items():
        wanted = _TYPES.get(key)
        if wanted is None:
            near = difflib.get_close_matches(key, _TYPES, n=1, cutoff=_NEAR)
            if near:
                found.append(f"unknown option '{key}' of the back end, did you mean '{near[0]}'?")
        elif not _fits(value, wanted):
            found.append(f"'{key}' must be {_TYPE_NAMES[wanted]}, got {value!r}")
    return found


def _fits(value: object, wanted: type[object]) -> bool:
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float)) if wanted is float else isinstance(value, wanted)


def contradictions(given: Mapping[str, Any], options: Deciding) -> list[str]:
    """Options of the user's file that say something else than the compile options do."""
    decided = _decided(options)
    always = ("graph_names", "compiler_mdp_load_partition_config")
    found = []
    for key, option in _DECIDED_BY.items():
        if key not in given or (key not in decided and key not in always) or given[key] == decided.get(key):
            continue
        instead = f"use the option '{option}'" if option else "it follows from the model"
        found.append(f"qnn_config: '{key}' cannot be {given[key]!r}: {instead}")
    return found
