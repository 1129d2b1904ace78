"""The option table of the compiler, as data.

Names and types follow the published option lists. `since` and `until` bound the profiles that know an option: where no
public source dates an option, it is offered by every profile. Names are without the leading dash.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..profiles import ORDER, Profile


class Kind(Enum):
    """Type of an option's value."""

    BOOL = "boolean"
    INT = "decimal integer"
    FLOAT = "decimal number"
    STRING = "text"
    INPUT_FILE = "path of an existing file"
    OUTPUT_PATH = "path"
    LIST = "comma separated list"
    INT_LIST = "comma separated list of decimal integers"


@dataclass(frozen=True, kw_only=True)
class Option:
    """One compiler option."""

    name: str
    kind: Kind
    repeatable: bool = False
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    alias_of: str = ""
    since: str = ORDER[0]
    until: str = ORDER[-1]
    # False: accepted, but the stand-in's program does not depend on it although the real program would.
    modelled: bool = True

    @property
    def canonical_name(self) -> str:
        return self.alias_of or self.name

    def is_known_to(self, profile: Profile) -> bool:
        """Whether the profile has this option."""
        return ORDER.index(self.since) <= ORDER.index(profile.name) <= ORDER.index(self.until)


def _of(kind: Kind, *names: str, modelled: bool = True, since: str = ORDER[0]) -> tuple[Option, ...]:
    return tuple(Option(name=name, kind=kind, modelled=modelled, since=since) for name in names)


_QUANTIZATION_SCHEMAS = ("asymmetric", "symmetric", "symmetric_with_uint8", "symmetric_with_power2_scale")

