from __future__ import annotations

import json
import os
import shutil

import pytest

from qeff_framework.artifacts import Manifest, ProblemKind, cache_key, manifest, open_artifact, verify
from qeff_framework.errors import ArtifactCorruptError, ArtifactError


@pytest.fixture
def artifact(get):
    return get().path


def truncate(path):
    with (path / "program.bin").open("r+b") as file:
        file.truncate(1000)


def alter(path):
    with (path / "program.bin").open("r+b") as file:
        file.seek(500)
        file.write(b"????")


def grow(path):
    with (path / "program.bin").open("ab") as file:
        file.write(b"?")


def link_away(path):
    target = path.parent / "elsewhere.bin"
    (path / "program.bin").rename(target)
    (path / "program.bin").symlink_to(target)


def link_the_folder_away(path):
    (path / "tokenizer").rename(path.parent / "elsewhere")
    (path / "tokenizer").symlink_to(path.parent / "elsewhere")


def edit(change):
    def apply(path):
        content = json.loads((path / "manifest.json").read_text())
        change(content)
        (path / "manifest.json").write_text(json.dumps(content))

    return apply


def list_as(name):
    return edit(lambda content: content["files"].update({name: content["files"].pop("program.bin")}))


DAMAGE = {
    "truncated": (truncate, ProblemKind.TRUNCATED, "program.bin is truncated: 1000 of 102400 bytes"),
    "grown": (grow, ProblemKind.GROWN, "program.bin has grown: 102401 bytes instead of 102400"),
    "altered": (alter, ProblemKind.ALTERED, r"program.bin was altered: its SHA-256 is \w{16}... instead of \w{16}..."),
    "missing": (lambda path: (path / "program.bin").unlink(), ProblemKind.MISSING, "program.bin is missing"),
    "folder missing": (
        lambda path: shutil.rmtree(path / "tokenizer"),
        ProblemKind.MISSING,
        "tokenizer/tokenizer.json is missing",
    ),
    "file is a link": (link_away, ProblemKind.NOT_A_FILE, "program.bin is not a regular file"),
    "folder is a link": (link_the_folder_away, ProblemKind.NOT_A_FILE, "is behind a link"),
    "manifest is no JSON": (
        lambda path: (path / "manifest.json").write_text('{"format": 1, "fi'),
        ProblemKind.BROKEN_MANIFEST,
        "manifest.json is not valid JSON",
    ),
    "manifest of something else": (
        lambda path: (path / "manifest.json").write_text("[]"),
        ProblemKind.BROKEN_MANIFEST,
        "manifest.json is not the manifest of an artifact",
    ),
    "manifest lacks a field": (
        edit(lambda content: content.pop("files")),
        ProblemKind.BROKEN_MANIFEST,
        "manifest.json lacks or misnames a field: 'files'",
    ),
    "manifest with a wrong type": (
        edit(lambda content: content["files"]["program.bin"].update(size="9")),
        ProblemKind.BROKEN_MANIFEST,
        "'size' is not int",
    ),
    "name above": (list_as("../x"), ProblemKind.UNSAFE_NAME, r"lists '../x', which could lie outside"),
    "name above, hidden": (list_as("a/../../x"), ProblemKind.UNSAFE_NAME, "could lie outside"),
    "absolute name": (list_as("/etc/hostname"), ProblemKind.UNSAFE_NAME, "could lie outside"),
    "foreign separator": (list_as("..\\x"), ProblemKind.UNSAFE_NAME, "could lie outside"),
}


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_found_at_load_and_named(artifact, damage, kind, message):
    assert verify(artifact) == []
    damage(artifact)
    assert [problem.kind for problem in verify(artifact)] == [kind]
    assert [problem.kind for problem in verify(artifact, full=True) if problem.kind != ProblemKind.UNLISTED] == [kind]
    with pytest.raises(ArtifactCorruptError, match=message) as caught:
        open_artifact(artifact)
    assert str(artifact) in str(caught.value)
    assert "Delete the directory and build the artifact again" in str(caught.value)


def test_no_manifest_and_an_unknown_format_are_not_called_corrupt(artifact, tmp_path):
    edit(lambda content: content.update(format=2))(artifact)
    with pytest.raises(ArtifactError, match="has format 2, and this qeff-framework reads format 1: upgrade") as caught:
        open_artifact(artifact)
    assert not isinstance(caught.value, ArtifactCorruptError)
    for path in (tmp_path, tmp_path / "absent", artifact / "program.bin"):
        with pytest.raises(ArtifactError, match="this is not a directory that qeff has published") as caught:
            open_artifact(path)
        assert not isinstance(caught.value, ArtifactCorruptError)


def alter_under_the_old_time(path):
    times = (path / "program.bin").stat()
    alter(path)
    os.utime(path / "program.bin", ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def large(monkeypatch):
    """Counts ``program.bin`` among the files that are too large to be read each time."""
    monkeypatch.setattr(manifest, "ALWAYS_READ_BYTES", 1000)


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_change_under_the_old_size_and_time_is_found(artifact, size, request):
    if size == "large":
        request.getfixturevalue("large")
    alter_under_the_old_time(artifact)
    assert [problem.kind for problem in verify(artifact)] == [ProblemKind.ALTERED]
    assert [problem.kind for problem in verify(artifact, full=True)] == [ProblemKind.ALTERED]


def test_only_reading_every_file_finds_it_in_a_copy(artifact, tmp_path, large):
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)  # keeps the modification times
    alter_under_the_old_time(copy)
    assert verify(copy) == []
    assert [problem.kind for problem in verify(copy, full=True)] == [ProblemKind.ALTERED]


