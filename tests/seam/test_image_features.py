"""What Transformers does to packed image features by a mask is done to whole tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.image_features import FeatureForm, RowForEveryToken

#: The id of the image token stands three times; the last one was generated, as text.
MASK = torch.tensor([[False, True, True, False, True]])
IS_IMAGE = torch.tensor([[False, True, True, False, False]])
BESIDE_IMAGE = torch.tensor([[True, False, False, True, False]])


def test_features_go_where_images_are_and_nowhere_else() -> None:
    hidden, rows = torch.zeros(1, 5, 2), torch.arange(1.0, 11.0).reshape(5, 2)
    expected = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [5.0, 6.0], [0.0, 0.0], [0.0, 0.0]]])
    with RowForEveryToken(IS_IMAGE, BESIDE_IMAGE):
        scattered = hidden.masked_scatter(MASK.unsqueeze(2).expand_as(hidden), rows)
        added = hidden.clone()
        added[MASK, :] = added[MASK, :] + rows
    assert torch.equal(scattered, expected)
    assert torch.equal(added, expected)


def test_one_value_for_all_image_tokens_replaces_generated_ones_too() -> None:
    """Transformers puts another id in their places before it looks embeddings up."""
    ids = torch.tensor([[5, 9, 9, 6, 9]])
    with RowForEveryToken(IS_IMAGE, BESIDE_IMAGE):
        ids[MASK] = 0
    assert ids.tolist() == [[5, 0, 0, 6, 0]]


def test_a_vector_for_tokens_around_images_leaves_generated_ones_as_they_are() -> None:
    hidden = torch.zeros(1, 5, 2)
    around = torch.tensor([[True, False, False, False, True]])
    with RowForEveryToken(IS_IMAGE, BESIDE_IMAGE):
        hidden[around] = torch.tensor([7.0, 8.0])
    assert hidden.tolist() == [[[7.0, 8.0], *[[0.0, 0.0]] * 4]]


def test_the_form_of_features_survives_json_and_brings_back_what_was_packed() -> None:
    features, deeper = torch.randn(3, 4), torch.randn(3, 2)
    outputs = SimpleNamespace(pooler_output=[features[:1], features[1:]], deepstack_features=[[deeper]])
    form, rows = FeatureForm.of(outputs)
    assert rows.shape == (3, 6)
    again = FeatureForm.from_json(form.as_json()).output(rows)
    assert torch.equal(torch.cat(again.pooler_output), features)
    assert torch.equal(torch.cat(again.deepstack_features[0]), deeper)


def test_features_for_layers_by_number_and_fields_that_belong_to_no_token() -> None:
    first, second = torch.randn(3, 4), torch.randn(3, 4)
    outputs = SimpleNamespace(pooler_output=None, deepstack_features=[(2, [first]), (5, [second])], router_logits=None)
    form, rows = FeatureForm.of(outputs)
    again = FeatureForm.from_json(form.as_json()).output(rows)
    assert again.router_logits is None
    assert [layer for layer, _ in again.deepstack_features] == [2, 5]
    assert torch.equal(again.deepstack_features[1][1][0], second)
    with pytest.raises(UnsupportedModelError, match="reads visual_indicator_features of its encoder's output"):
        _ = again.visual_indicator_features
