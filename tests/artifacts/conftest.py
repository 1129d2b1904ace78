from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from qeff_framework.artifacts import Store, StoredArtifact, cache_key

CONTENT = {"program.bin": bytes(range(256)) * 400, "compiled.json": b"{}\n", "tokenizer/tokenizer.json": b"[1, 2]"}


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "home"))
    return Store()


@pytest.fixture
def builder():
    """Writes `CONTENT` and counts its calls in `builder.calls`."""

    def build(directory: Path) -> None:
        assert list(directory.iterdir()) == []
        build.calls += 1
        for name, content in CONTENT.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(content)

    build.calls = 0
    return build


@pytest.fixture
def get(store, builder):
    """Asks the store for one certain artifact, or for another one when `parts` are given."""

    def ask(parts=None, label="org/model", kind="compiled", **kwargs) -> StoredArtifact:
        parts = {"model": "m", "ctx_len": 128} if parts is None else parts
        return store.get_or_build(kind, label, cache_key(parts), parts, kwargs.pop("builder", builder), **kwargs)

    return ask


@pytest.fixture
def contents():
    """Relative name to SHA-256 of every file below a directory."""

    def read(directory: Path) -> dict[str, str]:
        return {
            path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }

    return read


@pytest.fixture
def old_file(tmp_path):
    """A file whose last change lies `age` seconds back."""

    def write(content: bytes, name: str = "weights.bin", age: float = 60.0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        moment = time.time() - age
        os.utime(path, (moment, moment))
        return path

    return write
