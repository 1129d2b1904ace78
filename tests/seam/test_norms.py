"""RMS norms are found by what they compute, never by name."""

from __future__ import annotations

import pytest
import torch

from qeff_framework.seam.norms import effective_weight, find_rms_norms
from tests.tiny_models import tiny_causal_lm


class Norm(torch.nn.Module):
    """Variations of a norm over one weight."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8))
        self.eps = 1e-4
        self.variant = variant

    def forward(self, hidden):
        if self.variant == "centred":
            hidden = hidden - hidden.mean(-1, keepdim=True)
        if self.variant == "halves":
            hidden = hidden.unflatten(-1, (2, 4))
        mean_square = hidden.square().mean(-1, keepdim=True)
        if self.variant == "epsilon outside":
            normed = hidden / (mean_square.sqrt() + self.eps)
        else:
            normed = hidden * torch.rsqrt(mean_square + self.eps)
        normed = normed.flatten(-2) if self.variant == "halves" else normed
        return normed * (1 + self.weight) if self.variant == "offset" else normed * self.weight


class GatedNorm(Norm):
    def forward(self, hidden, gate=None):
        normed = super().forward(hidden)
        return normed if gate is None else normed * gate


def only_match(norm: torch.nn.Module):
    matches = find_rms_norms(torch.nn.Sequential(norm))
    assert len(matches) == 1
    return matches[0]


@pytest.mark.parametrize(("variant", "offset"), [("plain", 0.0), ("offset", 1.0)])
def test_both_ways_of_storing_the_weight(variant, offset):
    norm = Norm(variant)
    hidden = torch.randn(5, 8)

    match = only_match(norm)

    assert (match.name, match.epsilon, match.offset) == ("0", 1e-4, offset)
    weight = effective_weight(norm.weight, match)
    torch.testing.assert_close(
        hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + match.epsilon) * weight, norm(hidden)
    )


def test_torch_s_own_norm_with_its_default_epsilon():
    assert only_match(torch.nn.RMSNorm(8)).epsilon == torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    "module",
    [
        Norm("centred"),
        Norm("halves"),
        Norm("epsilon outside"),
        GatedNorm("plain"),
        torch.nn.LayerNorm(8, bias=False),
        torch.nn.LayerNorm(8),
        torch.nn.PReLU(8),
        torch.nn.Linear(8, 8, bias=False),
    ],
    ids=lambda module: getattr(module, "variant", "") or type(module).__name__,
)
def test_what_computes_something_else_is_left_alone(module):
    assert find_rms_norms(torch.nn.Sequential(module)) == ()


def test_a_weight_that_two_modules_read_is_left_alone():
    first, second = Norm("offset"), Norm("plain")
    second.weight = first.weight

    assert find_rms_norms(torch.nn.Sequential(first, second)) == ()


@pytest.mark.parametrize(("model_type", "count", "offset"), [("qwen3", 9, 0.0), ("gemma3_text", 19, 1.0)])
def test_every_norm_of_a_model_is_found(model_type, count, offset):
    model, _ = tiny_causal_lm(model_type)

    matches = find_rms_norms(model)

    assert len(matches) == count
    assert {match.offset for match in matches} == {offset}
