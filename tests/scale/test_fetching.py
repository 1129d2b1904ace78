"""An artifact behind a URL is copied once, checked, and is not mistaken for another one."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from qeff_framework.artifacts import Store, cache_key, verify
from qeff_framework.errors import ArtifactError, OptionError
from qeff_framework.scale.fetching import local_artifact


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "elsewhere"))

    def build(directory: Path) -> None:
        (directory / "tokenizer").mkdir()
        (directory / "program.bin").write_bytes(bytes(100_000))
        (directory / "tokenizer" / "tokenizer.json").write_bytes(b"[]")

    directory = Store().get_or_build("compiled", "m", cache_key({"a": 1}), {"a": 1}, build).path
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "home"))
    return directory


def upload(directory: Path, url: str) -> None:
    files, root = fsspec.core.url_to_fs(url)
    for file in directory.rglob("*"):
        if file.is_file():
            files.pipe_file(f"{root}/{file.relative_to(directory).as_posix()}", file.read_bytes())


def test_it_is_fetched_once_and_again_when_it_is_another(published: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/artifact"
    upload(published, url)
    found = local_artifact(url)
    assert found.parent == tmp_path / "home" / "fetched"
    assert verify(found, full=True) == []
    stamp = (found / "program.bin").stat().st_mtime_ns
    assert local_artifact(url) == local_artifact(f"{url}/") == found
    assert (found / "program.bin").stat().st_mtime_ns == stamp
    manifest = published / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    upload(published, url)
    assert local_artifact(url) != found
    assert local_artifact(published) == published


def test_what_is_broken_is_refused_and_nothing_stays(published: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/broken"
    (published / "program.bin").write_bytes(bytes(99_999) + b"x")
    upload(published, url)
    with pytest.raises(ArtifactError, match="what arrived is not what was published .program.bin"):
        local_artifact(url)
    assert [path for path in (tmp_path / "home" / "fetched").iterdir() if path.is_dir()] == []
    with pytest.raises(ArtifactError, match="there is no artifact that can be read"):
        local_artifact(f"memory://{tmp_path.name}/nothing")
    with pytest.raises(OptionError, match="nosuchprotocol"):
        local_artifact("nosuchprotocol://a/b")
