"""Short clips for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def written_clip(path: Path, *, frames: int, rate: int = 8, height: int = 32, width: int = 48, seed: int = 0) -> Path:
    """A clip of noise around a shade that changes from frame to frame; its name tells the container."""
    import av

    noise = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            picture = noise.integers(0, 60, (height, width, 3)) + 190 * number // frames
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
