"""Whether a model reads the contents of a traced tensor on the host: what follows from them is no part of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_READS = {
    torch.Tensor.tolist: "tolist()",
    torch.Tensor.item: "item()",
    torch.Tensor.__bool__: "a condition",
    torch.Tensor.__int__: "int()",
    torch.Tensor.__float__: "float()",
    torch.Tensor.__index__: "an index",
}
_REAL = (torch.Tensor, torch.nn.Parameter)


class ContentsOnTheHost(TorchFunctionMode):
    """Keeps how it was done first in `read`. A graph may come of it all the same, where only a check follows."""

    def __init__(self) -> None:
        super().__init__()
        self.read = ""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Sees every call of the library while the mode is on."""
        del types
        if func in _READS and type(args[0]) not in _REAL:
            self.read = self.read or _READS[func]
        return func(*args, **(kwargs or {}))
