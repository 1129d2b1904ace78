"""A structural copy of a model without its weights.

The seam changes attention, masks, experts and norms of a model. It does so on a copy, so that the caller's module stays as it was
whatever happens, and no second set of weights is ever in memory.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from qeff_framework.errors import UnsupportedModelError

#: All floating-point weights and states of the portable graph have this dtype.
GRAPH_DTYPE = torch.float32


ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


def weightless_copy(module: ModuleT) -> ModuleT:
    """Copies everything but the parameters' contents; half-precision tensors become float32.

    The new parameters are uninitialised: memory that nobody touches is reserved but never resident, so a copy of any size costs
    next to nothing. Before the copy runs, its parameters must be replaced (`fake_parameters`), or it must be traced.

    Raises:
        UnsupportedModelError: an attribute of `module` that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, dtype=_graph_dtype(parameter), memory_format=torch.contiguous_format)
        memo[id(parameter)] = torch.nn.Parameter(empty, requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().to(_graph_dtype(buffer), copy=True)
    try:
        return copy.deepcopy(module, memo).eval()
    except (TypeError, RuntimeError) as error:
        reason = str(error).partition(". ")[0]
        raise UnsupportedModelError(
            f"it cannot be copied ({reason}); take what cannot be copied off the module: an open file, a lock, or a weight that "
            "is computed anew in each call (torch.nn.utils.remove_weight_norm)"
        ) from error


def fake_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters that have shapes and no data, for `torch.func.functional_call`.

    Everything computed from them has no data either, while index arithmetic (positions, masks) stays real and can be looked at.
    """
    # The shapes of parameters stay numbers; symbols stand only for counts that depend on contents (selected rows).
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
    return {name: _without_data(parameter, mode) for name, parameter in model.named_parameters()}


def _without_data(parameter: torch.nn.Parameter, mode: FakeTensorMode) -> torch.Tensor:
    """What ``mode.from_tensor`` makes of an ordinary parameter, without its search for views and gradients."""
    if type(parameter) is not torch.nn.Parameter or parameter.layout is not torch.strided or parameter.requires_grad:
        return mode.from_tensor(parameter)
    data = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device="meta")
    fake = FakeTensor(mode, data, parameter.device)
    fake._is_param = True  # noqa: SLF001  (what `isinstance` looks at)
    return fake


def _graph_dtype(tensor: torch.Tensor) -> torch.dtype:
    return GRAPH_DTYPE if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
