from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qeff_framework.artifacts import ProblemKind, Store, cache_key, open_artifact, store_root, verify
from qeff_framework.artifacts import disk as disk_module
from qeff_framework.artifacts import store as store_module
from qeff_framework.errors import ArtifactError


def nothing_unfinished(store: Store) -> bool:
    return list((store.root / "staging").iterdir()) == []


# --- where it lies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"QEFF_HOME": "/data/qeff", "XDG_CACHE_HOME": "/cache"}, "/data/qeff"),
        ({"QEFF_HOME": "", "XDG_CACHE_HOME": "/cache"}, "/cache/qeff"),
        ({"QEFF_HOME": "~/models"}, "/home/me/models"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/qeff"),
        ({}, "/home/me/.cache/qeff"),
    ],
)
def test_the_root_is_read_from_the_environment_when_it_is_needed(monkeypatch, environment, expected):
    store = Store()
    for name in ("QEFF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert store.root == store_root() == Path(expected)


# --- building and finding ---------------------------------------------------------------------------------------------


def test_an_artifact_is_built_once_and_found_again(get, store, builder):
    first, second = get(), get()
    assert (first.built, second.built, builder.calls) == (True, False, 1)
    assert first.path == second.path == store.path_of("compiled", "org/model", first.key)
    assert first.path == store.root / "compiled" / f"org-model-{first.key[:16]}"
    assert verify(first.path, full=True) == []
    assert nothing_unfinished(store)


@pytest.mark.parametrize("chosen", [False, True], ids=["in the store", "at a destination"])
def test_a_rebuild_replaces_what_is_there_once_it_is_complete(store, tmp_path, chosen):
    key, destination = cache_key({"model": "x"}), tmp_path / "chosen" if chosen else None

    def built(text: str, *, fails: bool = False, rebuild: bool = True) -> Path:
        def build(directory: Path) -> None:
            (directory / "program").write_text(text)
            if fails:
                raise ArtifactError("no")

        artifact = store.get_or_build("compiled", "m", key, {"model": "x"}, build, destination, rebuild=rebuild)
        return artifact.path / "program"

    program = built("first")
    assert built("second", rebuild=False).read_text() == "first"
    with pytest.raises(ArtifactError, match="no"):
        built("second", fails=True)
    assert program.read_text() == "first"
    assert built("second") == program
    assert program.read_text() == "second"
    assert verify(program.parent, full=True) == []
    assert nothing_unfinished(store)
    assert [path.name for path in tmp_path.glob("chosen*")] == ["chosen"] * chosen


def test_the_key_decides_and_the_label_does_not(get, builder):
    same = [get(label="gpt2"), get(label="openai/gpt2")]
    other = [get({"model": "other"}), get(kind="exports")]
    assert [item.built for item in (*same, *other)] == [True, False, True, True]
    assert len({item.path for item in (*same, *other)}) == builder.calls == 3


@pytest.mark.parametrize("label", ["../../etc", "", "...", "a b/c:d", "ünïcode", "x" * 500])
def test_any_label_gives_a_directory_in_its_place(get, store, label):
    artifact = get(label=label)
    assert artifact.path.parent == store.root / "compiled"
    assert not artifact.path.name.startswith(".")
    assert (artifact.label, [item.label for item in store.list()]) == (label, [label])


@pytest.mark.parametrize(
    ("kind", "key"), [("../x", "0" * 64), ("staging", "0" * 64), ("compiled", "../x"), ("", "0" * 64)]
)
def test_kinds_and_keys_that_are_no_names_are_refused(store, builder, kind, key):
    with pytest.raises(ArtifactError, match=r"the (kind|key) of an artifact must match|cannot be a kind of artifact"):
        store.get_or_build(kind, "label", key, {}, builder)
    assert builder.calls == 0


def test_a_builder_may_ask_the_store_for_what_it_needs(get, builder):
    inner = []

    def outer(directory):
        inner.append(get({"inner": 1}))
        assert directory.is_dir()
        (directory / "file").write_bytes(b"x")

    artifact = get(builder=outer)
    assert artifact.built
    assert inner[0].built
    assert builder.calls == 1


def test_threads_that_want_the_same_artifact_build_it_once(get):
    calls, waits, results = [], [], []

    def slow(directory):
        calls.append(1)
        time.sleep(0.3)
        (directory / "file").write_bytes(b"x")

    threads = [
        threading.Thread(target=lambda: results.append(get(builder=slow, on_wait=lambda: waits.append(1)).built))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(calls), len(waits), sorted(results)) == (1, 2, [False, False, True])


def test_an_intact_artifact_is_found_in_a_root_that_cannot_be_written_to(get, store, builder):
    get()
    for name in ("locks", "staging"):
        shutil.rmtree(store.root / name)
        (store.root / name).write_text("a file where a directory is needed")
    assert not get().built
    with pytest.raises(ArtifactError, match="QEFF_HOME"):
        get({"another": 1})
    assert builder.calls == 1


def test_files_keep_usual_permissions(get):
    umask = os.umask(0o022)
    try:
        artifact = get()
    finally:
        os.umask(umask)
    assert artifact.path.stat().st_mode & 0o777 == 0o755
    assert (artifact.path / "manifest.json").stat().st_mode & 0o777 == 0o644


# --- damage -----------------------------------------------------------------------------------------------------------


def shorten(path):
    with (path / "program.bin").open("r+b") as file:
        file.truncate(7)


def rewrite(path):
    with (path / "program.bin").open("r+b") as file:
        file.write(b"????")


DAMAGE = {
    "truncated": shorten,
    "altered": rewrite,
    "missing": lambda path: (path / "program.bin").unlink(),
    "manifest missing": lambda path: (path / "manifest.json").unlink(),
    "manifest broken": lambda path: (path / "manifest.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_artifact_is_built_again_with_a_warning(get, store, builder, caplog, damage):
    artifact = get()
    damage(artifact.path)
    with caplog.at_level(logging.WARNING, logger="qeff_framework"):
        again = get(label="another label")
    assert (again.built, builder.calls) == (True, 2)
    assert verify(again.path, full=True) == []
    assert [item.path for item in store.list()] == [again.path]
    assert nothing_unfinished(store)
    (record,) = caplog.records
    assert str(artifact.path) in record.getMessage()
    assert "is removed and built again from its source" in record.getMessage()


def test_another_key_with_the_same_beginning_is_not_taken_for_this_artifact(store, builder):
    keys = ["0" * 16 + "1" * 48, "0" * 16 + "2" * 48]
    assert store.get_or_build("compiled", "m", keys[0], {}, builder).built
    assert store.get_or_build("compiled", "m", keys[1], {}, builder).key == keys[1]
    assert builder.calls == 2


# --- failures ---------------------------------------------------------------------------------------------------------


class RefusedError(Exception):
    pass


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=5),
    stop=st.integers(0, 5),
    error=st.sampled_from([RefusedError(), KeyboardInterrupt(), SystemExit(1), OSError(errno.ENOENT, "gone")]),
    outside=st.booleans(),
)
def test_a_builder_that_raises_anywhere_leaves_nothing(store, tmp_path, sizes, stop, error, outside):
    parts = {"sizes": sizes, "stop": stop, "outside": outside}
    destination = tmp_path / "deep/er/out" if outside else None

    def build(directory):
        for index, size in enumerate(sizes):
            if index == stop:
                raise error
            (directory / f"dir{index}").mkdir()
            (directory / f"dir{index}" / "file").write_bytes(b"x" * size)
        raise error

    with pytest.raises(type(error)) as caught:
        store.get_or_build("compiled", "m", cache_key(parts), parts, build, destination=destination)
    assert caught.value is error
    assert list(store.list()) == []
    assert nothing_unfinished(store)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert list((store.root / "compiled").rglob("*") if not outside else []) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("moment", ["build", "publish"])
def test_a_full_disk_is_explained_and_leaves_nothing(get, store, monkeypatch, builder, code, moment):
    def full(*args):
        raise OSError(code, os.strerror(code))

    if moment == "publish":
        monkeypatch.setattr(store_module, "sync_tree", full)
    with pytest.raises(ArtifactError, match=r"cannot .* compiled/org-model.*Free some space") as caught:
        get(builder=full if moment == "build" else builder)
    assert isinstance(caught.value.__cause__, OSError)
    assert list(store.list()) == []
    assert nothing_unfinished(store)


def test_a_root_whose_name_is_no_text_is_refused(monkeypatch):
    monkeypatch.setenv("QEFF_HOME", "/tmp/\udcff")
    with pytest.raises(ArtifactError, match=r"store b'/tmp/\\xff' has a name that is no UTF-8. Set QEFF_HOME"):
        store_root()


def test_a_root_that_is_a_file_is_not_an_empty_store(tmp_path, monkeypatch, store):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "file"))
    with pytest.raises(ArtifactError, match=r"cannot list the artifact store .*file: .*Not a directory.*Set QEFF_HOME"):
        store.list()


