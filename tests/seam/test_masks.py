"""Masks are recognised by what they compute."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, masking_utils

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.mask_plan import ClosedForm, MaskPlan, candidate_sizes, recognise

NO_PADDING = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("function", "form"),
    [
        (masking_utils.causal_mask_function, ClosedForm()),
        (masking_utils.bidirectional_mask_function, ClosedForm(causal=False)),
        (masking_utils.sliding_window_causal_mask_function(4096), ClosedForm(window=4096)),
        (masking_utils.sliding_window_causal_mask_function(3), ClosedForm(window=3)),
        (masking_utils.chunked_causal_mask_function(8192, NO_PADDING), ClosedForm(chunk=8192)),
    ],
)
def test_the_library_s_masks_have_closed_forms(function, form):
    assert recognise(function, sizes=(3, 4096, 8192)) == form


@pytest.mark.parametrize("window", [4095, 4098])
def test_a_window_that_is_no_candidate_is_not_recognised(window):
    """4097 would be: a window that does not count the query itself."""
    assert recognise(masking_utils.sliding_window_causal_mask_function(window), sizes=(4096,)) is None


def test_a_prefix_mask_is_not_recognised():
    def prefix(batch, head, query, key):
        return (key <= query) | (key < 3)

    assert recognise(prefix, sizes=()) is None


def test_masks_that_look_into_tensors_without_data_are_not_recognised():
    with FakeTensorMode(allow_non_fake_inputs=True):
        padding = torch.zeros(1, dtype=torch.int64)

    assert recognise(masking_utils.chunked_causal_mask_function(4, padding), sizes=(4,)) is None


def test_candidates_come_from_the_call_and_the_config():
    config = LlamaConfig()
    config.attention_window = [128, 256]
    config.chunk_size_feed_forward = 0
    config.use_sliding_window = True

    assert candidate_sizes(config, 77) == (77, 128, 256)
    assert candidate_sizes(None, None) == ()


def test_a_plan_answers_later_passes_from_its_record():
    plan = MaskPlan()
    plan.form_of_call(masking_utils.causal_mask_function, None, None)
    plan.form_of_call(masking_utils.sliding_window_causal_mask_function(4), None, 4)
    plan.finish_recording()
    plan.rewind()

    answers = [plan.form_of_call(lambda *indices: pytest.fail("not evaluated again"), None, None) for _ in range(2)]

    assert answers == [ClosedForm(), ClosedForm(window=4)]


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_without_tokens_is_refused(window):
    """Transformers computes something where a whole row is masked, and its generate fails."""
    with pytest.raises(UnsupportedModelError, match=f"a window of {window} tokens.*write null"):
        MaskPlan().form_of_call(masking_utils.sliding_window_causal_mask_function(window), None, window)
    # Qwen2-MoE asks for the mask although none of its layers has a window.
    without = LlamaConfig(layer_types=["full_attention"], num_hidden_layers=1)
    MaskPlan().form_of_call(masking_utils.sliding_window_causal_mask_function(window), without, window)
