"""Creates the tree of a stand-in QAIRT SDK under a temporary root."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

from tests.sdk_standins.trees import copy_package, interpreter_line

from .qairt_standin.layout import TARGET, Layout
from .qairt_standin.profiles import PROFILES
from .sdk import StandinQairt

ProfileName = Literal["2.34", "2.37"]
Part = Literal["converter", "generator", "backend", "extensions", "yaml"]
Description = Literal["good", "corrupt", "list", "no version"]

_HERE = Path(__file__).resolve().parent


def install_standin(
    root: Path,
    *,
    profile: ProfileName = "2.37",
    without: Collection[Part] = (),
    description: Description = "good",
) -> StandinQairt:
    """Create a stand-in SDK.

    Args:
        root: what `QNN_SDK_ROOT` names; created, and must be empty.
        profile: SDK generation; up to 2.34 the context generator wants the model library beside the DLC.
        without: parts to leave out: a tool, the back end, its extension library, `sdk.yaml`.
        description: `sdk.yaml` as it should be, or damaged (row N13).

    Raises:
        ValueError: an unknown profile or part, or `root` is not empty.
    """
    if profile not in PROFILES:
        raise ValueError(f"Unknown profile '{profile}'; known: {', '.join(PROFILES)}")
    unknown = sorted(set(without) - set(get_args(Part)))
    if unknown:
        raise ValueError(f"Unknown parts {unknown}; known: {', '.join(get_args(Part))}")
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty")
    layout = Layout(root=root.resolve())
    for folder in (layout.tools, layout.libraries, layout.python_folder, layout.private):
        folder.mkdir(parents=True)
    for package in ("qaic/qaic_standin", "qairt/qairt_standin"):
        copy_package(_HERE.parent / package, layout.private / package)
    layout.profile_file.write_text(json.dumps({"profile": profile}), encoding="utf-8")
    if "converter" not in without:
        _write_tool(layout.converter, "converter")
    if "generator" not in without:
        _write_tool(layout.generator, "generator")
    layout.model_library.write_bytes(b"stand-in\n")
    if "backend" not in without:
        layout.backend_library.write_bytes(b"stand-in\n")
    if "extensions" not in without:
        layout.extensions_library.write_bytes(b"stand-in\n")
    if "yaml" not in without:
        layout.description_file.write_text(_description(description, PROFILES[profile].version), encoding="utf-8")
    return StandinQairt(layout=layout)


def _description(kind: Description, version: str) -> str:
    texts = {
        "good": f"product: QAIRT\nversion: {version}\nbuild_id: '250501'\ntarget: {TARGET}\n",
        "corrupt": "version: [2.37\n",
        "list": f"- {version}\n",
        "no version": "product: QAIRT\n",
    }
    return texts[kind]


def _write_tool(path: Path, module: str) -> None:
    path.write_text(
        f"{interpreter_line(None)}\n"
        f'"""Stand-in for {path.name}: generated, not a Qualcomm tool."""\n'
        "import pathlib\n"
        "import sys\n\n"
        "sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))\n"
        f"from standin.qairt.qairt_standin.{module}.main import main\n\n"
        "sys.exit(main(sys.argv[1:]))\n",
        encoding="utf-8",
    )
    path.chmod(0o755)