def test_a_root_that_cannot_be_created_is_named_before_any_work(tmp_path, monkeypatch, get, builder, store):
    (tmp_path / "file").write_text("not a directory")
    root = tmp_path / "file/home"
    monkeypatch.setenv("QEFF_HOME", str(root))
    with pytest.raises(ArtifactError, match="QEFF_HOME") as caught:
        get()
    assert str(root) in str(caught.value)
    with pytest.raises(ArtifactError, match="QEFF_HOME"):
        get(destination=tmp_path / "out")
    assert builder.calls == 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert list(store.list()) == []


def test_everything_is_on_the_disk_before_it_is_published(get, store, monkeypatch):
    steps = []
    synced_tree, synced = store_module.sync_tree, store_module.sync

    def sync_tree(directory):
        steps.append(("tree", sorted(path.name for path in directory.iterdir()), len(store.list())))
        synced_tree(directory)

    def sync(path):
        steps.append((path.name, path.exists(), len(store.list())))
        synced(path)

    monkeypatch.setattr(store_module, "sync_tree", sync_tree)
    monkeypatch.setattr(store_module, "sync", sync)
    artifact = get()
    [tree, manifest, directory, parent] = steps
    assert tree == ("tree", ["compiled.json", "program.bin", "tokenizer"], 0)
    # The manifest, and that it stands in the directory, follow when all that it lists is there.
    assert manifest == ("manifest.json", True, 0)
    assert directory[1:] == (True, 0)
    assert parent == (artifact.path.parent.name, True, 1)


