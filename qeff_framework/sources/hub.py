"""Files of a hub repository that may be absent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.quiet import first_line, quiet_hub


def optional_hub_file(repo: str, name: str, *, revision: str | None, arguments: Mapping[str, Any]) -> Path | None:
    """Fetches file `name` of `repo`; returns `None` if the repository has no such file at `revision`.

    `arguments` are those of ``from_pretrained``; of them `token`, `cache_dir`, `local_files_only` and `force_download` count.

    Raises:
        CheckpointError: the hub cannot be asked, and its cache does not know whether there is such a file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    names = ("token", "cache_dir", "local_files_only", "force_download")
    given = {key: arguments[key] for key in names if key in arguments}
    if re.fullmatch("[0-9a-f]{40}", revision or "") and _known_to_be_absent(
        repo, name, revision, arguments.get("cache_dir")
    ):
        return None  # what is known of a commit stays true
    try:
        with quiet_hub():
            return Path(hf_hub_download(repo, name, revision=revision, **given))
    except LocalEntryNotFoundError as error:
        if _known_to_be_absent(repo, name, revision, arguments.get("cache_dir")):
            return None
        raise _unknown(repo, name, error) from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise _unknown(repo, name, error) from error


def _known_to_be_absent(repo: str, name: str, revision: str | None, cache_dir: str | None) -> bool:
    """Whether the hub has said before that the file does not exist."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, revision=revision, cache_dir=cache_dir)
    if found is not None and not isinstance(found, str):
        return True
    try:
        # Newer versions keep the list of files of a repository that was downloaded as a whole.
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:
        return False
    try:
        listed = {entry.path for entry in get_cached_repo_tree(repo, revision=revision, cache_dir=cache_dir)}
    except CachedRepoTreeNotFoundError:
        return False
    return name not in listed


def _unknown(repo: str, name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"it cannot be told whether '{repo}' has a file {name}, which decides what its embeddings are: {first_line(error)}; "
        "connect to the hub once, or choose a pooling yourself (pooling=...)"
    )
