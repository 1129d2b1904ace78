"""What an export changes for the whole process, kept from everybody else.

One export runs at a time: tracing changes global state of PyTorch. Within an export, what concerns this thread alone is told by
context variables. The registry of attention masks is one for all threads; its entries for the time of an export look whether the
forward pass that asks is part of it, and answer every other one as before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from qeff_framework.seam.scope import in_forward_scope

MaskInterface = Callable[..., Any]

_LOCK = threading.RLock()


@contextmanager
def exporting() -> Iterator[None]:
    """Waits for the exports of other threads. An export within an export goes on at once."""
    with _LOCK:
        yield


@contextmanager
def scoped_mask_interfaces(interfaces: Mapping[str, MaskInterface]) -> Iterator[None]:
    """Lets forward passes of the export, and no others, take these entries of the registry of attention masks.

    The registry is afterwards as it was, whether an entry is the library's or somebody's own.
    """
    local: dict[str, MaskInterface] = ALL_MASK_ATTENTION_FUNCTIONS._local_mapping  # noqa: SLF001 - no public name tells them apart
    with _LOCK:
        own = {name: local.get(name) for name in interfaces}
        added = {name: _scoped(entry, ALL_MASK_ATTENTION_FUNCTIONS[name]) for name, entry in interfaces.items()}
        local.update(added)
        try:
            yield
        finally:
            for name, before in own.items():
                if local.get(name) is not added[name]:
                    continue  # Somebody else has replaced the entry meanwhile.
                if before is None:
                    del local[name]
                else:
                    local[name] = before


def _scoped(inside: MaskInterface, outside: MaskInterface) -> MaskInterface:
    def interface(*args: Any, **kwargs: Any) -> Any:
        return (inside if in_forward_scope() else outside)(*args, **kwargs)

    return interface
