"""Videos for a processor of Transformers: it chooses frames by its own rule, and reads them from files that are decoded here.

The library decodes files itself, with one of several packages, some of which it is about to drop. What they are asked for goes
through one method of a video processor, which is answered here; everything else is the library's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from qeff_framework.errors import InputError, OptionError
from qeff_framework.runtime.video_files import VideoFile, read_video


def opened_videos(given: Sequence[Any]) -> list[Any]:
    """Files for paths; frames as they are: an array ``[T, H, W, 3]``, or a list of images."""
    return [read_video(str(each)) if isinstance(each, str) or hasattr(each, "__fspath__") else each for each in given]


def check_torchvision() -> None:
    """Raises `OptionError` where video processors cannot compute."""
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise OptionError(
            "preparing videos needs torchvision, which is not installed; pip install 'qeff-framework[video]'"
        ) from error
    except RuntimeError as error:  # its compiled part was made for another torch
        raise OptionError(
            f"preparing videos needs torchvision, and the one that is installed does not fit the installed torch: {error}; "
            "install both from one source, in versions that belong together"
        ) from error


def video_options(processor: Any, videos: Sequence[Any], frames: int | None) -> tuple[Any, dict[str, Any]]:
    """A processor that reads these videos, and what it is called with beside text and images.

    Args:
        processor: the checkpoint's. It stays as it is.
        videos: files, and frames as they are; see `opened_videos`.
        frames: how many are chosen of each file; `None` leaves that to the processor.

    Raises:
        InputError: the processor is not made for videos.
        OptionError: a library is missing.
    """
    if getattr(processor, "video_processor", None) is None:
        raise InputError(
            f"{type(processor).__name__}, the processor of the checkpoint, takes no videos; give images instead"
        )
    check_torchvision()
    names = [f"video {number}" for number in range(len(videos))]
    reader, part = copy.copy(processor), copy.copy(processor.video_processor)
    own = type(part)
    by_name = dict(zip(names, videos, strict=True))

    def fetch_videos(self: Any, asked: Sequence[str], sample_indices_fn: Any = None) -> Any:  # noqa: ARG001 - a method
        read = [_read(by_name[name], sample_indices_fn) for name in asked]
        return [pictures for pictures, _ in read], [metadata for _, metadata in read]

    part.__class__ = type(own.__name__, (own,), {"fetch_videos": fetch_videos})
    reader.video_processor = part
    options: dict[str, Any] = {"videos": names}
    if frames is not None and any(isinstance(each, VideoFile) for each in videos):
        # Rates of frames and their number exclude each other.
        options |= {"num_frames": frames, "fps": None, "do_sample_frames": True}
    return reader, options


def _read(video: Any, sample_indices_fn: Any) -> tuple[Any, Any]:
    import numpy as np
    from transformers.video_utils import VideoMetadata

    if not isinstance(video, VideoFile):
        pictures = video if hasattr(video, "shape") else np.stack([np.asarray(each) for each in video])
        count, height, width = pictures.shape[:3]
        metadata = VideoMetadata(total_num_frames=count, height=height, width=width, frames_indices=list(range(count)))
        return pictures, metadata
    metadata = VideoMetadata(
        total_num_frames=video.total_frames,
        fps=video.fps,
        duration=video.seconds,
        height=video.height,
        width=video.width,
        video_backend="pyav",
    )
    if sample_indices_fn is None:
        chosen = list(range(video.total_frames))
    else:
        chosen = [int(place) for place in sample_indices_fn(metadata=metadata)]
    metadata.frames_indices = chosen
    return video.frames(chosen), metadata


def chosen_length(videos: Sequence[Any], lengths: Sequence[int]) -> int | None:
    """How many frames are chosen of the files among `videos`: the most of `lengths` that the shortest one has.

    Raises `InputError` where it has fewer.
    """
    files = [each for each in videos if isinstance(each, VideoFile)]
    if not files or not lengths:
        return None
    shortest = min(files, key=lambda each: each.total_frames)
    fitting = [length for length in lengths if length <= shortest.total_frames]
    if not fitting:
        raise InputError(
            f"the video {shortest.file} has {shortest.total_frames} frames, and the programs read {min(lengths)} or more; give a "
            f"longer one, or compile with num_frames={shortest.total_frames} or less"
        )
    return max(fitting)


def of_each_prompt(videos: Any, prompts: int) -> list[list[Any]]:
    """The videos of each prompt, from one, or a list of videos or of lists, or `None`."""
    if videos is None:
        return [[] for _ in range(prompts)]
    given = list(videos) if isinstance(videos, (list, tuple)) else [videos]
    if len(given) != prompts:
        raise InputError(
            f"{prompts} prompts and videos for {len(given)} were given; give a video, a list of them, or None for each prompt"
        )
    return [
        [] if each is None else list(each) if isinstance(each, (list, tuple)) and not _are_frames(each) else [each]
        for each in given
    ]


def _are_frames(given: Sequence[Any]) -> bool:
    """Whether a list holds the pictures of one video, and not several videos."""
    return bool(given) and all(getattr(each, "ndim", 3 if hasattr(each, "convert") else 0) == 3 for each in given)


def tokens_of(processor: Any, text: str, counts: Mapping[str, int]) -> str:
    """The prompt with the processor's tokens for images and videos in front, unless it holds them."""
    front = ""
    for kind, count in counts.items():
        token = getattr(processor, f"{kind}_token", None)
        if count and token is not None and token not in text:
            front += token * count
    return front + text
