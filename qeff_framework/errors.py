"""Every error that the framework raises on purpose.

A message says what was asked, what is wrong and what to do next. Catch `QEFFError` to catch them all; the command
line turns them into one line and exit code 1 (usage errors: 2).
"""

from __future__ import annotations


class QEFFError(Exception):
    """Base of all errors that the framework raises on purpose."""


# --- choosing a backend ---------------------------------------------------------------------------------------------


class BackendError(QEFFError):
    """A backend could not be selected, or broke its contract."""


class BackendNotInstalledError(BackendError):
    """No installed package provides a backend of this name."""


class UnknownBackendError(BackendNotInstalledError):
    """The name that a caller gave is not that of an installed backend."""


class BackendBlockedError(BackendError):
    """The backend is installed, but an environment variable keeps it from being used."""


class BackendIncompatibleError(BackendError):
    """The backend was built for another plugin API, or does not match the hook specifications."""


class BackendBrokenError(BackendError):
    """The backend is installed, but importing it failed. The original exception is the cause."""


class BackendConflictError(BackendError):
    """Several installed packages provide a backend of the requested name."""


class BackendUnavailableError(BackendError):
    """The backend works, but what it needs (SDK, device, library) is not there."""


class ExtensionError(QEFFError):
    """A requested extension is not installed, could not be loaded, or returned something that breaks the contract of its hook."""


class UnknownExtensionError(ExtensionError):
    """The name that a caller gave is not that of an installed extension."""


# --- what the user asked for ----------------------------------------------------------------------------------------


class OptionError(QEFFError, TypeError):
    """Unknown, misspelt, mistyped or contradictory options. Lists every problem at once."""


class CheckpointError(QEFFError):
    """The model folder, hub id or GGUF file cannot be used."""


class UnsupportedModelError(QEFFError):
    """The architecture does not fit the task, or needs something that the seam cannot carry."""


class InputError(QEFFError, ValueError):
    """Prompts or tensors that the compiled model cannot take."""


# --- stages ---------------------------------------------------------------------------------------------------------


class ExportError(QEFFError):
    """The model could not be turned into portable ONNX."""


class CompileError(QEFFError):
    """The backend's compiler refused or failed."""


class ExecutionError(QEFFError):
    """A compiled model could not be loaded or run."""


# --- artifacts ------------------------------------------------------------------------------------------------------


class ArtifactError(QEFFError):
    """The artifact store or an artifact in it cannot be used."""


class ArtifactCorruptError(ArtifactError):
    """An artifact's files differ from its manifest."""


# --- serving ------------------------------------------------------------------------------------------------------------


class QueueFullError(QEFFError):
    """An engine's queue is full. The same request may be accepted later."""


class EngineClosedError(QEFFError):
    """An engine takes no more requests: it is shutting down, or its program has failed."""
