from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config, PhimoeConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export.last_logits import cache_argument
from qeff_framework.seam.mask_plan import MaskPlan
from qeff_framework.seam.rereading import reread_lengths
from qeff_framework.seam.rotary import LengthRule, find_length_dependent_rotary, length_limits, replace_rotary
from qeff_framework.seam.scope import Scope, forward_scope
from qeff_framework.seam.weightless import weightless_copy
from tests.tiny_models import tiny_causal_lm

SIZES = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 3.0 * i for i in range(8)],
    "original_max_position_embeddings": 16,
}
LONG = {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


class Model(torch.nn.Module):
    def __init__(self, rotary: torch.nn.Module) -> None:
        super().__init__()
        self.rotary = rotary


def llama(**rope: object) -> Model:
    config = LlamaConfig(**SIZES, **IDS, max_position_embeddings=24, rope_parameters={"rope_theta": 10000.0, **rope})
    return Model(LlamaRotaryEmbedding(config))


def phi3() -> Model:
    return Model(Phi3RotaryEmbedding(Phi3Config(**SIZES, **IDS, **LONG, rope_parameters={**LONGROPE})))


def phimoe() -> Model:
    # Its own code branches on the length as well: it scales sines and cosines by one of two factors.
    rope = {**LONGROPE, "short_mscale": 1.1, "long_mscale": 1.3}
    return Model(PhimoeRotaryEmbedding(PhimoeConfig(**SIZES, **IDS, **LONG, rope_parameters=rope)))


def gemma3() -> Model:
    config = Gemma3TextConfig(
        **SIZES,
        **IDS,
        max_position_embeddings=24,
        layer_types=["full_attention", "sliding_attention"],
        rope_parameters={"full_attention": {**DYNAMIC}, "sliding_attention": {**LONGROPE}},
    )
    return Model(Gemma3RotaryEmbedding(config))


LENGTH_DEPENDENT = {
    "phi3": (phi3, {None: LengthRule(limit=16, grows=False)}),
    "phimoe": (phimoe, {None: LengthRule(limit=16, grows=False)}),
    "dynamic": (lambda: llama(**DYNAMIC), {None: LengthRule(limit=24, grows=True)}),
    "gemma3": (
        gemma3,
        {
            "full_attention": LengthRule(limit=24, grows=True),
            "sliding_attention": LengthRule(limit=16, grows=False),
        },
    ),
}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "proportional", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_frequencies_that_never_change_are_left_alone(rope):
    assert find_length_dependent_rotary(llama(**rope)) == ()


def used(name):
    """A module that has read a text beyond every limit; the library keeps the frequencies of that text."""
    make, rules = LENGTH_DEPENDENT[name]
    model = make()
    for layer_type in rules:
        arguments = {} if layer_type is None else {"layer_type": layer_type}
        model.rotary(torch.zeros((1, 61, 1)), position_ids=torch.arange(61)[None], **arguments)
    return model


@pytest.mark.parametrize("name", LENGTH_DEPENDENT)
def test_the_lengths_at_which_frequencies_change_are_found(name):
    make, rules = LENGTH_DEPENDENT[name]
    (match,) = find_length_dependent_rotary(make())
    assert find_length_dependent_rotary(used(name)) == (match,)
    assert (match.name, match.rules) == ("rotary", rules)
    assert length_limits([match]) == tuple(sorted({rule.limit for rule in rules.values()}))


@pytest.fixture(scope="module")
def replaced():
    """By name: a module as Transformers has it, and the same after it was used and replaced."""
    pairs = {}
    for name, (make, _) in LENGTH_DEPENDENT.items():
        model = weightless_copy(used(name))
        replace_rotary(model, find_length_dependent_rotary(make()))
        pairs[name] = make, model.rotary
    return pairs


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(LENGTH_DEPENDENT)),
    rows=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 90)), min_size=1, max_size=4),
)
def test_every_token_is_rotated_as_in_its_whole_text(replaced, name, rows):
    """A row is a position and the length of the text that it stands in. Only the length decides, whatever the other rows hold."""
    make, rotary = replaced[name]
    positions = torch.tensor([[position, min(position + 1, position + length - 1)] for position, length in rows])
    lengths = torch.tensor([[position + length] * 2 for position, length in rows])
    for layer_type in LENGTH_DEPENDENT[name][1]:
        arguments = {} if layer_type is None else {"layer_type": layer_type}
        with forward_scope(Scope(masks=MaskPlan(), token_lengths=lengths)):
            results = rotary(torch.zeros(len(rows), 2, 1), positions, **arguments)
        for row in range(len(rows)):
            # Transformers sees the last token of the text as well.
            whole = torch.cat([positions[row], lengths[row, :1] - 1])[None]
            alone = make().rotary(torch.zeros(1, 3, 1), whole, **arguments)
            for got, wanted in zip(results, alone, strict=True):
                assert torch.equal(got[row], wanted[0, :2])


def test_the_traced_module_computes_what_the_module_does(replaced):
    """Of each token of a graph: sizes are symbols there, and no branch may depend on them."""

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rotary = replaced["gemma3"][1]

        def forward(self, positions: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
            token_lengths = torch.maximum(lengths, positions + 1)
            x = positions.unsqueeze(-1).float()
            with forward_scope(Scope(masks=MaskPlan(), token_lengths=token_lengths)):
                return [
                    leaf
                    for layer_type in ("full_attention", "sliding_attention")
                    for leaf in self.rotary(x, positions, layer_type=layer_type)
                ]

    rows, tokens = torch.export.Dim("rows", min=1), torch.export.Dim("tokens", min=1)
    example = (torch.arange(3).expand(2, -1).contiguous(), torch.tensor([[3], [30]]))
    axes = ({0: rows, 1: tokens}, {0: rows})
    program = torch.export.export(Graph(), example, dynamic_shapes=axes, strict=False)
    step = (torch.tensor([[15, 16, 17, 18], [0, 1, 2, 3], [23, 24, 25, 26]]), torch.tensor([[17], [60], [0]]))
    for got, wanted in zip(program.module()(*step), Graph()(*step), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_a_form_that_is_not_known_is_refused_in_words():
    """Its frequencies belong to three axes of positions, and grow."""
    config = Qwen3_5TextConfig(**SIZES, **IDS, max_position_embeddings=24)
    config.rope_parameters = {**config.rope_parameters, **DYNAMIC}
    model = Model(Qwen3_5TextRotaryEmbedding(config))
    with pytest.raises(
        UnsupportedModelError,
        match="rotary frequencies depend on the length of the text .rope_type 'dynamic' in rotary",
    ):
        replace_rotary(weightless_copy(model), find_length_dependent_rotary(model))


@pytest.mark.parametrize("theta", [0.0, -5.0, float("nan")])
def test_frequencies_that_are_no_numbers_are_refused(theta):
    with pytest.raises(UnsupportedModelError, match="gives no finite numbers.*correct rope_theta"):
        find_length_dependent_rotary(llama(rope_type="default", rope_theta=theta))


@pytest.mark.parametrize(("model_type", "expected"), [("phi3", (17,)), ("llama", ())])
def test_transformers_says_whether_it_reads_a_grown_text_anew(model_type, expected):
    model, _ = tiny_causal_lm(model_type, **(LONG if model_type == "phi3" else {}))
    assert reread_lengths(model, [16], cache_argument(model)) == expected
