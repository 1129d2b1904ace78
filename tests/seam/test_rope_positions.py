"""Positions of several axes, read off a model's own method."""

from __future__ import annotations

import pytest
import torch

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.images.rope_positions import RopeLayout
from qeff_framework.seam.rope_positions import rope_layout
from tests.image_models import VIDEO_TOKEN, built, qwen2_5_vl, qwen3_vl


def test_tokens_of_a_video_stand_side_by_side_or_in_a_group_for_each_time():
    """Qwen2.5-VL spreads the times of a video over the first axis; Qwen3-VL writes the time in front of each."""
    sizes = {"video_grid_thw": torch.tensor([[2, 4, 4]]), "second_per_grid_ts": torch.tensor([1.5])}

    whole = rope_layout(built(qwen2_5_vl)[0], VIDEO_TOKEN, sizes, 8, "video")
    apart = rope_layout(built(qwen3_vl)[0], VIDEO_TOKEN, sizes, 8, "video", groups=2)

    assert whole.at(1.5).offsets[0].tolist() == [0] * 4 + [6] * 4  # 1.5 s of 4 positions
    assert RopeLayout.from_json(whole.as_json()).at(0.7).offsets[0].tolist() == [0] * 4 + [2] * 4
    assert whole.offsets[1].tolist() == [0, 0, 1, 1] * 2
    assert apart.offsets.tolist() == [[0] * 4, [0, 0, 1, 1], [0, 1, 0, 1]]
    with pytest.raises(UnsupportedModelError, match="by a rule of its own"):
        rope_layout(built(qwen3_vl)[0], VIDEO_TOKEN, sizes, 8, "video")
