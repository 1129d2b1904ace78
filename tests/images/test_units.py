"""The tensors of a processor are taken apart into what an image encoder reads at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qeff_framework.errors import InputError
from qeff_framework.images.units import image_units, pixel_names


def test_patches_belong_to_the_image_whose_grid_counts_them() -> None:
    patches = torch.arange(10.0).reshape(10, 1)
    first, second = image_units({"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 3]])})
    assert first["pixel_values"].ravel().tolist() == [0, 1, 2, 3]
    assert second["pixel_values"].ravel().tolist() == [4, 5, 6, 7, 8, 9]
    assert second["image_grid_thw"].tolist() == [[1, 2, 3]]
    with pytest.raises(InputError, match="9 patches, and image_grid_thw tells of 10"):
        image_units({"pixel_values": patches[:9], "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 3]])})


def test_tiles_that_only_fill_up_a_prompt_are_left_out() -> None:
    tiles = np.ones((2, 2, 3, 4, 4))
    tiles[0, 1] = 0
    mask = np.arange(2 * 2 * 4 * 4).reshape(2, 2, 4, 4)
    units = image_units({"pixel_values": tiles, "pixel_attention_mask": mask})
    assert [unit["pixel_values"].shape for unit in units] == [(1, 1, 3, 4, 4)] * 3
    assert [int(unit["pixel_attention_mask"].min()) for unit in units] == [0, 32, 48]


def test_tokens_that_name_their_patches_name_those_of_their_own_image() -> None:
    """Two images of one and of two crops with 4 patches each; -1 fills up."""
    pooled = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [8, -1]])
    tensors = {
        "pixel_values": np.arange(3 * 4).reshape(3, 4, 1),
        "image_token_pooling": pooled,
        "image_grids": np.array([[1, 2, 0, 0], [1, 2, 1, 1]]),
    }
    first, second = image_units(tensors)
    assert first["image_token_pooling"].tolist() == [[0, 1], [2, 3]]
    assert second["image_token_pooling"].tolist() == [[0, 1], [2, 3], [4, -1]]
    assert [unit["pixel_values"].ravel().tolist() for unit in (first, second)] == [[0, 1, 2, 3], [*range(4, 12)]]
    with pytest.raises(InputError, match="has 4 tokens, and image_grids tells of 5"):
        image_units({**tensors, "image_token_pooling": pooled[:4]})


def test_other_tensors_have_a_row_for_each_image() -> None:
    units = image_units({"pixel_values": np.zeros((2, 3, 4, 4)), "image_sizes": [[4, 4], [2, 4]]})
    assert [unit["image_sizes"].tolist() for unit in units] == [[[4, 4]], [[2, 4]]]
    (unit,) = image_units({"pixel_values": torch.full((1, 3, 4, 4), 0.5, dtype=torch.bfloat16)})
    assert unit["pixel_values"].dtype == np.float32
    for odd in ("a", 1.0, np.zeros((1, 2), dtype=complex)):
        with pytest.raises(InputError, match="pixel_values must hold real numbers for each image, and is .*processor"):
            image_units({"pixel_values": odd})
    with pytest.raises(InputError, match="pixel_values 2, image_sizes 1"):
        image_units({"pixel_values": np.zeros((2, 3, 4, 4)), "image_sizes": [[4, 4]]})


def test_patches_along_the_last_axis_are_split_by_their_numbers() -> None:
    pixels = np.arange(2 * 3 * 2 * 20.0).reshape(1, 6, 2, 20)  # patches of 2 pixels
    first, second = image_units({"pixel_values": pixels, "target_sizes": [[2, 2], [2, 3]]})
    np.testing.assert_array_equal(first["pixel_values"], pixels[..., :8])
    np.testing.assert_array_equal(second["pixel_values"], pixels[..., 8:])
    assert second["target_sizes"].tolist() == [[2, 3]]


def test_an_image_takes_its_tiles_along() -> None:
    tiles = np.arange(3.0).reshape(3, 1, 1, 1)
    images = {"pixel_values": np.zeros((2, 1, 2, 2)), "pixel_values_local": tiles, "num_local_patches": [1, 2]}
    first, second = image_units(images)
    assert first["pixel_values_local"].ravel().tolist() == [0]
    assert second["pixel_values_local"].ravel().tolist() == [1, 2]
    assert pixel_names(second) == ("pixel_values", "pixel_values_local")
