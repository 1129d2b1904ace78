"""Figures of a comparison against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qeff_framework.compare.figures import Figures, LayerError, entering_layer
from qeff_framework.compare.passages import BUILT_IN_PROMPTS, BUILT_IN_TEXT, windows


@pytest.fixture
def logits():
    random = np.random.default_rng(0)
    reference = random.normal(size=(6, 11)).astype(np.float32) * 3
    return reference, (reference + random.normal(size=(6, 11)) * 2.5).astype(np.float32)


def test_figures_are_those_of_torch(logits):
    reference, program = logits
    following = [3, 1, 10, 0, 5, 5]
    left, right = (torch.log_softmax(torch.tensor(each, dtype=torch.float64), -1) for each in logits)
    divergences = torch.nn.functional.kl_div(right, left, log_target=True, reduction="none").sum(-1)

    figures = Figures()
    same = np.concatenate(
        [figures.add(reference[part], program[part], following[part]) for part in (slice(0, 4), slice(4, 6))]
    )

    np.testing.assert_allclose(figures.divergences, divergences, rtol=1e-9)
    assert figures.mean_kl == pytest.approx(float(divergences.mean()))
    assert figures.max_kl == pytest.approx(float(divergences.max()))
    assert figures.max_error == pytest.approx(np.abs(reference - program).max())
    assert figures.mean_error == pytest.approx(np.abs(reference - program).mean(), rel=1e-6)
    rows = torch.arange(6)
    assert figures.reference_perplexity == pytest.approx(float(torch.exp(-left[rows, following].mean())))
    assert figures.program_perplexity == pytest.approx(float(torch.exp(-right[rows, following].mean())))
    assert same.tolist() == (reference.argmax(-1) == program.argmax(-1)).tolist()
    assert 0 < figures.agreement < 1
    assert figures.agreeing == same.sum()


def test_what_is_no_number_is_infinitely_wrong(logits):
    reference, _ = logits
    broken = reference.copy()
    broken[2, 4] = np.nan
    figures = Figures()

    same = figures.add(reference, broken, [0] * 6)

    assert same.tolist() == [True, True, False, True, True, True]
    assert figures.max_error == figures.mean_kl == figures.program_perplexity == np.inf
    assert np.isfinite(figures.reference_perplexity)


def test_a_reference_that_is_no_number_is_no_agreement(logits):
    reference, program = logits
    reference[2, 4] = np.nan
    figures = Figures()

    same = figures.add(reference, program, [0] * 6)

    assert not same[2]
    assert figures.max_error == figures.mean_kl == figures.reference_perplexity == np.inf
    assert np.isfinite(figures.program_perplexity)


def test_tokens_that_both_exclude_have_no_error(logits):
    reference, _ = logits
    reference[:, 7] = -np.inf
    figures = Figures()

    figures.add(reference, reference, [0] * 6)

    assert (figures.max_error, figures.mean_kl, figures.agreement) == (0, 0, 1)


def test_the_error_enters_where_its_square_grows_most():
    layers = [LayerError(layer=number) for number in range(4)]
    for layer, error in zip(layers, (0.01, 0.02, 0.3, 0.31), strict=True):
        layer.add("keys", np.ones((2, 3, 4), np.float32), np.full((2, 3, 4), 1 + error, np.float32))

    assert layers[2]["keys"] == pytest.approx(0.3, rel=1e-5)
    overflown = [LayerError(layer=number) for number in range(3)]
    for layer, content in zip(overflown, (1.1, np.nan, np.inf), strict=True):
        layer.add("values", np.ones((1, 2, 3), np.float32), np.full((1, 2, 3), content, np.float32))
    assert overflown[1].largest == np.inf
    assert entering_layer(overflown) is overflown[1]
    assert layers[2]["values"] is None
    assert entering_layer(layers) is layers[2]
    assert entering_layer([]) is None


def test_windows_predict_each_token_once():
    tokens = list(range(100, 125))

    for start in ([], [1]):
        found = list(windows(tokens, 8, start))
        predicted = [token for passage in found for token in passage.tokens[passage.scored :]]
        assert all(len(passage.tokens) <= 8 and passage.scored >= 1 for passage in found)
        # Without a start token nothing predicts the first token of a window.
        assert predicted == [token for number, token in enumerate(tokens) if start or number % 8]
    assert len(set(BUILT_IN_PROMPTS)) == 8
    assert len(BUILT_IN_TEXT.split()) > 200
