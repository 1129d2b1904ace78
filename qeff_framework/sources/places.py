"""Where the files of a checkpoint lie: a folder here, or a repository on the hub at one commit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from qeff_framework.errors import CheckpointError
from qeff_framework.progress import report
from qeff_framework.sources.quiet import first_line, quiet_hub

_FETCHING = ("token", "cache_dir", "local_files_only", "force_download")


class Place(Protocol):
    """The files of one checkpoint. Names are relative to its ``subfolder``."""

    #: What Transformers is given.
    location: str

    def file(self, name: str) -> Path:
        """Path of a file.

        Raises:
            FileNotFoundError: there is none of this name.
            CheckpointError: the hub cannot be asked, or knows no such repository.
        """

    def optional_file(self, name: str) -> Path | None:
        """Path of a file; `None` where there is none, and where the hub cannot be asked."""

    def folder(self) -> Path | None:
        """The folder that `file` has found files in; not all of a repository's files need to lie there."""


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, path: Path, subfolder: str = "") -> None:
        self.top = path
        self.root = path / subfolder
        self.location = str(path)

    def file(self, name: str) -> Path:
        """See `Place`."""
        path = self.root / name
        # A link to nothing and a directory are told apart where the file is read.
        if not path.exists() and not path.is_symlink():
            raise FileNotFoundError(f"{self.root} has no file {name}")
        return path

    def optional_file(self, name: str) -> Path | None:
        """See `Place`."""
        path = self.root / name
        return path if path.is_file() else None

    def folder(self) -> Path:
        """See `Place`."""
        return self.root


class HubRepository:
    """A repository on the hub. The first file that is fetched settles the commit, and all others come from that."""

    def __init__(
        self, name: str, arguments: Mapping[str, Any], *, revision: str | None = None, subfolder: str = ""
    ) -> None:
        """`arguments`: those of ``from_pretrained``, of which the ones about fetching are taken."""
        self.location = name
        self._fetching = {key: arguments[key] for key in _FETCHING if arguments.get(key) is not None}
        self._revision = revision
        self._subfolder = subfolder
        self._commit: str | None = None
        self._folder: Path | None = None

    def commit(self, name: str) -> str:
        """The commit that the revision stands for; the file `name` is fetched to find out."""
        if self._commit is None:
            self.file(name)
        return str(self._commit)

    def file(self, name: str) -> Path:
        """See `Place`; the file is fetched if it is not in the hub's cache."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )

        if self._commit is not None and (cached := self.cached(name)) is not None:
            return cached
        inside = self._in_repository(name)
        report(f"fetching {name} of {self.location}")
        try:
            with quiet_hub():
                revision = self._commit or self._revision
                path = Path(hf_hub_download(self.location, inside, revision=revision, **self._fetching))
        except LocalEntryNotFoundError as error:
            raise self._unreachable(error) from error
        except EntryNotFoundError as error:
            raise FileNotFoundError(f"'{self.location}' has no file {inside}") from error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise self._unreachable(error) from error
        if self._commit is None:
            self._commit, self._folder = self._commit_of(path), path.parents[name.count("/")]
        return path

    def optional_file(self, name: str) -> Path | None:
        """See `Place`."""
        from huggingface_hub import constants

        found = self._looked_up(name)
        if found is not None:
            return Path(found) if isinstance(found, str) else None
        if constants.HF_HUB_OFFLINE or self._fetching.get("local_files_only"):
            return None
        try:
            return self.file(name)
        except FileNotFoundError:
            return None

    def folder(self) -> Path | None:
        """See `Place`."""
        return self._folder

    def cached(self, name: str) -> Path | None:
        """Path of a file that lies in the hub's cache already."""
        found = self._looked_up(name)
        return Path(found) if isinstance(found, str) else None

    def _in_repository(self, name: str) -> str:
        return f"{self._subfolder}/{name}" if self._subfolder else name

    def _looked_up(self, name: str) -> object:
        """Its path, `None` if the cache knows nothing of it, or the cache's mark that the hub has no such file."""
        from huggingface_hub import try_to_load_from_cache

        revision, cache = self._commit or self._revision, self._fetching.get("cache_dir")
        return try_to_load_from_cache(self.location, self._in_repository(name), cache_dir=cache, revision=revision)

    def _commit_of(self, path: Path) -> str:
        """Files of the hub's cache lie in ``snapshots/<commit>/``."""
        found = re.search(r"/snapshots/([0-9a-f]{40})/", path.as_posix())
        if found is None:
            raise CheckpointError(
                f"the commit of '{self.location}' cannot be told from {path}, so that nothing could say when it changes; use a "
                "cache of huggingface_hub, or give the folder itself"
            )
        return found[1]

    def _unreachable(self, error: BaseException) -> CheckpointError:
        return CheckpointError(
            f"'{self.location}' is neither a local folder nor a model that the hub gives: {first_line(error)}; check the "
            "spelling, the network, or the access rights of your token"
        )
