"""The compiler flags that users can set, as data: options, command lines and documentation are made from this table.

Flags that the backend itself decides (model, output directory, specializations, retained state, ...) are not options; they are in
`OWN_FLAGS`, so that they cannot be given a second time. The compiler refuses a repeated flag after the whole export has run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag. The option's name is the flag's with underscores; without a value the compiler's default holds."""

    flag: str
    #: ``bool``, ``int``, ``float``, ``str``, or ``tuple`` of one of them.
    type: Any
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    @property
    def option(self) -> str:
        """Name of the Python option."""
        return self.flag.replace("-", "_").lower()


def _switches(**helps: str) -> tuple[Flag, ...]:
    return tuple(Flag(flag=name.replace("_", "-"), type=bool, help=text) for name, text in helps.items())


FLAGS: tuple[Flag, ...] = (
    Flag(
        flag="mos",
        type=int,
        minimum=1,
        help="effort to save on-chip memory by splitting weights over cores: 1, 2, 4, ... cores",
    ),
    Flag(flag="ols", type=int, minimum=1, help="how far operators are split to run in parallel: 1, 2, 4, ... cores"),
    Flag(
        flag="mdts-mos", type=int, minimum=1, help="splitting of weights across tensor-sliced devices; 1 splits nothing"
    ),
    Flag(flag="aic-depth-first-mem", type=int, minimum=8, maximum=32, help="memory for depth-first scheduling"),
    Flag(flag="size-split-granularity", type=int, minimum=512, maximum=2048, help="largest tile in KiB"),
    Flag(
        flag="vtcm-working-set-limit-ratio",
        type=float,
        minimum=0,
        maximum=1,
        help="largest share of fast memory that one instruction may use",
    ),
    Flag(
        flag="allocator-dealloc-delay", type=int, minimum=0, maximum=10, help="how long buffers outlive their last use"
    ),
    Flag(
        flag="sdp-cluster-sizes", type=tuple[int, ...], minimum=1, help="sizes of core clusters; their sum is num_cores"
    ),
    Flag(flag="compile-threads", type=int, minimum=1, help="host threads of the compiler"),
    Flag(flag="io-crc-stride", type=int, minimum=1, help="bytes between IO check sums"),
    Flag(
        flag="stats-level",
        type=int,
        minimum=0,
        maximum=100,
        help="amount of device statistics compiled into the program",
    ),
    Flag(flag="aic-profiling-type", type=str, choices=("stats", "trace", "latency"), help="kind of profile"),
    Flag(
        flag="aic-pmu-recipe",
        type=str,
        choices=("AxiRd", "AxiWr", "AxiRdWr", "KernelUtil", "HmxMacs"),
        help="set of hardware counters",
    ),
    Flag(flag="aic-pmu-events", type=tuple[int, ...], minimum=0, help="up to eight raw hardware counters"),
    Flag(flag="execute-nodes-in-fp16", type=tuple[str, ...], help="operator types that run in FP16"),
    Flag(
        flag="keep-original-precision-for-nodes",
        type=tuple[str, ...],
        help="operator types that keep the precision of the graph",
    ),
    *_switches(
        aic_enable_depth_first="depth-first scheduling",
        allow_mxint8_mdp_io="MXINT8 compression of traffic between devices",
        multicast_weights="load shared weights once for all cores",
        split_retained_state_io="separate IO buffers for retained state",
        user_tiled="honour tiling that the graph already has",
        use_producer_dma="let the producer of a tensor start its transfer",
        combine_inputs="merge input DMA buffers",
        combine_outputs="merge output DMA buffers",
        io_crc="check sums of inputs and outputs",
        qpc_crc="check sums inside the program file",
        ddr_stats="statistics of device memory traffic",
        aic_perf_metrics="print performance metrics while compiling",
        aic_perf_warnings="print performance warnings while compiling",
        time_passes="print the time of each compiler pass",
        enable_debug="compile with debug information",
        version_extended="print the compiler's version in full",
    ),
)

#: Flags that the backend writes itself, and the option to use instead; "" where there is nothing to choose.
OWN_FLAGS: dict[str, str] = {
    "m": "",
    "model": "",
    "aic-hw": "",
    "aic-hw-version": "hw_version",
    "aic-binary-dir": "",
    "aic-num-cores": "num_cores",
    "compile-only": "",
    "convert-to-fp16": "convert_to_fp16",
    "retained-state": "",
    "network-specialization-config": "",
    "onnx-define-symbol": "",
    "custom-IO-list-file": "mxint8_kv_cache",
    "mdp-load-partition-config": "mdp_load_partition_config",
    "sub-functions": "sub_functions",
    "mxfp6-matmul": "mxfp6_matmul",
    "node-precision-info": "fp32_nodes",
}


def arguments(options: object) -> list[str]:
    """The command line of every option of the table that has a value, in the order of the table."""
    return [text for flag in FLAGS if (text := _argument(flag.flag, getattr(options, flag.option))) is not None]


def _argument(flag: str, value: object) -> str | None:
    if value is None or value == ():
        return None
    if isinstance(value, bool):
        return f"-{flag}" if value else f"-{flag}=false"
    if isinstance(value, tuple):
        return f"-{flag}={','.join(map(str, value))}"
    return f"-{flag}={value}"


def problems(options: object) -> list[str]:
    """What the compiler would refuse among the options of the table."""
    found = []
    for flag in FLAGS:
        value = getattr(options, flag.option)
        numbers: Sequence[object] = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if not isinstance(number, (int, float)) or isinstance(number, bool):
                continue
            if (flag.minimum is not None and number < flag.minimum) or (
                flag.maximum is not None and number > flag.maximum
            ):
                found.append(f"{flag.option}={value} is out of range: {_range(flag)}")
                break
    return found


def _range(flag: Flag) -> str:
    return f"at least {flag.minimum}" if flag.maximum is None else f"{flag.minimum} to {flag.maximum}"


def extra_flag_problems(extra: Sequence[str], options: object) -> list[str]:
    """Why raw flags cannot be passed on: not of the compiler's form, or given in another way already."""
    by_flag = {flag.flag: flag for flag in FLAGS}
    found, seen = [], set[str]()
    for text in extra:
        name = text.partition("=")[0].removeprefix("-")
        if not text.startswith("-") or text.startswith("--") or not name or any(blank in text for blank in "\n\0"):
            found.append(f"extra_flags: '{text}' must have the form -flag or -flag=value")
        elif name in OWN_FLAGS:
            instead = OWN_FLAGS[name]
            found.append(
                f"extra_flags: -{name} is set by the backend" + (f", use the option '{instead}'" if instead else "")
            )
        elif name in by_flag and getattr(options, by_flag[name].option) not in (None, ()):
            found.append(f"extra_flags: -{name} is given by the option '{by_flag[name].option}' as well")
        elif name in seen:
            found.append(f"extra_flags: -{name} is given twice")
        seen.add(name)
    return found
