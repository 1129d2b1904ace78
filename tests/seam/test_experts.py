"""The gates of experts, found by trying."""

from __future__ import annotations

import pytest
import torch

from qeff_framework.dialect.names import Activation, Gate
from qeff_framework.seam.experts import find_gate, replace_experts


class Experts(torch.nn.Module):
    """As Transformers' interface for experts describes them."""

    has_gate = True

    def __init__(self, act_fn=torch.nn.functional.silu, **numbers: float) -> None:
        super().__init__()
        self.act_fn = act_fn
        vars(self).update(numbers)

    def _apply_gate(self, projected: torch.Tensor) -> torch.Tensor:
        gate, up = projected.chunk(2, dim=-1)
        return self.act_fn(gate) * up


class Clamped(Experts):
    """Of the form that GPT-OSS has."""

    def _apply_gate(self, projected: torch.Tensor) -> torch.Tensor:
        gate, up = projected[..., ::2].clamp(max=self.limit), projected[..., 1::2].clamp(-self.limit, self.limit)
        return (up + 1) * gate * torch.sigmoid(gate * self.steepness)


class ClampedLate(Experts):
    """The activated gate is limited: nothing that the op describes."""

    def _apply_gate(self, projected: torch.Tensor) -> torch.Tensor:
        gate, up = projected.chunk(2, dim=-1)
        return self.act_fn(gate).clamp(max=self.limit) * up.clamp(-self.limit, self.limit)


class Ungated(Experts):
    """One product, then the activation."""

    has_gate = False


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


@pytest.mark.parametrize(
    ("experts", "expected"),
    [
        (Experts(), Gate()),
        # 128 is a size, as modules hold them: it must not be taken for a limit.
        (Experts(num_experts=128), Gate()),
        (Experts(torch.nn.functional.gelu), Gate(activation=Activation.GELU)),
        (Experts(gelu_tanh), Gate(activation=Activation.GELU_TANH)),
        (Experts(torch.relu), Gate(activation=Activation.RELU)),
        (Clamped(limit=7.0, steepness=1.702), Gate(alpha=1.702, limit=7.0, offset=1.0, interleaved=1)),
        (Clamped(limit=3, steepness=0.5), Gate(alpha=0.5, limit=3.0, offset=1.0, interleaved=1)),
        (Ungated(lambda x: torch.relu(x).square()), Gate(activation=Activation.RELU_SQUARED, gated=0)),
        (Ungated(), Gate(gated=0)),
        (ClampedLate(limit=7.0), None),
        (Experts(torch.nn.functional.mish), None),
    ],
)
def test_gate(experts, expected):
    assert find_gate(experts) == expected


class Loop(torch.nn.Module):
    """Experts in the library's layout, by a loop of their own over those that are chosen."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.gate_up_proj = torch.nn.Parameter(torch.randn(4, 12, 8))
        self.down_proj = torch.nn.Parameter(torch.randn(4, 8, 6))
        self.factor = factor

    def _apply_gate(self, projected: torch.Tensor) -> torch.Tensor:
        gate, up = projected.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(hidden)
        for expert in chosen.unique():
            token, place = torch.where(chosen == expert)
            inner = self._apply_gate(hidden[token] @ self.gate_up_proj[expert].T) @ self.down_proj[expert].T
            result.index_add_(0, token, inner * weights[token, place, None] * self.factor)
        return result


class Model(torch.nn.Module):
    def __init__(self, experts: torch.nn.Module) -> None:
        super().__init__()
        self.experts = experts

    def set_experts_implementation(self, name: str) -> None:
        """As models of Transformers have it."""


def test_experts_in_the_librarys_layout_need_not_be_registered_with_it():
    """Their loop cannot be traced. One that does something else stays as it is."""
    for experts, joined in ((Loop(), True), (Loop(factor=0.5), False)):
        replace_experts(Model(experts))  # type: ignore[arg-type]
        assert ("forward" in vars(experts)) == joined
        assert hasattr(experts, "has_gate") == joined
