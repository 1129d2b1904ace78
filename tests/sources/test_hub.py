"""Files of a hub repository that may be absent, from the hub's cache alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qeff_framework import QEFFAutoModelForCausalLM
from qeff_framework.errors import CheckpointError, UnsupportedModelError
from qeff_framework.sources.hub import optional_hub_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that holds one file of ``organisation/name``."""
    repository = tmp_path / "models--organisation--name"
    snapshot = repository / "snapshots" / COMMIT
    (snapshot / "1_Pooling").mkdir(parents=True)
    (snapshot / "1_Pooling/config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    return tmp_path


def ask(cache: Path, name: str, **arguments: Any) -> Path | None:
    offline = {"cache_dir": str(cache), "local_files_only": True}
    return optional_hub_file("organisation/name", name, revision=COMMIT, arguments={**offline, **arguments})


def test_a_cached_file_is_found(cache: Path) -> None:
    found = ask(cache, "1_Pooling/config.json")
    assert found is not None
    assert found.read_text() == "{}"


def test_a_file_that_the_hub_has_not_is_absent(cache: Path) -> None:
    mark = cache / "models--organisation--name" / ".no_exist" / COMMIT / "modules.json"
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert ask(cache, "modules.json") is None
    # What is known of a commit stays true: the hub is not asked again.
    assert ask(cache, "modules.json", local_files_only=False) is None


def test_a_repository_that_was_downloaded_as_a_whole_lists_its_files(cache: Path) -> None:
    from huggingface_hub import _tree_cache

    listing = cache / "models--organisation--name" / "trees" / f"{COMMIT}.json"
    listing.parent.mkdir()
    files = {"1_Pooling/config.json": {"size": 2, "blob_id": "a"}}
    listing.write_text(json.dumps({"format_version": _tree_cache.TREE_CACHE_FORMAT_VERSION, "files": files}))
    assert ask(cache, "modules.json") is None


def test_where_nobody_knows_the_checkpoint_is_refused(cache: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"cannot be told whether 'organisation/name' has a file modules.json"
    ) as caught:
        ask(cache, "modules.json")
    assert "pooling=..." in str(caught.value)


def test_a_pipeline_is_called_what_it_is(cache: Path) -> None:
    snapshot = cache / "models--organisation--name" / "snapshots" / COMMIT
    (snapshot / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    offline = {"cache_dir": str(cache), "local_files_only": True}
    for place, arguments in (("organisation/name", offline), (snapshot, {})):
        with pytest.raises(
            UnsupportedModelError, match=r"is a pipeline of diffusers \(FluxPipeline\).*QEFFDiffusionPipeline"
        ):
            QEFFAutoModelForCausalLM.from_pretrained(place, **arguments)
