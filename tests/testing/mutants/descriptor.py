"""Descriptors and options that break one promise each."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qeff_framework.plugin_api import Capabilities, CompileOptions, OptionError, Probe, RuntimeOptions, option
from tests.testing.mutants import METADATA, mutant
from tests.testing.toy_backend import ToyBackend, ToyOptions


@mutant("descriptor", "name", name="auto")
class ReservedName(ToyBackend):
    """Its name stands for automatic choice."""


@mutant("descriptor", "summary", summary="")
class NoSummary(ToyBackend):
    """Says nothing about itself."""


@mutant("descriptor", "summary", summary="line one\nline two")
class SummaryOfTwoLines(ToyBackend):
    """Breaks the table of `qeff backends`."""


@mutant("descriptor", "capabilities", capabilities=Capabilities(tasks=frozenset()))
class NoTask(ToyBackend):
    """Claims nothing that a model could be compiled for."""


@mutant("descriptor", "capabilities_for_options")
class ClaimsMoreWithOptions(ToyBackend):
    """Denies MXFP6 and grants it with an option."""

    def capabilities_for(self, options: CompileOptions) -> Capabilities:
        granted = getattr(options, "level", "") == "basic"
        return dataclasses.replace(self.capabilities, mxfp6_matmul=granted)


@mutant("descriptor", "options_are_documented")
@dataclass(frozen=True, kw_only=True)
class UndocumentedOption(ToyOptions):
    """An option without a help text."""

    speed: int = 1


@mutant("descriptor", "options_are_frozen", "option_types")
@dataclass(frozen=True, kw_only=True)
class WrongDefault(ToyOptions):
    """A default that its own choices refuse."""

    mode: str = option("fast", "how", choices=("slow", "quick"))


@mutant("descriptor", "option_types")
@dataclass(frozen=True, kw_only=True)
class OptionOfMappingType(ToyOptions):
    """An option that no command line can write."""

    table: Mapping[str, int] | None = option(None, "numbers by name")


@mutant("descriptor", "common_options")
@dataclass(frozen=True, kw_only=True)
class SeveralDevicesByDefault(ToyOptions):
    """Asks for two devices unless told otherwise."""

    num_devices: int = option(2, "accelerators that one program is spread over", minimum=1)


@mutant(
    "descriptor",
    "options_fit_capabilities",
    capabilities=dataclasses.replace(ToyBackend.capabilities, mxfp6_matmul=True),
)
class ClaimsMxfp6WithoutTheOption(ToyBackend):
    """Nobody can ask for what it claims."""


@mutant("descriptor", "options_do_not_hide")
@dataclass(frozen=True, kw_only=True)
class OptionNamedLikeASize(ToyOptions):
    """An option that the task takes for itself."""

    ctx_len: int = option(128, "positions of the cache")


@mutant("descriptor", "values_are_checked[options]")
@dataclass(frozen=True, kw_only=True)
class OptionThatCrashes(ToyOptions):
    """A combination is refused by a crash."""

    def __post_init__(self) -> None:
        {"none": 1}[self.level]


@mutant("descriptor", "values_are_checked[runtime_options]")
@dataclass(frozen=True, kw_only=True)
class RuntimeOptionThatCrashes(RuntimeOptions):
    """A value is refused by an assertion."""

    lanes: int = option(1, "parallel lanes")

    def __post_init__(self) -> None:
        assert self.lanes < 3


@mutant("descriptor", "probe")
class ProbeOfNothing(ToyBackend):
    """Answers with nothing."""

    def probe(self) -> Any:
        return None


@mutant("descriptor", "probe")
class NoRemedy(ToyBackend):
    """Says that something is wrong and not what to do."""

    def probe(self) -> Probe:
        found = super().probe()
        check = dataclasses.replace(found.checks[0], status="failed", remedy="")
        return dataclasses.replace(found, can_execute=False, checks=(check,))


@mutant("descriptor", "probe")
class NoReason(ToyBackend):
    """Cannot execute, and all checks are well."""

    def probe(self) -> Probe:
        return dataclasses.replace(super().probe(), can_execute=False)


@mutant("descriptor", "probe_leaves_nothing")
class ProbeThatLeavesAFile(ToyBackend):
    """Writes a log where the user works."""

    def probe(self) -> Probe:
        Path("probe.log").write_text("here")
        return super().probe()


@mutant("descriptor", "probe_leaves_nothing")
class ProbeThatSetsVariables(ToyBackend):
    """Changes the environment of the process."""

    def probe(self) -> Probe:
        os.environ["TOY_SDK"] = str(random.random())
        return super().probe()


@mutant("descriptor", "fingerprint")
class EmptyFingerprint(ToyBackend):
    """Every version finds the programs of every other."""

    def fingerprint(self) -> Mapping[str, str]:
        return {}


@mutant("descriptor", "fingerprint")
class FingerprintThatChanges(ToyBackend):
    """No program is ever found again."""

    def fingerprint(self) -> Mapping[str, str]:
        return {**super().fingerprint(), "time": str(random.random())}


@mutant("descriptor", "fingerprint")
class FingerprintOfAPath(ToyBackend):
    """The place of the SDK is part of the key."""

    def fingerprint(self) -> Mapping[str, str]:
        return {**super().fingerprint(), "sdk": "/opt/toy/sdk"}


@mutant("descriptor", "fingerprint_names_versions", metadata=METADATA)
class FingerprintWithoutTheCompiler(ToyBackend):
    """An upgrade of the compiler finds programs of the old one."""

    def fingerprint(self) -> Mapping[str, str]:
        return {"toy": "1.2.3"}


@mutant("descriptor", "runtime_defaults")
class RefusesItsOwnDefaults(ToyBackend):
    """Default runtime options do not go with a default program."""

    def check_runtime(self, runtime: RuntimeOptions, compiled_with: Mapping[str, Any]) -> None:
        raise OptionError("num_threads must be given")