@pytest.mark.parametrize("is_told", [False, True])
def test_large_files_go_to_the_disk_while_they_are_written(get, store, monkeypatch, builder, is_told):
    synced, forced = threading.Event(), disk_module.sync

    def sync(path):
        if path.name == "program.bin" and not synced.is_set():
            synced.set()
            if is_told:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        forced(path)

    def building(directory):
        builder(directory)
        assert synced.wait(30)

    monkeypatch.setattr(disk_module, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(disk_module, "_GROWN_BYTES", 1)
    monkeypatch.setattr(disk_module, "sync", sync)
    if not is_told:
        assert get(builder=building).path.is_dir()
        return
    # A second attempt to force the file would succeed: the system has told its error.
    with pytest.raises(ArtifactError, match=r"cannot publish .*Input/output error"):
        get(builder=building)
    assert list(store.list()) == []
    assert nothing_unfinished(store)


# --- destination ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [False, True])
def test_an_artifact_is_published_at_the_destination(get, store, builder, tmp_path, exists):
    out = tmp_path / "results/model"
    if exists:
        out.mkdir(parents=True)
    artifact = get(destination=out)
    assert (artifact.path, artifact.built) == (out, True)
    assert verify(out, full=True) == []
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    assert (get(destination=out).built, builder.calls) == (False, 1)
    assert list(store.list()) == []


def test_a_link_to_a_directory_is_followed(get, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert get(destination=tmp_path / "link").path == tmp_path / "real"
    assert (tmp_path / "link").is_symlink()
    assert open_artifact(tmp_path / "link").intact


def put_a_file(out, get):
    out.mkdir()
    (out / "thesis.txt").write_text("mine")


def put_another_artifact(out, get):
    get({"another": 1}, destination=out)


def put_it_damaged(out, get):
    get(destination=out)
    shorten(out)


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (put_a_file, "not empty and does not hold this artifact"),
        (put_another_artifact, "manifest.json belongs to compiled 'org/model' with the key"),
        (put_it_damaged, "program.bin is truncated: 7 of 102400 bytes"),
        (lambda out, get: out.write_text("a file"), "Not a directory"),
    ],
    ids=["file", "another artifact", "damaged", "not a directory"],
)
def test_what_lies_at_the_destination_is_not_touched(get, builder, tmp_path, contents, put, message):
    out = tmp_path / "out"
    put(out, get)
    before, calls = contents(tmp_path), builder.calls
    with pytest.raises(ArtifactError, match=message) as caught:
        get(destination=out)
    assert str(out) in str(caught.value)
    assert "hoose another directory" in str(caught.value)
    assert (contents(tmp_path), builder.calls) == (before, calls)


