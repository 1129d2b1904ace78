"""What a test holds of an installed stand-in SDK."""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from .qaic_standin import device_state
from .qaic_standin.devices import StandinDevice, read_devices, write_devices
from .qaic_standin.layout import Layout
from .qaic_standin.profiles import Profile

MODULES = ("qaicrt", "QAicApi_pb2")


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One line of the log that a tool wrote."""

    tool: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    exit_code: int
    read: Mapping[Path, str | None] = field(default_factory=dict)
    written: tuple[Path, ...] = ()

    def text_of(self, option: str) -> str:
        """Text of the side file that was given with `option`, for example `-custom-IO-list-file`.

        Raises:
            KeyError: the option was not given, or its file is not a text file.
        """
        path = next((Path(arg.partition("=")[2]) for arg in self.argv if arg.startswith(f"{option}=")), None)
        text = self.read.get(path) if path else None
        if text is None:
            raise KeyError(option)
        return text


@dataclass(frozen=True, kw_only=True)
class StandinSdk:
    """A stand-in SDK: paths, log, devices, and imports of its runtime."""

    layout: Layout
    profile: Profile

    @property
    def root(self) -> Path:
        """What takes the place of `/opt/qti-aic`."""
        return self.layout.root

    @property
    def compiler(self) -> Path:
        """The profile's preferred compiler."""
        return self.root / "exec" / self.profile.compilers[0]

    @property
    def util(self) -> Path:
        return self.root / "tools" / "qaic-util"

    @property
    def version_util(self) -> Path:
        return self.root / "tools" / "qaic-version-util"

    @property
    def module_folders(self) -> tuple[Path, Path]:
        """Folders to append to `sys.path` for `qaicrt` and for `QAicApi_pb2`."""
        return self.root / "dev" / "lib" / platform.machine(), self.root / "dev" / "python"

    def invocations(self, tool: str | None = None) -> list[Invocation]:
        """Runs of the tools in order, or of one tool."""
        return [
            Invocation(
                tool=entry["tool"],
                argv=tuple(entry["argv"]),
                cwd=Path(entry["cwd"]),
                env=entry["env"],
                exit_code=entry["exit_code"],
                read={Path(item["path"]): item.get("text") for item in entry["read"]},
                written=tuple(map(Path, entry["written"])),
            )
            for entry in self._log()
            if "argv" in entry and tool in (None, entry["tool"])
        ]

    def runtime_calls(self) -> list[tuple[str, list[int]]]:
        """Life-cycle calls of the runtime in order: the call and its QIDs."""
        return [(entry["call"], entry["details"]["qids"]) for entry in self._log() if "call" in entry]

    @property
    def devices(self) -> tuple[StandinDevice, ...]:
        return read_devices(self.layout.devices_file)

    def set_devices(self, devices: Sequence[StandinDevice]) -> None:
        """Change the machine."""
        write_devices(self.layout.devices_file, devices)

    def nsps_in_use(self) -> dict[int, int]:
        """NSPs in use per QID."""
        return device_state.nsps_in_use(self.layout)

    def assert_released(self) -> None:
        """For the end of a test: fail when an activation was not given back, and give it back.

        Raises:
            AssertionError: naming the devices.
        """
        leaked = {qid: used for qid, used in self.nsps_in_use().items() if used}
        device_state.release_all(self.layout)
        if leaked:
            raise AssertionError(f"NSPs still in use (QID: NSPs): {leaked}")

    @contextmanager
    def clean_imports(self) -> Iterator[None]:
        """Start without the runtime's modules, and undo at the end what the block did to them and to `sys.path`."""
        path = list(sys.path)
        saved = {name: sys.modules.pop(name, None) for name in MODULES}
        try:
            yield
        finally:
            sys.path[:] = path
            for name, module in saved.items():
                sys.modules.pop(name, None)
                if module is not None:
                    sys.modules[name] = module

    @contextmanager
    def runtime(self) -> Iterator[tuple[ModuleType, ModuleType]]:
        """`qaicrt` and `QAicApi_pb2` of this tree, imported the way users do it, for the length of the block."""
        with self.clean_imports():
            sys.path.extend(map(str, self.module_folders))
            importlib.invalidate_caches()
            runtime, api = map(importlib.import_module, MODULES)
            yield runtime, api

    def _log(self) -> list[dict[str, Any]]:
        if not self.layout.log_file.exists():
            return []
        return [json.loads(line) for line in self.layout.log_file.read_text(encoding="utf-8").splitlines()]
