"""What users can choose: the target, and the options of both kinds of targets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from qeff_framework.plugin_api import CompileOptions, MicroscalingOptions, OptionError, RuntimeOptions, option
from qnn_backend import targets
from qnn_backend.aic.options import AicOptions, AicRuntimeOptions
from qnn_backend.htp.options import HtpOptions, HtpRuntimeOptions


@dataclass(frozen=True, kw_only=True)
class QnnOptions(HtpOptions, AicOptions):
    """Options of `compile`. Those of the kind of target that was not chosen must keep their defaults."""

    target: str | int = option(targets.DEFAULT, "the chip, by name or by Qualcomm's id, or aic for Cloud AI 100")

    def __post_init__(self) -> None:
        """Refuses, all at once, unknown targets and options that do not fit the target."""
        if not targets.is_aic(self.target) and targets.find_soc(self.target) is None:
            raise ValueError(f"unknown target {self.target!r}; the targets are {targets.describe_targets()}")
        if self.is_aic:
            problems = [*self._foreign(HtpOptions, "of the chips with an NPU"), *self.aic_problems()]
        else:
            problems = [*self._foreign(AicOptions, "of target aic"), *self.htp_problems()]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def is_aic(self) -> bool:
        """The target is Cloud AI 100."""
        return targets.is_aic(self.target)

    def _foreign(self, other: type[CompileOptions], whose: str) -> list[str]:
        """Options of the other kind of target that were set."""
        common = {field.name for field in dataclasses.fields(MicroscalingOptions)}
        return [
            f"option '{field.name}' is one {whose} and means nothing for target {self.target}"
            for field in dataclasses.fields(other)
            if field.name not in common and getattr(self, field.name) != field.default
        ]


@dataclass(frozen=True, kw_only=True)
class QnnRuntimeOptions(HtpRuntimeOptions, AicRuntimeOptions, RuntimeOptions):
    """Options of `execute`."""

    def check_for(self, target: str | int) -> None:
        """Raises `OptionError` when an option was set that only programs of the other kind of target have."""
        chosen: type[RuntimeOptions] = AicRuntimeOptions if targets.is_aic(target) else HtpRuntimeOptions
        own = {field.name for field in dataclasses.fields(chosen)}
        foreign = [
            field.name
            for field in dataclasses.fields(self)
            if field.name not in own and getattr(self, field.name) != field.default
        ]
        if foreign:
            raise OptionError(
                f"backend 'qnn': {', '.join(map(repr, foreign))} means nothing for target {target}; "
                f"it takes {', '.join(sorted(own))}"
            )
