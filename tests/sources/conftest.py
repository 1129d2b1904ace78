"""A checkpoint of one layer, as Transformers saves it, and copies of it that a test may damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import save_tiny_checkpoint
from tests.tiny_models import tiny_causal_lm


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer with weights, configs and tokenizer. Not to be changed."""
    module = tiny_causal_lm("llama", num_hidden_layers=1)[0]
    return save_tiny_checkpoint(tmp_path_factory.mktemp("saved") / "tiny", module=module)


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path, store_root: Path) -> Path:
    """A copy of `saved`, with an empty artifact store."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@pytest.fixture
def edit_weights(checkpoint: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Changes the tensors of the copy."""
    from safetensors.torch import load_file, save_file

    def edit(change: Callable[[dict[str, Any]], object]) -> Path:
        weights = load_file(checkpoint / "model.safetensors")
        change(weights)
        save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
        return checkpoint

    return edit


def change_json(file: Path, **changes: object) -> None:
    """Sets fields of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
