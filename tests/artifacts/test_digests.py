from __future__ import annotations

import hashlib
import json
import os

import pytest

from qeff_framework.artifacts import content_digest, digests
from qeff_framework.artifacts.manifest import Manifest, verify
from qeff_framework.errors import ArtifactError

LARGE = b"w" * (2 << 20)


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the files that are read for their digest."""
    names: list[str] = []
    real = digests.file_sha256

    def counted(path):
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(digests, "file_sha256", counted)
    return names


def test_a_large_file_is_read_once(store, old_file, reads):
    path = old_file(LARGE)
    expected = hashlib.sha256(LARGE).hexdigest()
    assert [content_digest(path), store.content_digest(path), content_digest(path)] == [expected] * 3
    assert reads == ["weights.bin"]
    assert str(path) in json.loads((store.root / "digests.json").read_text())["files"]


def test_a_link_shares_the_digest_of_its_target(store, old_file, tmp_path, reads):
    path = old_file(LARGE)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert content_digest(link) == content_digest(path)
    assert len(reads) == 1


def test_a_changed_file_is_read_again(store, old_file, reads):
    path = old_file(LARGE)
    before = content_digest(path)
    old_file(LARGE[:-1] + b"x", age=30)
    assert content_digest(path) != before
    assert len(reads) == 2


def test_a_file_that_changed_under_its_old_time_and_size_is_read_again(store, old_file):
    path = old_file(LARGE)
    before, times = content_digest(path), path.stat()
    with path.open("r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert content_digest(path) != before


@pytest.mark.parametrize("age", [0.5, -100.0])
def test_a_file_that_is_still_young_is_not_remembered(store, old_file, reads, age):
    path = old_file(LARGE, age=age)
    assert content_digest(path) == content_digest(path)
    assert len(reads) == 2


def test_a_small_file_is_not_remembered(store, old_file):
    content_digest(old_file(b"{}"))
    assert not (store.root / "digests.json").exists()


def test_entries_of_files_that_have_gone_are_dropped(store, old_file):
    gone = old_file(LARGE, "gone.bin")
    content_digest(gone)
    gone.unlink()
    kept = old_file(LARGE, "kept.bin")
    content_digest(kept)
    assert list(json.loads((store.root / "digests.json").read_text())["files"]) == [str(kept)]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99, "files": {}}', '{"format": 1, "files": {"a": 3}}', "\xff"])
def test_a_damaged_memo_is_replaced(store, old_file, text):
    path = old_file(LARGE)
    store.root.mkdir(parents=True)
    memo = store.root / "digests.json"
    memo.write_text(text, encoding="latin-1")
    assert content_digest(path) == hashlib.sha256(LARGE).hexdigest()
    assert list(json.loads(memo.read_text())["files"]) == [str(path)]


def test_without_a_writable_root_the_digest_is_computed_all_the_same(monkeypatch, old_file, tmp_path):
    monkeypatch.setenv("QEFF_HOME", str(old_file(b"a file", "file") / "below"))
    assert content_digest(old_file(LARGE)) == hashlib.sha256(LARGE).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "weights.bin"]


def test_a_directory_is_its_files_by_relative_name(store, old_file, tmp_path):
    for top in ("one", "two"):
        old_file(b"a", f"{top}/config.json")
        old_file(LARGE, f"{top}/sub/weights.bin")
    first = content_digest(tmp_path / "one")
    assert content_digest(tmp_path / "two") == first
    (tmp_path / "two/config.json").rename(tmp_path / "two/other.json")
    assert content_digest(tmp_path / "two") != first
    (tmp_path / "two/other.json").rename(tmp_path / "two/config.json")
    assert content_digest(tmp_path / "two") == first
    (tmp_path / "two/sub/.hidden").write_bytes(b"")
    assert content_digest(tmp_path / "two") != first


def test_linked_directories_count_as_directories(store, old_file, tmp_path):
    old_file(b"a", "real/sub/file")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/sub").symlink_to(tmp_path / "real/sub")
    assert content_digest(tmp_path / "linked") == content_digest(tmp_path / "real")


def test_what_has_no_content_is_refused(store, tmp_path):
    with pytest.raises(ArtifactError, match="No such file"):
        content_digest(tmp_path / "absent")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop/again").symlink_to(tmp_path / "loop")
    with pytest.raises(ArtifactError, match="links to a directory above itself"):
        content_digest(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="not a regular file"):
        content_digest(tmp_path / "pipe")


def test_a_file_that_changes_while_it_is_read_is_refused(store, old_file, monkeypatch):
    path = old_file(LARGE)
    real = digests.file_sha256

    def slow(file):
        result = real(file)
        with path.open("ab") as other:
            other.write(b"more")
        return result

    monkeypatch.setattr(digests, "file_sha256", slow)
    with pytest.raises(ArtifactError, match="it changed while it was read"):
        content_digest(path)


@pytest.mark.parametrize(
    "written",
    [{}, {0: b"a" * 5000}, {3 << 20: b"b"}, {(5 << 20) - 1: b"c"}, {0: b"d", 1 << 20: b"e" * 70000, 4 << 20: b"f"}],
    ids=["nothing", "start", "middle", "end", "parts"],
)
@pytest.mark.parametrize("size", [5 << 20, (5 << 20) + 13, (7 << 20) + 4097])
def test_holes_of_a_sparse_file_count_as_zeros(tmp_path, written, size):
    path = tmp_path / "sparse"
    content = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in written.items():
            file.seek(offset)
            file.write(data)
            content[offset : offset + len(data)] = data
    assert digests.file_sha256(path) == hashlib.sha256(content).hexdigest()


def test_a_file_that_was_digested_while_it_was_written_is_not_read_for_the_manifest(tmp_path, monkeypatch):
    with digests.DigestingFile(tmp_path / "weights.bin") as file:
        file.writelines([LARGE[:5], memoryview(LARGE)[5:]])
    monkeypatch.setattr("qeff_framework.artifacts.manifest.file_sha256", None)

    found = Manifest.describe(tmp_path, kind="exports", key="k", key_parts={}, label="")

    assert found.files["weights.bin"].sha256 == hashlib.sha256(LARGE).hexdigest()
    found.save(tmp_path)
    monkeypatch.undo()
    assert verify(tmp_path, full=True) == []


def test_a_file_that_was_written_to_after_its_digest_is_read_for_the_manifest(tmp_path):
    """However soon: the clock of a file system goes in steps."""
    for number in range(20):
        path = tmp_path / f"{number}.bin"
        with digests.DigestingFile(path) as file:
            file.write(LARGE[:100])
        with path.open("r+b") as other:
            other.write(b"x")

    found = Manifest.describe(tmp_path, kind="exports", key="k", key_parts={}, label="")

    assert {record.sha256 for record in found.files.values()} == {hashlib.sha256(b"x" + LARGE[1:100]).hexdigest()}


def test_a_file_that_could_not_be_written_to_its_end_is_removed(tmp_path):
    def parts():
        yield LARGE
        raise OSError("full")

    with pytest.raises(OSError, match="full"), digests.DigestingFile(tmp_path / "weights.bin") as file:
        file.writelines(parts())

    assert not (tmp_path / "weights.bin").exists()
