"""What a description of a call keeps of its arguments."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any, cast

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers.modeling_outputs import BaseModelOutput

from qeff_framework.diffusion.calls import call_of, described, rebuilt, tensor_specs
from qeff_framework.errors import UnsupportedModelError


def test_numbers_of_blocks_stay_numbers() -> None:
    # As keys of JSON they would be texts, and a transformer that looks for them would find none.
    samples: dict[int, Any] = {0: torch.zeros(1), 2: {"a": torch.ones(2), "flag": True}}
    taken: list[torch.Tensor] = []
    description = json.loads(json.dumps(described(samples, taken)))
    assert [path for path, _ in tensor_specs({"samples": description})] == ["samples.0", "samples.2.a"]
    back = rebuilt(description, iter(taken))
    assert back[0] is samples[0]
    assert back[2]["a"] is samples[2]["a"]
    assert back[2]["flag"] is True
    assert described(OrderedDict(a=1), []) == {"dict": {"a": {"value": 1}}}


@pytest.mark.parametrize(
    "odd", [{1: 0, "1": 0}, {(1, 2): 0}, {None: 0}, BaseModelOutput(hidden_states=cast("Any", (object(),)))]
)
def test_an_argument_that_no_description_holds_whole_is_refused(odd: Any) -> None:
    def forward(states: Any) -> None:
        del states

    with pytest.raises(UnsupportedModelError, match=r"net\.forward\(states=...\) is a \w+, which no graph"):
        call_of("net", "forward", forward, [odd], {})


def test_a_distribution_without_noise_stays_one() -> None:
    given = DiagonalGaussianDistribution(torch.randn(1, 4, 2, 2), deterministic=True)
    taken: list[torch.Tensor] = []
    description = described(given, taken)
    assert description is not None
    assert torch.equal(rebuilt(description, iter(taken)).sample(), given.mean)
