"""Where the QAIRT SDK lies, which of its parts are there, and what it says about itself. Reads files, runs nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qeff_framework.plugin_api import BackendUnavailableError
from qnn_backend.constants import QnnConstants

#: The converter is a script that starts with whatever ``python3`` is; this variable names the interpreter to use instead.
PYTHON_VARIABLE = "QEFF_QAIRT_PYTHON"

_SET_ROOT = (
    f"install the QAIRT SDK with its Cloud AI back end and set {QnnConstants.QNN_SDK_PATH_ENV_VAR_NAME} to its folder"
)


class DescriptionError(Exception):
    """``sdk.yaml`` does not say what the SDK is."""


@dataclass(frozen=True, kw_only=True)
class Sdk:
    """An SDK root; the parts need not be there."""

    root: Path

    def part(self, template: str) -> Path:
        """Path of a part, from one of the templates of `QnnConstants`."""
        return Path(template.format(self.root, QnnConstants.TARGET))

    @property
    def description_file(self) -> Path:
        """``sdk.yaml``."""
        return self.root / QnnConstants.QNN_SDK_YAML

    @property
    def missing(self) -> tuple[Path, ...]:
        """Parts that compiling needs and that are not there or, for the tools, not executable."""
        tools = [self.part(template) for template in (QnnConstants.QAIRT_CONVERTER, QnnConstants.QNN_CONTEXT_BIN)]
        libraries = [
            self.part(template)
            for template in (QnnConstants.QNN_CONTEXT_LIB_BACKEND, QnnConstants.QNN_CONTEXT_LIB_NET_RUN_EXTENSIONS)
        ]
        absent = [path for path in tools if not (path.is_file() and os.access(path, os.X_OK))]
        return (*absent, *(path for path in libraries if not path.is_file()))

    def description(self) -> Mapping[str, str]:
        """What ``sdk.yaml`` says, values as text.

        Raises:
            DescriptionError: it is not there, cannot be read, or holds no version.
        """
        import yaml

        try:
            content = yaml.safe_load(self.description_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DescriptionError(f"{self.description_file} cannot be read: {error}") from error
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise DescriptionError(f"{self.description_file} is not YAML: {reason}") from error
        if not isinstance(content, dict) or not content.get("version"):
            raise DescriptionError(f"{self.description_file} names no version")
        return {str(key): str(value) for key, value in content.items()}

    def environment(self) -> dict[str, str]:
        """This process's variables with what the SDK's set-up script adds to them."""
        added = {
            "PATH": QnnConstants.QNN_BIN_PATH,
            "LD_LIBRARY_PATH": QnnConstants.QNN_LIB_PATH,
            "PYTHONPATH": QnnConstants.QNN_PYTHON_PATH,
        }
        result = {**os.environ, QnnConstants.QNN_SDK_PATH_ENV_VAR_NAME: str(self.root)}
        for name, template in added.items():
            parts = [str(self.part(template)), *filter(None, [result.get(name)])]
            result[name] = os.pathsep.join(parts)
        return result

    def converter_command(self) -> list[str]:
        """The converter, with the interpreter in front where one is named."""
        interpreter = os.environ.get(PYTHON_VARIABLE)
        return [*filter(None, [interpreter]), str(self.part(QnnConstants.QAIRT_CONVERTER))]


def find_sdk() -> Sdk | None:
    """The SDK that ``QNN_SDK_ROOT`` names; `None` when it is not set."""
    root = os.environ.get(QnnConstants.QNN_SDK_PATH_ENV_VAR_NAME)
    return Sdk(root=Path(root).absolute()) if root else None


def usable_sdk() -> tuple[Sdk, Mapping[str, str]]:
    """A complete SDK and its description.

    Raises:
        BackendUnavailableError: the variable is not set, a part is missing, or the description is damaged.
    """
    sdk = find_sdk()
    variable = QnnConstants.QNN_SDK_PATH_ENV_VAR_NAME
    if sdk is None:
        raise _unavailable(f"{variable} is not set", _SET_ROOT)
    if sdk.missing:
        parts = ", ".join(map(str, sdk.missing))
        raise _unavailable(f"{parts} is not there or not executable", f"set {variable} to a complete QAIRT SDK")
    try:
        return sdk, sdk.description()
    except DescriptionError as error:
        raise _unavailable(str(error), f"set {variable} to an undamaged QAIRT SDK") from error


def _unavailable(reason: str, remedy: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"backend 'qnn', target aic, cannot compile: {reason}. To compile here, {remedy}. To compile elsewhere, use "
        "dry_run=True and run the bundle's compile.sh"
    )


def needs_model_library(version: str) -> bool:
    """Older context generators read a DLC through a library that has to be named."""
    numbers = [int(part) for part in version.split(".")[:2] if part.isdecimal()]
    return bool(numbers) and tuple(numbers) < QnnConstants.FIRST_WITHOUT_MODEL_LIB


def described_versions() -> dict[str, str]:
    """What ``sdk.yaml`` says, as entries of a fingerprint; empty without an SDK. Never raises."""
    sdk = find_sdk()
    if sdk is None:
        return {}
    try:
        return {f"qairt_sdk_{key}": value for key, value in sdk.description().items()}
    except (DescriptionError, ImportError):
        return {"qairt_sdk_version": "unknown"}
