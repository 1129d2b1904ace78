"""What users can choose."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qaic_backend import flags
from qaic_backend.devices import MAX_CORES, MAX_DEVICES
from qeff_framework.plugin_api import AttentionOptions, LayerWindowOptions, MicroscalingOptions, RuntimeOptions, option

_MAX_PMU_EVENTS = 8


@dataclass(frozen=True, kw_only=True)
class QaicCompileOptions(MicroscalingOptions, AttentionOptions, LayerWindowOptions):
    """The options that are more than one flag of the compiler; `QaicOptions` adds the flags."""

    hw_version: str = option("ai100", "device generation", choices=("ai100", "ai200"))
    convert_to_fp16: bool = option(True, "compute in FP16; FP32 runs, but slowly")
    fp32_nodes: tuple[str, ...] = option((), "first output names of the nodes of the lowered graph that stay in FP32")
    target_sdk: str | None = option(
        None,
        "version of the apps SDK that will compile, for example 1.21.6; by default the installed one, else the newest",
    )
    specialization_format: str = option(
        "auto",
        "form of the specializations file: named is read from SDK 1.22 on; auto goes by the SDK's version",
        choices=("auto", "flat", "named"),
    )
    mdp_load_partition_config: Path | None = option(
        None, "partition file of your own (JSON); num_devices must be the number of its devices"
    )
    mdp_num_partitions: int = option(
        1,
        "pipeline stages: the layers are divided among them, and each stage gets an equal share of the devices",
        minimum=1,
    )
    sub_functions: bool = option(
        False,
        "layers that are alike become calls of one local function, which the compiler compiles once (-sub-functions)",
    )
    device_memory_gb: float | None = option(
        None,
        "memory of one device, for the refusal of programs that cannot fit; by default what qaic-util reports, else 32 for ai100",
    )
    compile_timeout_minutes: int = option(
        1440, "when to stop a compiler that does not end", minimum=1, changes_program=False
    )
    extra_flags: tuple[str, ...] = option((), "further compiler flags as they are, for example -flag=value")

    def __post_init__(self) -> None:
        """Refuses, all at once, what the compiler would refuse after the export."""
        problems = [*flags.problems(self), *flags.extra_flag_problems(self.extra_flags, self), *self._contradictions()]
        if problems:
            raise ValueError("; ".join(problems))

    def _contradictions(self) -> list[str]:
        found = []
        if self.num_cores > MAX_CORES:
            found.append(f"num_cores={self.num_cores} is out of range: a device has at most {MAX_CORES} cores")
        if self.num_devices > MAX_DEVICES:
            found.append(
                f"num_devices={self.num_devices} is out of range: at most {MAX_DEVICES} devices share a program"
            )
        for name in ("mos", "ols"):
            value = getattr(self, name)
            if value is not None and (value & (value - 1) or value > self.num_cores):
                found.append(f"{name}={value} must be a power of two and at most num_cores={self.num_cores}")
        clusters: tuple[int, ...] = getattr(self, "sdp_cluster_sizes")  # noqa: B009 -- a field of the table
        if clusters and sum(clusters) != self.num_cores:
            found.append(f"sdp_cluster_sizes={clusters} must add up to num_cores={self.num_cores}")
        if len(getattr(self, "aic_pmu_events")) > _MAX_PMU_EVENTS:  # noqa: B009 -- a field of the table
            found.append(f"aic_pmu_events takes at most {_MAX_PMU_EVENTS} counters")
        if self.num_devices % self.mdp_num_partitions:
            found.append(
                f"mdp_num_partitions={self.mdp_num_partitions} must divide num_devices={self.num_devices}: each stage gets the "
                "same number of devices"
            )
        if self.mdp_load_partition_config is not None and self.mdp_num_partitions > 1:
            found.append(
                "mdp_num_partitions and mdp_load_partition_config exclude each other: the file has its own stages"
            )
        if self.device_memory_gb is not None and self.device_memory_gb <= 0:
            found.append(f"device_memory_gb={self.device_memory_gb} must be a number above 0")
        if self.fp32_nodes and not self.convert_to_fp16:
            found.append("fp32_nodes needs convert_to_fp16: without it every node is FP32")
        if self.fp32_nodes and self.sub_functions:
            found.append("fp32_nodes names nodes of a flat graph: leave it or sub_functions out")
        if self.fp32_nodes and self.num_layers_per_program is not None:
            found.append("fp32_nodes names nodes of one graph: leave it or num_layers_per_program out")
        if self.target_sdk is not None and not all(part.isdecimal() for part in self.target_sdk.split(".")):
            found.append(f"target_sdk='{self.target_sdk}' must be a version such as 1.21.6")
        return found


def _field(flag: flags.Flag) -> tuple[str, Any, Any]:
    is_list = flag.type not in (bool, int, float, str)
    metadata = {"help": f"{flag.help} (-{flag.flag})", "choices": flag.choices or None, "minimum": None}
    default = () if is_list else None
    hint = flag.type if is_list else flag.type | None
    return flag.option, hint, dataclasses.field(default=default, metadata=metadata)


#: Options of `compile`: `QaicCompileOptions` and one field for each row of `flags.FLAGS`.
QaicOptions: type[QaicCompileOptions] = dataclasses.make_dataclass(
    "QaicOptions",
    [_field(flag) for flag in flags.FLAGS],
    bases=(QaicCompileOptions,),
    frozen=True,
    kw_only=True,
    namespace={"__doc__": "Options of `compile`.", "__module__": __name__},
)


@dataclass(frozen=True, kw_only=True)
class QaicRuntimeOptions(RuntimeOptions):
    """Options of `execute`."""

    device_ids: tuple[int, ...] = option(
        (), "QIDs of the devices, one for each device of the program; by default free choice"
    )
    timeout_ms: int = option(60_000, "how long one step may take on the device", minimum=1)

    def __post_init__(self) -> None:
        """Refuses ids that name no set of devices."""
        if len(set(self.device_ids)) != len(self.device_ids) or any(qid < 0 for qid in self.device_ids):
            raise ValueError(f"device_ids={self.device_ids} must be different QIDs, 0 or more")