def test_what_appears_at_the_destination_meanwhile_is_not_overwritten(get, tmp_path):
    out = tmp_path / "out"

    def build(directory):
        (directory / "file").write_bytes(b"x")
        out.mkdir()
        (out / "thesis.txt").write_text("mine")

    with pytest.raises(ArtifactError, match="cannot publish"):
        get(builder=build, destination=out)
    assert (out / "thesis.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"]


def test_what_publishing_would_refuse_is_refused_before_the_work(get, store, tmp_path, monkeypatch):
    program = get(destination=tmp_path / "program")
    (tmp_path / "empty").mkdir()
    for usable in ("program", "empty", "new/deep"):
        store.check_destination("compiled", tmp_path / usable)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    for place, kind, message in (
        ("program", "exports", "belongs to compiled, not to exports"),
        ("file", "compiled", "is not a directory"),
        ("file/below", "compiled", "is not a directory"),
        ("", "compiled", "not empty and does not hold this artifact"),
    ):
        with pytest.raises(ArtifactError, match=message):
            store.check_destination(kind, tmp_path / place)
    store.check_destination("compiled", tmp_path / "program", program.key)
    with pytest.raises(ArtifactError, match=f"with the key {program.key[:16]}"):
        store.check_destination("compiled", tmp_path / "program", cache_key({"another": 1}))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ArtifactError, match="is not writable"):
        store.check_destination("compiled", tmp_path / "new")
    monkeypatch.setattr(Path, "is_mount", lambda path: True)
    with pytest.raises(ArtifactError, match="mount point"):
        store.check_destination("compiled", tmp_path / "empty")


def test_an_empty_destination_is_published_to_where_a_rename_replaces_no_directory(get, tmp_path, monkeypatch):
    """As on Windows, simulated: there a rename onto a directory fails even if that is empty."""
    rename = Path.rename

    def rename_of_windows(path, target):
        if Path(target).exists():
            raise FileExistsError(errno.EEXIST, "file exists", str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_of_windows)
    (tmp_path / "out").mkdir()
    assert get(destination=tmp_path / "out").built
    assert verify(tmp_path / "out", full=True) == []


def test_a_mount_point_is_refused_before_any_work(get, builder, tmp_path, monkeypatch):
    (tmp_path / "mnt").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "mnt")
    with pytest.raises(ArtifactError, match=r"is a mount point.*Choose a directory below it"):
        get(destination=tmp_path / "mnt")
    assert builder.calls == 0
    assert get(destination=tmp_path / "mnt/model").built


# --- listing and removing ---------------------------------------------------------------------------------------------


