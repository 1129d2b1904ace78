"""Files of videos: which frames there are, and the pictures of those that a processor chooses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import InputError, OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_EXTRA = "pip install 'qeff-framework[video]'"
#: What a file begins with, at which byte, and the container that this is. Others are refused: formats of playlists name further
#: files and addresses, which a decoder would open.
_CONTAINERS = ((4, b"ftyp", "mp4"), (0, b"\x1aE\xdf\xa3", "matroska"), (8, b"AVI ", "avi"))
_FORMATS = "MP4, MOV, WebM, MKV or AVI"
#: Pixels of all frames of the videos that a stranger sends: some 1000 frames of 1920 x 1080.
MOST_PIXELS = 2**31
#: Pixels of a frame of any video: the decoder stops at more, also where a file tells of fewer.
_MOST_OF_FRAME = 2**25


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """A file whose frames are counted and not yet decoded."""

    file: str
    #: What is in it, for a file that is not on the disk.
    content: bytes | None
    total_frames: int
    #: Frames per second, on average.
    fps: float
    #: Pixels of a frame, upright.
    height: int
    width: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.total_frames / self.fps

    def frames(self, places: Sequence[int]) -> NDArray[np.uint8]:
        """The frames at these places, ``[T, H, W, 3]`` in RGB, turned as the file says (videos of telephones).

        Raises:
            InputError: the file is damaged.
        """
        import numpy as np

        wanted, last = set(places), max(places)
        found: dict[int, Any] = {}
        with _opened(self.file, self.content) as container:
            for place, frame in enumerate(container.decode(video=0)):
                if place in wanted and not frame.is_corrupt:
                    found[place] = _upright(frame)
                if place >= last:
                    break
        if len(found) != len(wanted):
            raise InputError(
                f"the video {self.file} is damaged: it has {self.total_frames} frames, and number "
                f"{min(wanted - found.keys()) + 1} cannot be decoded; record or convert it again"
            )
        if any(picture.shape[:2] != (self.height, self.width) for picture in found.values()):
            raise InputError(f"the frames of the video {self.file} have several sizes; convert it to one")
        return np.stack([found[place] for place in places])


def read_video(file: str, content: bytes | None = None, *, most_pixels: int | None = None) -> VideoFile:
    """Opens a video and counts its frames.

    Args:
        file: its path; with `content` its name, for messages.
        content: what is in it, for a file that is not on the disk.
        most_pixels: of all frames together; more are refused before they are decoded.

    Raises:
        OptionError: the library for that is not installed.
        InputError: the file is missing, empty, too large, damaged, cut off or of another format, or holds no frames.
    """
    with _opened(file, content) as container:
        stream = container.streams.video[0]
        fps = stream.average_rate or stream.guessed_rate
        if not fps:
            raise InputError(f"the video {file} does not tell how many frames it shows in a second; convert it to MP4")
        size = stream.width * stream.height
        if most_pixels is not None and stream.frames * size > most_pixels:
            raise InputError(_too_large(file, stream.frames, stream, most_pixels))
        total = 0
        for packet in container.demux(stream):
            total += packet.size > 0
            if most_pixels is not None and total * size > most_pixels:
                raise InputError(_too_large(file, total, stream, most_pixels))
        if not total:
            raise InputError(f"the video {file} holds no frames; record it again")
        if total < stream.frames:
            raise InputError(
                f"the video {file} is cut off: it tells of {stream.frames} frames and holds {total}; copy or record it again"
            )
        container.seek(0)
        first = next(iter(container.decode(video=0)), None)
        if first is None:
            raise InputError(f"the video {file} is damaged: none of its frames can be decoded; record it again")
        height, width = _upright(first).shape[:2]
        return VideoFile(
            file=file, content=content, total_frames=total, fps=float(fps), height=int(height), width=int(width)
        )


def _too_large(file: str, frames: int, stream: Any, most: int) -> str:
    return (
        f"the video {file} has {frames} frames or more of {stream.width} x {stream.height} pixels, which is more than {most} in "
        "all; send shorter or smaller videos"
    )


def _upright(frame: Any) -> Any:
    import numpy as np

    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90)))


@contextmanager
def _opened(file: str, content: bytes | None) -> Iterator[Any]:
    try:
        import av
    except ImportError as error:
        raise OptionError(f"reading videos needs PyAV, which is not installed; {_EXTRA}") from error
    try:
        with (
            BytesIO(content) if content is not None else Path(file).open("rb") as data,
            av.open(data, format=_container(file, data)) as container,
        ):
            _check_pictures(file, container)
            yield container
    except InputError:
        raise
    except (OSError, ValueError) as error:  # those of PyAV are both
        told = getattr(error, "strerror", None) or error
        raise InputError(f"the video {file} cannot be read: {told}; give {_FORMATS}") from error


def _container(file: str, data: Any) -> str:
    start = data.read(16)
    data.seek(0)
    if not start:
        raise InputError(f"the video {file} is empty (0 bytes); give {_FORMATS}")
    kind = next((kind for place, mark, kind in _CONTAINERS if start[place:].startswith(mark)), None)
    if kind is None:
        raise InputError(f"the video {file} cannot be read: it is none of {_FORMATS}")
    return kind


def _check_pictures(file: str, container: Any) -> None:
    if not container.streams.video:
        raise InputError(f"the file {file} holds no video; give {_FORMATS} with pictures")
    stream = container.streams.video[0]
    if stream.width * stream.height > _MOST_OF_FRAME:
        raise InputError(
            f"the frames of the video {file} have {stream.width} x {stream.height} pixels, more than {_MOST_OF_FRAME}; make it "
            "smaller"
        )
    stream.codec_context.options = {"max_pixels": str(_MOST_OF_FRAME)}
