"""Files of videos: the frames that are read, and what is refused before anything is decoded or compiled."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qeff_framework.errors import InputError
from qeff_framework.runtime import video_prompts
from qeff_framework.runtime.video_files import read_video
from qeff_framework.runtime.video_prompts import chosen_length, of_each_prompt, video_options
from qeff_framework.serving.http.images import with_opened_images
from tests.video_clips import written_clip

av = pytest.importorskip("av")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_frames_are_those_that_were_asked_for(name: str, tmp_path: Path) -> None:
    """Matroska tells of no number of frames; the others do."""
    file = written_clip(tmp_path / name, frames=20, rate=8)
    with av.open(str(file)) as container:
        every = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    video = read_video(str(file))
    assert (video.total_frames, video.fps, video.seconds, video.height, video.width) == (20, 8.0, 2.5, 32, 48)
    assert np.array_equal(video.frames([0, 7, 19, 7]), every[[0, 7, 19, 7]])
    assert np.array_equal(read_video("sent", file.read_bytes()).frames([13]), every[[13]])


def test_a_video_of_a_telephone_stands_upright(tmp_path: Path) -> None:
    """The file says by how much it is turned, in the matrix of its track."""
    file = written_clip(tmp_path / "clip.mp4", frames=3)
    content = bytearray(file.read_bytes())
    place = content.find(b"tkhd") + 44
    plain = read_video(str(file)).frames([1])
    content[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    turned = read_video("turned", bytes(content))
    assert (turned.height, turned.width) == (48, 32)
    assert np.array_equal(turned.frames([1]), np.rot90(plain, k=-1, axes=(1, 2)))


def _sound_alone(path: Path) -> bytes:
    with av.open(str(path / "sound.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return (path / "sound.mp4").read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", r"the video bad is empty \(0 bytes\)"),
        (lambda content: content[: len(content) // 2], "the video bad cannot be read: Invalid data"),
        (lambda content: b"no video, but text of some length", "it is none of MP4"),
        # A playlist names further files, which a decoder would open.
        (lambda content: b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n", "it is none of MP4"),
    ],
    ids=["empty", "cut", "text", "playlist"],
)
def test_damaged_files(damage: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    content = written_clip(tmp_path / "clip.mp4", frames=8).read_bytes()
    with pytest.raises(InputError, match=message):
        read_video("bad", damage(content))


def test_files_without_pictures_missing_or_too_large(tmp_path: Path) -> None:
    content = written_clip(tmp_path / "clip.mp4", frames=8).read_bytes()
    with pytest.raises(InputError, match="holds no video"):
        read_video("sound", _sound_alone(tmp_path))
    with pytest.raises(InputError, match="absent.mp4 cannot be read: No such file"):
        read_video(str(tmp_path / "absent.mp4"))
    with pytest.raises(InputError, match="8 frames or more of 48 x 32 pixels, which is more than 9216"):
        read_video("sent", content, most_pixels=6 * 32 * 48)


def test_how_many_frames_are_chosen(tmp_path: Path) -> None:
    """Of the programs, the longest that the shortest clip fills; frames that are given as such are taken as they are."""
    long, short = (read_video(str(written_clip(tmp_path / f"{n}.mp4", frames=n))) for n in (20, 5))
    assert chosen_length([long], (4, 8)) == 8
    assert chosen_length([long, short], (4, 8)) == 4
    assert chosen_length([np.zeros((3, 8, 8, 3))], (4, 8)) is None
    with pytest.raises(InputError, match="has 5 frames, and the programs read 8 or more; .* num_frames=5 or less"):
        chosen_length([short], (8, 16))
    frame = np.zeros((8, 8, 3))
    assert of_each_prompt([None, [frame, frame], ["a.mp4", "b.mp4"]], 3) == [[], [[frame, frame]], ["a.mp4", "b.mp4"]]
    with pytest.raises(InputError, match="2 prompts and videos for 1 were given"):
        of_each_prompt("a.mp4", 2)


def test_a_processor_chooses_frames_and_keeps_its_own_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class VideoProcessor:
        """Asks for files as Transformers' base class does."""

        def fetch_videos(self, videos: Any, sample_indices_fn: Any = None) -> Any:
            raise AssertionError("the library's decoder")

        def __call__(self, *, videos: Any, num_frames: int, fps: None, do_sample_frames: bool) -> Any:
            def every_second(metadata: Any) -> Any:
                assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (20, 8.0, 2.5)
                return np.arange(num_frames) * 2

            return self.fetch_videos(videos, sample_indices_fn=every_second)

    monkeypatch.setattr(video_prompts, "check_torchvision", lambda: None)
    processor = SimpleNamespace(video_processor=VideoProcessor())
    video = read_video(str(written_clip(tmp_path / "clip.mp4", frames=20)))
    reader, options = video_options(processor, [video], 4)
    (pictures,), (metadata,) = reader.video_processor(**options)
    assert np.array_equal(pictures, video.frames([0, 2, 4, 6]))
    assert metadata.frames_indices == [0, 2, 4, 6]
    with pytest.raises(AssertionError, match="the library's decoder"):
        processor.video_processor.fetch_videos([])
    with pytest.raises(InputError, match="takes no videos"):
        video_options(SimpleNamespace(video_processor=None), [video], 4)


def test_videos_of_messages(tmp_path: Path) -> None:
    """Of a request as of vLLM; only the video itself is taken, no address of it."""
    content = written_clip(tmp_path / "clip.mp4", frames=6).read_bytes()

    def part(url: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}]

    (message,) = with_opened_images(part("data:video/mp4;base64," + base64.b64encode(content).decode()))
    (opened,) = message["content"]
    assert (opened["type"], opened["video"].total_frames) == ("video", 6)
    for url, told in {
        "https://example.org/a.mp4": "the server fetches nothing from elsewhere",
        "data:image/png;base64,AAAA": "video_url must be a data URL, data:video/mp4",
        "data:video/mp4;base64,AAAA": "the video of message 0 cannot be read",
    }.items():
        with pytest.raises(InputError, match=told):
            with_opened_images(part(url))
