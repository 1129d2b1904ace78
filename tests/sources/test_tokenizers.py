"""A tokenizer that cannot be written is no tokenizer that cannot be loaded."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from qeff_framework.sources.tokenizers import save_tokenizer


class OnFullDisk:
    model_input_names = ("input_ids",)

    def __init__(self) -> None:
        self.init_kwargs: dict[str, Any] = {}

    def save_pretrained(self, directory: Path) -> None:
        raise Exception("No space left on device (os error 28)")


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        save_tokenizer(OnFullDisk(), tmp_path)
    assert caught.value.errno == errno.ENOSPC
