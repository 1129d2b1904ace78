"""The keys of the back end's options file, against the vendor's own list and not against a table of ours.

`DEFAULTS` is the file ``qnn_compile_backend.json`` that Qualcomm's own stack writes, and `FURTHER` the keys of its public
description (80-87189-2). Both the plugin and the stand-in have tables with types; each is measured by these.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qnn_backend.aic.backend_options import problems_of
from tests.sdk_standins.qairt.qairt_standin.errors import ToolError
from tests.sdk_standins.qairt.qairt_standin.generator.backend_options import read_options

DEFAULTS: dict[str, Any] = {
    "compiler_compilation_target": "hardware",
    "compiler_hardware_version": "2.0",
    "compiler_convert_to_FP16": True,
    "compiler_retained_state": True,
    "compiler_enable_depth_first": False,
    "compiler_mxfp6_matmul_weights": False,
    "compiler_num_of_cores": 16,
    "compiler_do_DDR_to_multicast": True,
    "compiler_perfWarnings": False,
    "compiler_printDDRStats": False,
    "compiler_printPerfMetrics": False,
    "compiler_stat_level": 10,
    "compiler_stats_batch_size": 1,
    "compiler_time_passes": False,
    "compiler_mxint8_mdp_io": False,
    "compiler_max_out_channel_split": "1",
    "compiler_mdp_load_partition_config": "tensor_slicing.json",
}
FURTHER = [
    "compiler_do_host_preproc",
    "compiler_PMU_events",
    "compiler_PMU_recipe_opt",
    "compiler_buffer_dealloc_delay",
    "compiler_genCRC",
    "compiler_crc_stride",
    "compiler_cluster_sizes",
    "compiler_overlap_split_factor",
    "compiler_compilationOutputDir",
    "compiler_depth_first_mem",
    "compiler_VTCM_working_set_limit_ratio",
    "compiler_userDMAProducerDMAEnabled",
    "compiler_size_split_granularity",
    "compiler_enableDebug",
    "compiler_combine_inputs",
    "compiler_combine_outputs",
    "compiler_directApi",
    "compiler_compileThreads",
    "compiler_force_VTCM_spill",
    "compiler_exclude_mxfp6_matmul",
    "compiler_mdp_dump_partition_config",
    "runtime_device_ids",
    "runtime_num_activations",
    "runtime_submit_timeout",
    "runtime_submit_num_retries",
    "runtime_threads_per_queue",
]


def refusal(tmp_path: Path, options: dict[str, Any]) -> str:
    """What the stand-in's generator says against an options file; empty where it takes it."""
    path = tmp_path / "qnn_compile_backend.json"
    path.write_text(json.dumps({**options, "graph_names": ["model"]}))
    try:
        read_options(path, ["model"])
    except ToolError as error:
        return str(error)
    return ""


def test_the_vendors_file_is_taken_by_plugin_and_standin(tmp_path: Path) -> None:
    assert problems_of(DEFAULTS) == []
    assert refusal(tmp_path, DEFAULTS) == ""


@pytest.mark.parametrize("key", [*DEFAULTS, *FURTHER])
def test_a_key_of_the_vendor_is_known_to_plugin_and_standin(key: str, tmp_path: Path) -> None:
    # Nothing is an object there, so a known key is refused for its type, and an unknown one for its name.
    assert [problem.partition(" must be")[0] for problem in problems_of({key: {}})] == [f"'{key}'"]
    assert f"{key} must be" in refusal(tmp_path, {key: {}})


def test_a_key_that_the_vendor_does_not_list_is_unknown_to_the_standin(tmp_path: Path) -> None:
    assert "Unknown Key" in refusal(tmp_path, {"compiler_num_cores": 16})
    assert "did you mean 'compiler_num_of_cores'" in problems_of({"compiler_num_cores": 16})[0]
