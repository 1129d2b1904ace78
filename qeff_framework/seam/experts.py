"""Finds mixtures of experts by their library interface and routes them through the dialect op ``MoE``."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from qeff_framework.dialect import ops
from qeff_framework.dialect.names import Activation, Gate
from qeff_framework.errors import UnsupportedModelError

#: What other experts run with: the library's code that gathers the chosen experts' weights for each token. Its default
#: (`grouped_mm`) has no ONNX form and its eager code branches on data.
_PLAIN_IMPLEMENTATION = "batched_mm"
#: What `transformers.integrations.moe.use_experts_implementation` gives the classes that it decorates.
_INTERFACE = ("_apply_gate", "has_gate", "has_bias", "has_post_expert_norm", "is_transposed")
#: Relative deviation that float32 rounding explains.
_TOLERANCE = 1e-5
_ALPHAS = (1.0, 1.702)
#: Weights of all experts are one tensor ``[E, out, in]``.
_EXPERT_AXES = 3
#: Sizes of an example.
_SMALL = 6

_Experts = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def replace_experts(model: PreTrainedModel) -> None:
    """Lets the experts of `model` emit the dialect op; where it does not describe their activation, they run as plain ops."""
    model.set_experts_implementation(_PLAIN_IMPLEMENTATION)
    for module in model.modules():
        if _has_library_layout(module):
            _join_interface(module)
        if not all(hasattr(module, name) for name in _INTERFACE) or module.has_post_expert_norm:
            continue
        gate = find_gate(module)
        if gate is not None:
            module.forward = MethodType(_forward_with(gate), module)


def _has_library_layout(module: torch.nn.Module) -> bool:
    """Whether `module` holds experts as the library's decorated classes do, and computes the same, without being one.

    Its own forward is compared with the library's on small weights.
    """
    up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if hasattr(module, "has_gate") or not hasattr(module, "_apply_gate"):
        return False
    if not all(isinstance(each, torch.nn.Parameter) and each.dim() == _EXPERT_AXES for each in (up, down)):
        return False
    small = copy.copy(module)
    generator = torch.Generator().manual_seed(0)
    count = up.shape[0]  # type: ignore[union-attr]
    small._parameters = {  # noqa: SLF001 - a copy that shares nothing which is changed
        "gate_up_proj": torch.nn.Parameter(torch.randn((count, 2 * _SMALL, _SMALL), generator=generator)),
        "down_proj": torch.nn.Parameter(torch.randn((count, _SMALL, _SMALL), generator=generator)),
    }
    hidden = torch.randn((_SMALL, _SMALL), generator=generator)
    chosen = torch.rand((_SMALL, count), generator=generator).topk(min(2, count), dim=1)
    try:
        with torch.no_grad():
            wanted = small(hidden, chosen.indices, chosen.values)
            _join_interface(small)
            result = small(hidden, chosen.indices, chosen.values)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return result.shape == wanted.shape and _same(result, wanted)


def _join_interface(module: torch.nn.Module) -> None:
    """Gives `module` what the library's decorator gives, and its code that gathers the chosen experts' weights."""
    for name in ("has_gate", "is_concatenated"):
        setattr(module, name, True)
    for name in ("has_bias", "has_post_expert_norm", "is_transposed", "_is_expert_parallel"):
        setattr(module, name, False)
    module.forward = MethodType(ALL_EXPERTS_FUNCTIONS[_PLAIN_IMPLEMENTATION], module)


def find_gate(module: torch.nn.Module) -> Gate | None:
    """What `module`, a set of experts, does between its two products, found out by trying; `None` if nothing fits."""
    activate: Callable[[torch.Tensor], torch.Tensor] = module._apply_gate if module.has_gate else module.act_fn  # type: ignore[assignment]  # noqa: SLF001
    return _fitting(activate, _candidates(module))


def find_activation(activation: Callable[[torch.Tensor], torch.Tensor]) -> Gate:
    """The gate ``activation(g) * u`` of experts outside the library's interface, by the same trial.

    Raises:
        UnsupportedModelError: the dialect has no such activation.
    """
    candidates = (Gate(activation=kind, gated=0) for kind in Activation)
    found = _fitting(activation, candidates)
    if found is None:
        raise UnsupportedModelError("its experts have an activation that the dialect has no name for")
    return Gate(activation=found.activation)


def _fitting(activate: Callable[[torch.Tensor], torch.Tensor], candidates: Iterable[Gate]) -> Gate | None:
    # Large values reach the limits, small ones decide between the activations.
    projected = torch.randn((32, 32), generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 2, 32)[:, None]
    with torch.no_grad():
        wanted = activate(projected.clone())
    for gate in candidates:
        result = _gated(projected, gate)
        if result.shape == wanted.shape and _same(result, wanted):
            return gate
    return None


def _same(result: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Row by row: what tells the activations apart is small beside the large rows."""
    return bool(((result - wanted).abs().amax(dim=1) <= _TOLERANCE * wanted.abs().amax(dim=1)).all())


def _candidates(module: torch.nn.Module) -> Iterator[Gate]:
    """The forms that the op describes, with the numbers that `module` holds."""
    if not module.has_gate:
        yield from (
            Gate(activation=kind, gated=0, alpha=alpha)
            for kind in Activation
            for alpha in (_ALPHAS if kind == Activation.SWISH else (1.0,))
        )
        return
    numbers = sorted({float(value) for value in vars(module).values() if type(value) in (int, float) and value > 0})
    for interleaved, offset, limit, kind in itertools.product((0, 1), (0.0, 1.0), (0.0, *numbers), Activation):
        for alpha in (*_ALPHAS, *numbers) if kind == Activation.SWISH else (1.0,):
            yield Gate(activation=kind, interleaved=interleaved, alpha=alpha, limit=limit, offset=offset)


def _gated(projected: torch.Tensor, gate: Gate) -> torch.Tensor:
    """What the op makes of `projected` ``[..., U]``."""
    if not gate.gated:
        return _activated(projected, gate)
    halves = (projected[..., 0::2], projected[..., 1::2]) if gate.interleaved else projected.chunk(2, dim=-1)
    opening, linear = halves
    if gate.limit:
        opening, linear = opening.clamp(max=gate.limit), linear.clamp(-gate.limit, gate.limit)
    return _activated(opening, gate) * (linear + gate.offset)


def _activated(opening: torch.Tensor, gate: Gate) -> torch.Tensor:
    if gate.activation == Activation.SWISH:
        return opening * torch.sigmoid(gate.alpha * opening)
    if gate.activation == Activation.GELU:
        return torch.nn.functional.gelu(opening)
    if gate.activation == Activation.GELU_TANH:
        return torch.nn.functional.gelu(opening, approximate="tanh")
    positive = torch.relu(opening)
    return positive if gate.activation == Activation.RELU else positive.square()


def _forward_with(gate: Gate) -> _Experts:
    def forward(
        self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        name = "gate_up_proj" if self.has_gate else "up_proj"
        up, down = getattr(self, name), self.down_proj
        if not self.is_transposed:
            up, down = up.transpose(1, 2), down.transpose(1, 2)
        biases = (getattr(self, f"{name}_bias"), self.down_proj_bias) if self.has_bias else None
        return ops.moe(hidden_states, top_k_index, top_k_weights, up, down, biases, gate)

    return forward
