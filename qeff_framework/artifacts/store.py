"""The store of built artifacts: build once, publish whole, find again.

<root>/<kind>/<label>-<first 16 digits of the key>/    one published artifact, with its manifest.json
<root>/staging/                                        unfinished work, removed when its owner has died
<root>/locks/                                          one empty lock file per key that was ever built
<root>/digests.json                                    see `content_digest`
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from qeff_framework.artifacts.disk import (
    is_disk_full,
    os_errors_explained,
    sizes_of_files,
    sync,
    sync_tree,
    synced_meanwhile,
)
from qeff_framework.artifacts.json_values import Json
from qeff_framework.artifacts.keys import MEMO_FILE, cache_key, content_digest, key_value
from qeff_framework.artifacts.manifest import Manifest, Problem, verify
from qeff_framework.artifacts.root import store_root
from qeff_framework.artifacts.staging import staging_directory, sweep
from qeff_framework.errors import ArtifactCorruptError, ArtifactError
from qeff_framework.parallel import LOOK_SECONDS, check_stopped
from qeff_framework.progress import report

_log = logging.getLogger(__name__)

_STAGING = "staging"
_LOCKS = "locks"
_KEY_DIGITS = 16
_LABEL_LENGTH = 64
#: So many take a second to be read.
_LARGE_BYTES = 500_000_000
#: Stands for the times of an artifact whose manifest cannot be read.
_NEVER = datetime.fromtimestamp(0, UTC)
#: Staging directories beside a destination that the user chose.
_HIDDEN_PREFIX = ".qeff-staging-"
_SET_HOME = "Set QEFF_HOME to a writable directory"

#: Fills an empty directory; everything that it leaves there becomes the artifact. It may return digests of files by name, which
#: are then not read for the manifest: of large files that it has found elsewhere and linked.
Builder = Callable[[Path], Mapping[str, str] | None]
#: Called once, when another process is building the same artifact and this one has to wait.
OnWait = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """A published artifact."""

    kind: str
    label: str
    #: Full key; of an artifact with an unreadable manifest, the digits in its directory's name.
    key: str
    path: Path
    #: Bytes on disk.
    size: int
    #: UTC; like `last_used` the beginning of 1970 when the manifest is unreadable.
    created: datetime
    #: When `Store.get_or_build` or `open_artifact` last returned it.
    last_used: datetime
    #: Every file is there with its recorded size. `verify` looks closer.
    intact: bool
    #: The call that returned this has built it; otherwise it was there.
    built: bool = False

    @property
    def name(self) -> str:
        """The directory's name, which `Store.remove` accepts."""
        return self.path.name


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What is asked for, wherever it will lie."""

    kind: str
    label: str
    key: str
    key_parts: Mapping[str, Json]
    builder: Builder

    @property
    def what(self) -> str:
        return f"{self.kind}/{_directory_name(self.label, self.key)}"


class Store:
    """Artifacts below one root. Any number of processes and threads may use the same root at the same time."""

    def __init__(self, root: Path | None = None) -> None:
        """Without `root`, `store_root` is asked each time that the root is needed."""
        self._root = root

    @property
    def root(self) -> Path:
        """The store's directory; it is created when something is built."""
        return store_root() if self._root is None else self._root.absolute()

    def path_of(self, kind: str, label: str, key: str) -> Path:
        """Where `get_or_build` publishes a new artifact when no destination is given."""
        return self.root / kind / _directory_name(label, key)

    def content_digest(self, path: Path) -> str:
        """`keys.content_digest` with this store's memo."""
        return content_digest(path, memo=self.root / MEMO_FILE)

    def get_or_build(
        self,
        kind: str,
        label: str,
        key: str,
        key_parts: Mapping[str, object],
        builder: Builder,
        destination: Path | None = None,
        on_wait: OnWait | None = None,
        *,
        rebuild: bool = False,
    ) -> StoredArtifact:
        """The intact artifact with this `key`, built only if there is none.

        1. An intact artifact is returned at once, also from a root that cannot be written to. The key decides; the
           label may differ.
        2. A lock per key is taken. While another process holds it, this one waits, after calling `on_wait` once.
        3. What meanwhile was published is returned. A damaged artifact is removed, with a warning in the log.
        4. `builder` fills an empty staging directory. When it raises, the directory is removed and the error goes on.
        5. The manifest is written, everything is forced to the disk, and one rename publishes the directory.

        With `rebuild` it is built even if there is one, which stays in place until the new one is complete.

        With `destination` the artifact is published there. It may exist if it is empty or holds this artifact, intact;
        anything else there is left alone and is an error. Raises `ArtifactError` when there is no place to write to,
        before `builder` is called, and when the disk is full.
        """
        _check_name("kind", kind, r"[a-z][a-z0-9_-]*")
        _check_name("key", key, r"[0-9a-f]{16,64}")
        if kind in (_STAGING, _LOCKS):
            raise ArtifactError(f"'{kind}' cannot be a kind of artifact: the store uses that directory itself")
        recipe = _Recipe(
            kind=kind,
            label=label,
            key=key,
            key_parts={name: key_value(value, name) for name, value in key_parts.items()},
            builder=builder,
        )
        if destination is None:
            return self._in_store(recipe, on_wait, rebuild=rebuild)
        return self._at_destination(recipe, destination.resolve(), on_wait, rebuild=rebuild)

    def check_destination(self, kind: str, destination: Path, key: str | None = None) -> None:
        """Raises `ArtifactError` if no artifact of `kind` can be published at `destination`.

        For callers who work before they call `get_or_build`: what it would refuse after their work is refused before it. Without
        a `key`, which may be known late, any intact artifact of this kind may be there.
        """
        target = destination.resolve()
        existing = next(path for path in (target, *target.parents) if path.exists())
        if not existing.is_dir():
            raise ArtifactError(f"cannot publish to {target}: {existing} is not a directory. Choose another directory")
        if existing == target and any(_listed(target)):
            problems = [str(problem) for problem in verify(target)]
            if not problems and (found := Manifest.load(target).kind) != kind:
                problems = [f"{Manifest.FILE} belongs to {found}, not to {kind}"]
            if not problems and key is not None:
                problems = _problems(target, key)
            if problems:
                raise _occupied(target, _summary(problems))
            return
        if existing == target and target.is_mount():
            raise _mounted(target)
        writable = existing.parent if existing == target else existing
        if not os.access(writable, os.W_OK | os.X_OK):
            raise ArtifactError(f"cannot publish to {target}: {writable} is not writable. Choose another directory")

    def holds(self, kind: str, key: str, destination: Path | None = None) -> bool:
        """Whether `get_or_build` would find the intact artifact, in the store or at `destination`, and build nothing."""
        if destination is not None:
            return not _problems(destination.resolve(), key)
        return self._intact(kind, key) is not None

    def list(self) -> Sequence[StoredArtifact]:
        """Every published artifact below the root, damaged ones included."""
        with os_errors_explained(f"cannot list the artifact store {self.root}", _SET_HOME):
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))
            paths = [
                path
                for kind in _directories(self.root)
                if kind.name not in (_STAGING, _LOCKS)
                for path in _directories(kind)
                if re.fullmatch(r".+-[0-9a-f]{16}", path.name) and (path / Manifest.FILE).exists()
            ]
        return sorted((_described(path) for path in paths), key=lambda item: (item.kind, item.name))

    def verify(self, full: bool = True) -> Sequence[tuple[StoredArtifact, Sequence[Problem]]]:
        """Every artifact of `list` with what is wrong with it; see `manifest.verify`."""
        return [(artifact, verify(artifact.path, full=full)) for artifact in self.list()]

    def remove(self, selector: str) -> StoredArtifact:
        """Removes one artifact and returns what it was.

        `selector` is a directory name, a label, or the beginning of a key. Raises `ArtifactError` when it fits none or
        several, and while a process builds that artifact.
        """
        artifact = self._select(selector)

        def refuse() -> None:
            raise ArtifactError(
                f"{artifact.kind}/{artifact.name} is not removed: another process is building it. "
                "Try again when it has finished"
            )

        self._prepare()
        with self._exclusive(_lock_name(artifact.path.parent.name, artifact.name[-_KEY_DIGITS:]), refuse):
            self._discard(artifact.path)
        return artifact

    def sweep(self) -> Sequence[Path]:
        """Removes what killed processes have left in the root; says which directories that were."""
        return sweep(self.root / _STAGING, prefix="")

    # --- in the store -------------------------------------------------------------------------------------------------

    def _in_store(self, recipe: _Recipe, on_wait: OnWait | None, *, rebuild: bool) -> StoredArtifact:
        if not rebuild and (found := self._intact(recipe.kind, recipe.key)):
            return found
        target = self.path_of(recipe.kind, recipe.label, recipe.key)
        self._prepare(recipe.kind)
        with self._exclusive(_lock_name(recipe.kind, recipe.key), _waiting(recipe.what, on_wait)):
            if not rebuild and (found := self._intact(recipe.kind, recipe.key)):
                return found
            for damaged in self._candidates(recipe.kind, recipe.key):
                if not _problems(damaged, recipe.key):
                    continue
                _log.warning(
                    "%s is damaged (%s): it is removed and built again from its source",
                    damaged,
                    _summary(_problems(damaged, recipe.key)),
                )
                self._discard(damaged)
            self.sweep()
            return _build(
                recipe,
                target,
                staging_parent=self.root / _STAGING,
                staging_prefix="",
                remedy=_SET_HOME,
                replaced=lambda each: self._candidates(each.kind, each.key),
            )

    def _candidates(self, kind: str, key: str) -> Sequence[Path]:
        suffix = f"-{key[:_KEY_DIGITS]}"
        with os_errors_explained(f"cannot read the artifact store {self.root}", _SET_HOME):
            return [path for path in _directories(self.root / kind) if path.name.endswith(suffix)]

    def _intact(self, kind: str, key: str) -> StoredArtifact | None:
        for path in self._candidates(kind, key):
            # Another process may remove it between the two looks.
            if not _problems(path, key) and (artifact := _used(path)).intact:
                return artifact
        return None

    def _prepare(self, kind: str | None = None) -> None:
        with os_errors_explained(f"cannot write to the artifact store {self.root}", _SET_HOME):
            for name in (_STAGING, _LOCKS, *([kind] if kind else [])):
                (self.root / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _exclusive(self, name: str, on_busy: Callable[[], None]) -> Iterator[None]:
        lock = FileLock(self.root / _LOCKS / name)
        with os_errors_explained(f"cannot write to the artifact store {self.root}", _SET_HOME):
            free = _acquire_within(lock, 0)
        if not free:
            on_busy()
            with os_errors_explained(f"cannot lock the artifact store {self.root}", _SET_HOME):
                while not _acquire_within(lock, LOOK_SECONDS):
                    check_stopped()
        try:
            yield
        finally:
            lock.release()

    def _discard(self, path: Path) -> None:
        """Takes the artifact away in one step, so that nobody sees half of it, and then deletes it."""
        with (
            staging_directory(self.root / _STAGING, prefix="", remedy=_SET_HOME) as aside,
            os_errors_explained(f"cannot remove {path}", "Remove it by hand"),
        ):
            if path.exists():
                path.rename(aside / path.name)

    def _select(self, selector: str) -> StoredArtifact:
        artifacts = self.list()
        matches = [item for item in artifacts if selector in (item.name, f"{item.kind}/{item.name}")] or [
            item for item in artifacts if selector and (item.label == selector or item.key.startswith(selector))
        ]
        if not matches:
            raise ArtifactError(
                f"no artifact in {self.root} is named '{selector}' or has a key that begins with it: "
                "`qeff cache ls` lists them"
            )
        if len(matches) > 1:
            names = ", ".join(f"{item.kind}/{item.name}" for item in matches)
            raise ArtifactError(f"'{selector}' fits {len(matches)} artifacts, name one of them: {names}")
        return matches[0]

    # --- at a destination that the user chose -------------------------------------------------------------------------

    def _at_destination(
        self, recipe: _Recipe, target: Path, on_wait: OnWait | None, *, rebuild: bool
    ) -> StoredArtifact:
        if _holds(target, recipe.key) and not rebuild:
            return _used(target)
        self._prepare()
        lock_name = f"destination-{cache_key({'path': str(target)})[:_KEY_DIGITS]}.lock"
        with self._exclusive(lock_name, _waiting(str(target), on_wait)):
            holds = _holds(target, recipe.key)
            if holds and not rebuild:
                return _used(target)
            remedy = f"Choose another directory than {target}"
            with _parents(target, remedy) as parent:
                sweep(parent, prefix=_HIDDEN_PREFIX)
                return _build(
                    recipe,
                    target,
                    staging_parent=parent,
                    staging_prefix=_HIDDEN_PREFIX,
                    remedy=remedy,
                    replaced=lambda _: [target] if holds else [],
                )


def open_artifact(path: Path, full: bool = False) -> StoredArtifact:
    """The artifact in the directory `path`, wherever it lies, after checking its files as `manifest.verify` does.

    Raises `ArtifactCorruptError` when a file is not what was published, `ArtifactError` when `path` holds no artifact.
    """
    Manifest.load(path)
    problems = verify(path, full=full)
    if problems:
        raise ArtifactCorruptError(
            f"the artifact in {path} cannot be used: {_summary(problems)}. "
            "Delete the directory and build the artifact again"
        )
    return _used(path)


def _acquire_within(lock: BaseFileLock, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def _build(
    recipe: _Recipe,
    target: Path,
    *,
    staging_parent: Path,
    staging_prefix: str,
    remedy: str,
    replaced: Callable[[_Recipe], Sequence[Path]],
) -> StoredArtifact:
    """Builds and publishes; `replaced` names the artifacts that the new one takes the place of, once it is complete."""
    with staging_directory(staging_parent, prefix=staging_prefix, remedy=remedy) as staging:
        try:
            with synced_meanwhile(staging) as early:
                shared = recipe.builder(staging)
        except OSError as error:
            if not is_disk_full(error):
                raise
            with os_errors_explained(f"cannot build {recipe.what} in {staging_parent}", remedy):
                raise
        with os_errors_explained(f"cannot publish {recipe.what} as {target}", remedy):
            early.result()
            with ThreadPoolExecutor(1) as other:
                # What the builder has written goes to the disk while it is read for the manifest.
                synced = other.submit(sync_tree, staging)
                # A builder is often the last expression of a lambda.
                manifest = _described_by(recipe, staging, shared if isinstance(shared, Mapping) else None)
                synced.result()
            manifest.save(staging)
            sync(staging / Manifest.FILE)
            sync(staging)
            with _moved_aside(replaced(recipe), staging_parent, staging_prefix, remedy):
                _publish(staging, target)
    return replace(_described(target), built=True)


@contextmanager
def _moved_aside(paths: Sequence[Path], parent: Path, prefix: str, remedy: str) -> Iterator[None]:
    """Takes `paths` away for the body, deletes them after it, and puts them back if it fails."""
    with ExitStack() as stack:
        moved = []
        try:
            for path in paths:
                aside = stack.enter_context(staging_directory(parent, prefix=prefix, remedy=remedy)) / path.name
                path.rename(aside)
                moved.append((path, aside))
            yield
        except BaseException:
            for path, aside in moved:
                aside.rename(path)
            raise


def _described_by(recipe: _Recipe, staging: Path, shared: Mapping[str, str] | None) -> Manifest:
    size = sum(size for name, size in _sizes(staging).items() if name not in (shared or {}))
    if size >= _LARGE_BYTES:
        report(f"computing the digests of {size / 1e9:.1f} GB")
    try:
        return Manifest.describe(
            staging, kind=recipe.kind, key=recipe.key, key_parts=recipe.key_parts, label=recipe.label, shared=shared
        )
    except ArtifactError as error:
        raise ArtifactError(f"{recipe.what} is not published: {error}") from error


def _publish(staging: Path, target: Path) -> None:
    # Windows renames onto no directory, POSIX onto an empty one; removing it first fails, as it should, if it is not empty.
    if target.is_dir():
        target.rmdir()
    staging.rename(target)
    sync(target.parent)


def _holds(target: Path, key: str) -> bool:
    """`True` if `target` holds this artifact, intact; `False` if it is absent or empty; an error for anything else."""
    try:
        if not any(target.iterdir()):
            if target.is_mount():
                raise _mounted(target)
            return False
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ArtifactError(f"cannot publish to {target}: {error}. Choose another directory") from error
    problems = _problems(target, key)
    if problems:
        raise _occupied(target, _summary(problems))
    return True


def _listed(directory: Path) -> Iterator[Path]:
    try:
        yield from directory.iterdir()
    except OSError as error:
        raise ArtifactError(f"cannot publish to {directory}: {error}. Choose another directory") from error


def _mounted(target: Path) -> ArtifactError:
    return ArtifactError(
        f"cannot publish to {target}: it is a mount point, which cannot be replaced in one step. "
        f"Choose a directory below it, such as {target / 'artifact'}"
    )


def _occupied(target: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"cannot publish to {target}: it is not empty and does not hold this artifact ({reason}). "
        "Nothing was changed: choose another directory, or empty this one"
    )


@contextmanager
def _parents(target: Path, remedy: str) -> Iterator[Path]:
    """The directory above `target`, created if need be; if the body fails, what was created is removed again."""
    missing = [parent for parent in target.parents if not parent.exists()]
    with os_errors_explained(f"cannot create {target.parent}", remedy):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield target.parent
    except BaseException:
        for parent in missing:
            try:
                parent.rmdir()
            except OSError:  # somebody else uses it by now
                break
        raise


def _problems(path: Path, key: str) -> list[str]:
    problems = [str(problem) for problem in verify(path)]
    if problems:
        return problems
    try:
        found = Manifest.load(path)
    except ArtifactError as error:  # removed between the two looks
        return [str(error)]
    if found.key == key:
        return []
    return [f"{Manifest.FILE} belongs to {found.kind} '{found.label}' with the key {found.key[:_KEY_DIGITS]}"]


def _summary(problems: list[Problem] | list[str]) -> str:
    shown = 3
    more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
    return "; ".join(str(problem) for problem in problems[:shown]) + more


def _used(path: Path) -> StoredArtifact:
    # The manifest's time stamp is the only one that no check needs, so it can tell when the artifact was last used.
    # Where it cannot be set, in a read-only store, the artifact is usable all the same.
    with suppress(OSError):
        os.utime(path / Manifest.FILE)
    return _described(path)


def _described(path: Path) -> StoredArtifact:
    sizes = _sizes(path)
    try:
        used = datetime.fromtimestamp((path / Manifest.FILE).stat().st_mtime, UTC)
        manifest = Manifest.load(path)
    except (ArtifactError, OSError):
        return StoredArtifact(
            kind=path.parent.name,
            label=path.name[: -_KEY_DIGITS - 1],
            key=path.name[-_KEY_DIGITS:],
            path=path,
            size=sum(sizes.values()),
            created=_NEVER,
            last_used=_NEVER,
            intact=False,
        )
    return StoredArtifact(
        kind=manifest.kind,
        label=manifest.label,
        key=manifest.key,
        path=path,
        size=sum(sizes.values()),
        created=manifest.created,
        last_used=used,
        intact=all(sizes.get(name) == record.size for name, record in manifest.files.items()),
    )


def _sizes(directory: Path) -> dict[str, int]:
    """Sizes of the regular files below `directory` by relative name; what vanishes meanwhile does not count."""
    return {path.relative_to(directory).as_posix(): size for path, size in sizes_of_files(directory)}


def _directories(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _directory_name(label: str, key: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", label)[:_LABEL_LENGTH].strip(".-")
    return f"{slug or 'artifact'}-{key[:_KEY_DIGITS]}"


def _lock_name(kind: str, key: str) -> str:
    return f"{kind}-{key[:_KEY_DIGITS]}.lock"


def _waiting(what: str, on_wait: OnWait | None) -> Callable[[], None]:
    def announce() -> None:
        _log.info("another process is building %s; waiting for it", what)
        if on_wait is not None:
            on_wait()

    return announce


def _check_name(name: str, value: str, pattern: str) -> None:
    if not re.fullmatch(pattern, value):
        raise ArtifactError(f"the {name} of an artifact must match {pattern}, got {value!r}")
