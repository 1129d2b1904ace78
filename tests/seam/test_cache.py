"""The cache of a program, as code of models sees it."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, STATIC_LAYER_TYPE_MAPPING

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.cache import SeamCache, SeamLayer
from qeff_framework.seam.states import StateId


def test_a_model_that_looks_for_cache_layers_of_its_own_is_refused() -> None:
    """It would find none, and take another mask than its own in silence."""
    cache = SeamCache(4, {StateId(layer=0, role="key"): torch.zeros(1, 1, 4, 2)})
    with pytest.raises(UnsupportedModelError, match="cache layers of a kind of its own"):
        next((layer for layer in cache.layers if layer._layer_type == "reference_sliding_attention"), None)
    assert SeamLayer not in {*DYNAMIC_LAYER_TYPE_MAPPING.values(), *STATIC_LAYER_TYPE_MAPPING.values()}


def test_a_text_has_begun_unless_its_steps_read_blocks() -> None:
    """Some models let tokens see each other in the first step alone; each step of a program may be that."""
    states = {StateId(layer=0, role="key"): torch.zeros(1, 1, 4, 2)}
    begun = [SeamCache(4, states).is_initialized, SeamCache(4, states, reads_blocks=True).is_initialized]
    assert begun == [True, False]
    assert not SeamCache(4).is_initialized
