"""Finds mixtures of experts by their library interface and routes them through the dialect op ``MoE``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

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

_Experts = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def replace_experts(model: PreTrainedModel) -> None:
    """Lets the experts of `model` emit the dialect op; where it does not describe their activation, they run as plain ops."""
    model.set_experts_implementation(_PLAIN_IMPLEMENTATION)
    for module in model.modules():
        if not all(hasattr(module, name) for name in _INTERFACE) or module.has_post_expert_norm:
            continue
        gate = find_gate(module)
        if gate is not None:
            module.forward = MethodType(_forward_with(gate), module)


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
