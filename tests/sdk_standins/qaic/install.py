"""Creates the tree of a stand-in SDK under a temporary root (rows G1 to G3)."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

from tests.sdk_standins.trees import copy_package, interpreter_line

from .qaic_standin.devices import SCENARIOS, StandinDevice, standard_card, write_devices
from .qaic_standin.layout import Layout
from .qaic_standin.profiles import PROFILES, Profile
from .sdk import StandinSdk

ProfileName = Literal["legacy", "1.21", "1.22"]
Part = Literal["compiler", "runtime", "util", "xml"]

PROFILE_VARIABLE = "QAIC_STANDIN_PROFILE"
DEFAULT_PROFILE: ProfileName = "1.21"

_HERE = Path(__file__).resolve().parent


def install_standin(
    root: Path,
    *,
    profile: ProfileName | None = None,
    devices: str | Sequence[StandinDevice] | None = None,
    without: Collection[Part] = (),
    interpreter: Path | None = None,
) -> StandinSdk:
    """Create a stand-in SDK.

    Args:
        root: takes the place of `/opt/qti-aic`; created, and must be empty.
        profile: SDK generation; without it, the variable `QAIC_STANDIN_PROFILE`, else 1.21.
        devices: the machine's devices, or the name of a scenario of `devices.SCENARIOS`; without it, one 16-NSP device.
        without: parts to leave out, each of them alone or together: the compiler, the runtime modules, `qaic-util`, the
            version files.
        interpreter: of the executables; without it, that of `tests.warm_python`.

    Raises:
        ValueError: an unknown profile, scenario or part, or `root` is not empty.
    """
    chosen = _profile(profile or os.environ.get(PROFILE_VARIABLE, DEFAULT_PROFILE))
    unknown = sorted(set(without) - set(get_args(Part)))
    if unknown:
        raise ValueError(f"Unknown parts {unknown}; known: {', '.join(get_args(Part))}")
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty")
    layout = Layout(root=root.resolve())
    _copy_private_files(layout, chosen, _devices(devices))
    for folder in ("exec", "tools", "dev/inc", "versions"):
        (layout.root / folder).mkdir(parents=True)
    _write_tool(layout, "tools/qaic-version-util", "tools.version_main", interpreter)
    if "compiler" not in without:
        for name in chosen.compilers:
            _write_tool(layout, f"exec/{name}", "compiler.main", interpreter)
    if "util" not in without:
        _write_tool(layout, "tools/qaic-util", "tools.util_main", interpreter)
    if "runtime" not in without:
        _copy_module(layout.root / "dev" / "lib" / platform.machine(), "qaicrt.py")
        _copy_module(layout.root / "dev" / "python", "QAicApi_pb2.py")
    if "xml" not in without:
        for package in ("apps", "platform"):
            layout.version_file(package).write_text(_version_xml(chosen), encoding="utf-8")
    return StandinSdk(layout=layout, profile=chosen)


def _profile(name: str) -> Profile:
    if name not in PROFILES:
        raise ValueError(f"Unknown profile '{name}'; known: {', '.join(PROFILES)}")
    return PROFILES[name]


def _devices(devices: str | Sequence[StandinDevice] | None) -> Sequence[StandinDevice]:
    if devices is None:
        return standard_card()
    if isinstance(devices, str):
        if devices not in SCENARIOS:
            raise ValueError(f"Unknown scenario '{devices}'; known: {', '.join(SCENARIOS)}")
        return SCENARIOS[devices]()
    return devices


def _copy_private_files(layout: Layout, profile: Profile, devices: Sequence[StandinDevice]) -> None:
    layout.private.mkdir(parents=True)
    copy_package(_HERE / "qaic_standin", layout.private / "qaic_standin")
    layout.profile_file.write_text(json.dumps({"profile": profile.name}), encoding="utf-8")
    write_devices(layout.devices_file, devices)


def _copy_module(folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    shutil.copy2(_HERE / "launchers" / name, folder / name)


def _write_tool(layout: Layout, place: str, module: str, interpreter: Path | None) -> None:
    path = layout.root / place
    path.write_text(
        f"{interpreter_line(interpreter)}\n"
        f'"""Stand-in for {path.name}: generated, not a Qualcomm tool."""\n'
        "import pathlib\n"
        "import sys\n\n"
        'sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "standin"))\n'
        f"from qaic_standin.{module} import main\n\n"
        f'sys.exit(main("{path.name}", sys.argv[1:]))\n',
        encoding="utf-8",
    )
    path.chmod(0o755)


def _version_xml(profile: Profile) -> str:
    # Tabs and blanks are mixed on purpose, as in the real files.
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        "<versions>\n"
        "\t<ci_build>\n"
        "\t    <base_name>AIC</base_name>\n"
        f"        <base_version>{profile.base_version}</base_version>\n"
        f"\t\t<build_id>{profile.build_id}</build_id>\n"
        "    </ci_build>\n"
        "</versions>\n"
    )