_TABLE: tuple[Option, ...] = (
    # Files
    Option(name="m", kind=Kind.INPUT_FILE),
    Option(name="model", kind=Kind.INPUT_FILE, alias_of="m"),
    Option(name="aic-binary-dir", kind=Kind.OUTPUT_PATH),
    *_of(
        Kind.INPUT_FILE,
        "network-specialization-config",
        "custom-IO-list-file",
        "mdp-load-partition-config",
        "node-precision-info",
    ),
    *_of(Kind.OUTPUT_PATH, "mdp-dump-partition-config", "dump-custom-IO-config-template"),
    Option(name="onnx-define-symbol", kind=Kind.STRING, repeatable=True),
    Option(name="register-custom-op", kind=Kind.INPUT_FILE, repeatable=True, modelled=False),
    # Target
    *_of(Kind.BOOL, "aic-hw"),
    Option(name="compile-only", kind=Kind.BOOL, until="1.21"),
    Option(name="aic-hw-version", kind=Kind.STRING),
    Option(name="aic-num-cores", kind=Kind.INT, minimum=1, maximum=16),
    # Precision
    *_of(Kind.BOOL, "convert-to-fp16", "mxfp6-matmul"),
    *_of(Kind.LIST, "execute-nodes-in-fp16", "keep-original-precision-for-nodes", modelled=False),
    # State and IO
    *_of(Kind.BOOL, "retained-state", "qpc-crc"),
    *_of(Kind.STRING, "io-encrypt"),
    *_of(Kind.BOOL, "split-retained-state-io", modelled=False, since="1.21"),
    *_of(Kind.BOOL, "io-crc", "combine-inputs", "combine-outputs", modelled=False),
    Option(name="io-crc-stride", kind=Kind.INT, minimum=1, modelled=False),
    *_of(Kind.BOOL, "aic-preproc", "host-preproc"),
    # Graph handling
    *_of(Kind.BOOL, "sub-functions", since="1.21"),
    *_of(Kind.BOOL, "user-tiled", "use-producer-dma", "always-expand-onnx-functions", modelled=False),
    *_of(Kind.LIST, "dynamic-shape-input", modelled=False),
    # Several devices
    Option(name="mdts-mos", kind=Kind.INT, minimum=1, modelled=False),
    *_of(Kind.BOOL, "allow-mxint8-mdp-io", modelled=False),
    # Scheduling and memory
    Option(name="mos", kind=Kind.INT, minimum=1, modelled=False),
    Option(name="ols", kind=Kind.INT, minimum=1, modelled=False),
    *_of(Kind.BOOL, "aic-enable-depth-first", "multicast-weights", modelled=False),
    Option(name="aic-depth-first-mem", kind=Kind.INT, minimum=8, maximum=32, modelled=False),
    Option(name="size-split-granularity", kind=Kind.INT, minimum=512, maximum=2048, modelled=False),
    Option(name="vtcm-working-set-limit-ratio", kind=Kind.FLOAT, minimum=0, maximum=1, modelled=False),
    Option(name="allocator-dealloc-delay", kind=Kind.INT, minimum=0, maximum=10, modelled=False),
    *_of(Kind.INT_LIST, "sdp-cluster-sizes", modelled=False),
    Option(name="batchsize", kind=Kind.INT, minimum=1, modelled=False),
    Option(name="compile-threads", kind=Kind.INT, minimum=1, modelled=False),
    # Diagnostics
    Option(name="stats-batchsize", kind=Kind.INT, minimum=1),
    Option(name="stats-level", kind=Kind.INT, minimum=0, maximum=100),
    Option(name="profiling-threads", kind=Kind.INT, minimum=1),
    *_of(Kind.BOOL, "ddr-stats", "aic-perf-metrics", "aic-perf-warnings", "time-passes", "enable-debug"),
    *_of(Kind.BOOL, "version-extended", "v", "vv", "vvv"),
    Option(
        name="aic-pmu-recipe",
        kind=Kind.STRING,
        choices=("AxiRd", "AxiWr", "AxiRdWr", "KernelUtil", "HmxMacs"),
    ),
    Option(name="aic-pmu-events", kind=Kind.INT_LIST),
    Option(name="aic-profiling-type", kind=Kind.STRING, choices=("stats", "trace", "latency")),
    # INT8 flows: accepted so that option handling can be tested, not modelled
    *_of(Kind.INPUT_FILE, "external-quantization", "load-profile", modelled=False),
    *_of(Kind.OUTPUT_PATH, "dump-profile", modelled=False),
    *_of(Kind.BOOL, "convert-to-quantize", "enable-rowwise", "enable-channelwise", modelled=False),
    Option(
        name="quantization-schema-activations",
        kind=Kind.STRING,
        choices=_QUANTIZATION_SCHEMAS,
        modelled=False,
    ),
    Option(name="quantization-schema-constants", kind=Kind.STRING, choices=_QUANTIZATION_SCHEMAS, modelled=False),
    Option(
        name="quantization-calibration",
        kind=Kind.STRING,
        choices=("None", "KLMinimization", "KLMinimizationV2", "Percentile", "MSE", "SQNR"),
        modelled=False,
    ),
    Option(name="percentile-calibration-value", kind=Kind.FLOAT, minimum=0, maximum=100, modelled=False),
    Option(name="num-histogram-bins", kind=Kind.INT, minimum=1, modelled=False),
    Option(name="quantization-precision", kind=Kind.STRING, choices=("Int8",), modelled=False),
    Option(name="quantization-precision-bias", kind=Kind.STRING, choices=("Int8", "Int32"), modelled=False),
    # Execute mode of the old tool
    Option(name="device-id", kind=Kind.INT, minimum=0, until="legacy", modelled=False),
    Option(name="aic-num-of-instances", kind=Kind.INT, minimum=1, until="legacy", modelled=False),
    Option(name="num-iter", kind=Kind.INT, minimum=1, until="legacy", modelled=False),
    Option(name="input-list-file", kind=Kind.INPUT_FILE, until="legacy", modelled=False),
    Option(name="write-output-dir", kind=Kind.OUTPUT_PATH, until="legacy", modelled=False),
    Option(name="write-output-start-iter", kind=Kind.INT, minimum=0, until="legacy", modelled=False),
    Option(name="write-output-num-samples", kind=Kind.INT, minimum=1, until="legacy", modelled=False),
)

# These end the run before any model is read.
HELP_ARGUMENTS = ("-h", "-help", "--help", "-u", "--usage")
LIST_OPERATORS_ARGUMENT = "-operators-supported=onnx"


def options_of(profile: Profile) -> dict[str, Option]:
    """The options of one profile, by name."""
    return {option.name: option for option in _TABLE if option.is_known_to(profile)}
