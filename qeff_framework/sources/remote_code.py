"""Python code that a checkpoint brings along: where it lies, and when it may run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qeff_framework.errors import CheckpointError

HOW_TO_TRUST = (
    "read that code and, if you trust it, pass trust_remote_code=True (on the command line --trust-remote-code)"
)


def references(*configs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Auto class and reference (``file.Class`` or ``owner/repository--file.Class``) of the code that configs point to."""
    for config in configs:
        auto_map = config.get("auto_map") or {}
        # Old tokenizer configs hold the pair of classes without the name of the auto class.
        for auto_class, found in auto_map.items() if isinstance(auto_map, Mapping) else [("AutoTokenizer", auto_map)]:
            for reference in found if isinstance(found, (list, tuple)) else [found]:
                if isinstance(reference, str):
                    yield auto_class, reference


def other_repositories(*configs: Mapping[str, Any]) -> dict[str, str]:
    """Repositories other than the checkpoint's own that its code comes from, with one file of each."""
    found = (reference for _, reference in references(*configs) if "--" in reference)
    return {reference.split("--")[0]: file_of(reference) for reference in found}


def file_of(reference: str) -> str:
    """The file that a reference names."""
    return f"{reference.rpartition('--')[2].rpartition('.')[0]}.py"


def trust_hint(error: BaseException) -> str:
    """What to add to the first line of Transformers' error; its own advice stands further down."""
    return f"; {HOW_TO_TRUST}" if "trust_remote_code" in str(error) else ""


def refuse_untrusted(name: str, config: Mapping[str, Any]) -> None:
    """Raises `CheckpointError`: the checkpoint needs its own code, which was not allowed to run."""
    told = ", ".join(sorted({reference for _, reference in references(config)}))
    raise CheckpointError(
        f"{name} needs Python code that it brings along ({told}), and that is not run unasked; {HOW_TO_TRUST}"
    )


def is_remote(kind: type) -> bool:
    """Whether a class is from code that a checkpoint brought along."""
    return kind.__module__.startswith("transformers_modules.")


def refuse_stale(kind: type, top: Path, name: str) -> None:
    """Raises `CheckpointError` where `kind` is from another state of the code in the folder `top`.

    Transformers copies the code, and takes a class that it has registered in this process before the changed one.
    """
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) if is_remote(kind) else None
    if file is None:
        return
    for copy in sorted(Path(file).parent.glob("*.py")):
        source = top / copy.name
        if source.is_file() and source.read_bytes() != copy.read_bytes():
            raise CheckpointError(
                f"{source} was changed since this process loaded the code of {name}, and Transformers goes on with what it has "
                "loaded; begin a new process"
            )