def test_of_an_untouched_artifact_only_small_files_are_read(artifact, monkeypatch, large):
    read = []
    real = manifest.file_sha256
    monkeypatch.setattr(manifest, "file_sha256", lambda path: read.append(path.name) or real(path))
    open_artifact(artifact)
    assert sorted(read) == ["compiled.json", "tokenizer.json"]
    os.utime(artifact / "program.bin")
    open_artifact(artifact)
    assert sorted(read) == ["compiled.json", "compiled.json", "program.bin", "tokenizer.json", "tokenizer.json"]


def test_a_manifest_of_an_earlier_version_is_read(artifact, large):
    edit(lambda content: [record.pop(name) for record in content["files"].values() for name in ("ctime_ns", "inode")])(
        artifact
    )
    assert open_artifact(artifact).intact
    alter(artifact)
    assert [problem.kind for problem in verify(artifact)] == [ProblemKind.ALTERED]


@pytest.mark.parametrize("copy", [shutil.copy, shutil.copy2], ids=["new times", "old times"])
def test_a_copy_elsewhere_is_the_same_artifact(artifact, tmp_path, copy):
    shutil.copytree(artifact, tmp_path / "copy", copy_function=copy)
    before = open_artifact(artifact)
    shutil.rmtree(artifact)
    assert verify(tmp_path / "copy", full=True) == []
    opened = open_artifact(tmp_path / "copy")
    assert (opened.key, opened.label, opened.created, opened.intact) == (before.key, before.label, before.created, True)
    assert str(artifact) not in (tmp_path / "copy/manifest.json").read_text()


def test_unlisted_files_are_no_obstacle_and_are_reported_by_the_full_check(artifact):
    (artifact / "log.txt").write_text("written by a run")
    assert open_artifact(artifact).intact
    assert [str(problem) for problem in verify(artifact, full=True)] == ["log.txt is not listed in the manifest"]
    with pytest.raises(ArtifactCorruptError, match="log.txt is not listed"):
        open_artifact(artifact, full=True)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer/chat_template.jinja"])
def test_unlisted_files_that_would_be_read_are_an_obstacle(artifact, name):
    (artifact / name).write_text("{}")
    with pytest.raises(ArtifactCorruptError, match=f"{name} is not listed in the manifest"):
        open_artifact(artifact)


def test_fields_that_a_reader_does_not_know_are_ignored(artifact):
    edit(lambda content: content.update(comment="from a later version"))(artifact)
    edit(lambda content: content["files"]["program.bin"].update(compression="none"))(artifact)
    assert open_artifact(artifact).intact


def test_the_manifest_says_what_the_artifact_is(artifact, contents):
    loaded = Manifest.load(artifact)
    parts = {"model": "m", "ctx_len": 128}
    assert (loaded.kind, loaded.label, loaded.key, loaded.key_parts) == (
        "compiled",
        "org/model",
        cache_key(parts),
        parts,
    )
    assert {name: record.sha256 for name, record in loaded.files.items()} == {
        name: digest for name, digest in contents(artifact).items() if name != "manifest.json"
    }
    raw = json.loads((artifact / "manifest.json").read_text())
    assert set(raw) == {"format", "kind", "key", "key_parts", "label", "created", "files", "core_version"}
    assert raw["created"].endswith("+00:00")


def write_link(directory):
    (directory / "file").write_bytes(b"x")
    (directory / "link").symlink_to(directory / "file")


def write_linked_folder(directory):
    (directory / "file").write_bytes(b"x")
    (directory / "link").symlink_to(directory.parent)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda directory: None, "no file was written"),
        (
            lambda directory: (directory / "manifest.json").write_text("{}"),
            "manifest.json cannot be part of an artifact",
        ),
        (lambda directory: (directory / "a\\b").write_text(""), "cannot be part of an artifact"),
        (lambda directory: (directory / "a\nb").write_text(""), r"'a\\nb' cannot be part of an artifact"),
        (lambda directory: (directory / "a\udcff").write_text(""), r"'a\\udcff' cannot be part of an artifact"),
        (lambda directory: os.mkfifo(directory / "pipe"), "pipe cannot be part of an artifact"),
        (write_link, "link cannot be part of an artifact"),
        (write_linked_folder, "link cannot be part of an artifact"),
    ],
    ids=["nothing", "manifest", "separator", "newline", "no UTF-8", "pipe", "link", "linked folder"],
)
def test_what_an_artifact_cannot_carry_is_refused_when_it_is_built(get, store, build, message):
    with pytest.raises(ArtifactError, match=message):
        get(builder=build)
    assert list(store.list()) == []
    assert list((store.root / "staging").iterdir()) == []
