"""What ``qeff generate`` is asked to run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qeff_framework.cli.picture_input import PictureInput
    from qeff_framework.cli.progress import ProgressHandler
    from qeff_framework.runtime.sound_files import SoundFile
    from qeff_framework.runtime.video_files import VideoFile


@dataclass(frozen=True, kw_only=True)
class ResultsRequest:
    """The input of all tasks; each reads what it has use for, and the command refuses what a task has none for."""

    #: The texts that were given.
    texts: Sequence[str]
    #: Text generation: the texts, or conversations that the chat template renders.
    prompts: Sequence[Any]
    #: Vision-language models: the images of each prompt; empty where none were given.
    images: Sequence[Sequence[Any]]
    #: The videos of each prompt, opened.
    videos: Sequence[Sequence[VideoFile]]
    #: Models of sound: the clips; empty where none were given.
    audio: Sequence[SoundFile]
    #: Question answering: the text that holds the answers.
    context: str | None
    #: Settings of a generation config.
    settings: Mapping[str, Any]
    #: Pipelines of diffusers: the pictures that they begin with.
    pictures: PictureInput
    args: argparse.Namespace
    progress: ProgressHandler