def test_the_list_tells_what_there_is(get, store):
    assert list(store.list()) == []
    artifact = get()
    broken = get({"another": 1}, kind="exports", label="b")
    shorten(broken.path)
    unreadable = get({"third": 1}, label="c")
    (unreadable.path / "manifest.json").write_text("{")
    (store.root / "configs").mkdir()
    (store.root / "Architecture" / f"foreign-{'0' * 16}").mkdir(parents=True)
    found = {item.name: item for item in store.list()}
    assert set(found) == {artifact.name, broken.name, unreadable.name}
    assert [found[item.name].intact for item in (artifact, broken, unreadable)] == [True, False, False]
    assert found[unreadable.name].key == unreadable.key[:16]
    whole = found[artifact.name]
    assert (whole.kind, whole.label, whole.key, whole.path) == ("compiled", "org/model", artifact.key, artifact.path)
    assert whole.size == sum(path.stat().st_size for path in artifact.path.rglob("*") if path.is_file())
    assert timedelta(0) <= datetime.now(UTC) - whole.created < timedelta(minutes=5)


@pytest.mark.parametrize("use", [lambda get, path: get(), lambda get, path: open_artifact(path)])
def test_using_an_artifact_moves_its_last_use_and_nothing_else(get, store, use):
    artifact = get()
    os.utime(artifact.path / "manifest.json", (1_000_000, 1_000_000))
    assert store.list()[0].last_used == datetime.fromtimestamp(1_000_000, UTC)
    use(get, artifact.path)
    (item,) = store.list()
    assert datetime.now(UTC) - item.last_used < timedelta(minutes=5)
    assert item.created == artifact.created
    assert verify(artifact.path, full=True) == []


def test_verify_names_the_damaged_one(get, store):
    good, bad = get(), get({"another": 1})
    rewrite(bad.path)
    found = {artifact.path: [problem.kind for problem in problems] for artifact, problems in store.verify()}
    assert found == {good.path: [], bad.path: [ProblemKind.ALTERED]}


@pytest.mark.parametrize("selector", ["name", "kind/name", "label", "key", "beginning"])
def test_one_artifact_is_removed(get, store, selector):
    kept = get({"kept": 1}, label="kept")
    artifact = get()
    text = {
        "name": artifact.name,
        "kind/name": f"compiled/{artifact.name}",
        "label": "org/model",
        "key": artifact.key,
        "beginning": artifact.key[:12],
    }[selector]
    assert store.remove(text).path == artifact.path
    assert [item.path for item in store.list()] == [kept.path]
    assert nothing_unfinished(store)


def test_an_artifact_with_a_broken_manifest_can_be_removed(get, store):
    artifact = get()
    (artifact.path / "manifest.json").write_text("{")
    assert store.remove(artifact.key[:16]).intact is False
    assert list(store.list()) == []


@pytest.mark.parametrize("selector", ["", "zzz", "../compiled", "."])
def test_a_selector_that_fits_nothing_removes_nothing(get, store, selector):
    get()
    with pytest.raises(ArtifactError, match="qeff cache ls"):
        store.remove(selector)
    assert len(store.list()) == 1


def test_an_ambiguous_selector_lists_what_it_fits(store, builder, get):
    both = [store.get_or_build("compiled", "m", f"ab{digit}" + "0" * 61, {}, builder) for digit in "01"]
    with pytest.raises(ArtifactError, match="'ab' fits 2 artifacts") as caught:
        store.remove("ab")
    assert all(f"compiled/{item.name}" in str(caught.value) for item in both)
    assert len(store.list()) == 2
    store.remove("ab0")
    assert [item.key for item in store.list()] == [both[1].key]


def test_sweeping_removes_old_orphans_and_leaves_what_is_not_its_own(get, store):
    get()
    staging = store.root / "staging"
    old, young = staging / f"{'a' * 32}.lock", staging / f"{'b' * 32}.lock"
    for path in (old, young, staging / "notes.txt"):
        path.write_text("")
    os.utime(old, (1_000_000, 1_000_000))
    abandoned = staging / ("c" * 32)
    (abandoned / "sub").mkdir(parents=True)
    assert list(store.sweep()) == [abandoned]
    assert sorted(path.name for path in staging.iterdir()) == [young.name, "notes.txt"]
