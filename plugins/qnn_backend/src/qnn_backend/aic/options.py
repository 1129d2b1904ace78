"""Options of target ``aic``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qeff_framework.plugin_api import AttentionOptions, LayerWindowOptions, MicroscalingOptions, RuntimeOptions, option
from qnn_backend.aic.backend_options import contradictions
from qnn_backend.aic.user_config import read_user_config
from qnn_backend.constants import QnnConstants

#: NSP cores of one device, and devices that exchange data peer to peer.
_MAX_CORES = 16
_MAX_DEVICES = 16


@dataclass(frozen=True, kw_only=True)
class AicOptions(MicroscalingOptions, AttentionOptions, LayerWindowOptions):
    """Options of `compile` for Cloud AI 100."""

    qnn_config: Path | None = option(
        None, "JSON file with further arguments of the QAIRT tools and options of their Cloud AI back end"
    )
    dlc_file: Path | None = option(None, "a DLC of this model to compile, in place of the converter's")
    mos: int | None = option(
        None, "effort to save on-chip memory by splitting weights over cores: 1, 2, 4, ... cores", minimum=1
    )
    aic_enable_depth_first: bool | None = option(None, "schedule depth first")
    allow_mxint8_mdp_io: bool | None = option(None, "compress the traffic between devices as MXINT8")
    qairt_timeout_minutes: int = option(
        1440, "when to stop QAIRT tools that do not end", minimum=1, changes_program=False
    )

    def aic_problems(self) -> list[str]:
        """Combinations of options that cannot work, the content of `qnn_config` included."""
        found = []
        if self.num_cores > _MAX_CORES:
            found.append(f"num_cores={self.num_cores} is out of range: a device has at most {_MAX_CORES} cores")
        if self.num_devices > _MAX_DEVICES:
            found.append(
                f"num_devices={self.num_devices} is out of range: at most {_MAX_DEVICES} devices share a program"
            )
        if self.mos is not None and (self.mos & (self.mos - 1) or self.mos > self.num_cores):
            found.append(f"mos={self.mos} must be a power of two and at most num_cores={self.num_cores}")
        if self.dlc_file is not None and not self.dlc_file.is_file():
            found.append(f"dlc_file: {self.dlc_file} does not exist")
        try:
            user = read_user_config(self.qnn_config)
        except ValueError as error:
            return [*found, str(error)]
        if user.skip_converter and self.dlc_file is None:
            found.append(
                f"qnn_config: {QnnConstants.SKIP_QNN_CONVERTER_STEP_STR} needs the option dlc_file=<path of the DLC>"
            )
        if self.dlc_file is not None and user.converter_arguments:
            found.append(
                f"qnn_config: with dlc_file the converter does not run, so '{QnnConstants.CONVERTER_ARGS_EXTENSION_STR}' "
                "means nothing"
            )
        return [*found, *contradictions(user.backend_options, self)]


@dataclass(frozen=True, kw_only=True)
class AicRuntimeOptions(RuntimeOptions):
    """Options of `execute` for Cloud AI 100."""

    device_ids: tuple[int, ...] = option(
        (), "QIDs of the devices, one for each device of the program; by default free choice"
    )
    timeout_ms: int = option(60_000, "how long one step may take on the device", minimum=1)
