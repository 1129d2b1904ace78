"""Torch's defaults of a process, as loading and tracing need them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def standard_torch_defaults() -> Iterator[None]:
    """Torch makes float32 tensors on the CPU meanwhile, whatever the process, or a plugin in it, has chosen as its defaults.

    Code of models makes tensors without a dtype (scales, tables of positions): they would be part of the graph in the type that
    happens to be the default, and the export's key does not tell.
    """
    import torch

    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    is_standard = dtype == torch.float32 and device.type == "cpu"
    if is_standard:
        yield
        return
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        # A default device is a mode of torch in every call; without one the CPU is it.
        torch.set_default_device(None if device.type == "cpu" else device)
