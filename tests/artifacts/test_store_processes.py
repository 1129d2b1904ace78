"""The promises of the store between processes, and when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qeff_framework.artifacts import Store, cache_key, open_artifact, verify
from qeff_framework.errors import ArtifactError

PARTS = {"model": "slow"}


@pytest.fixture
def start(tmp_path):
    """Starts ``builder_process.py``; what still runs at the end of the test is killed."""
    running = []

    def run(seconds: float, *destination: Path) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("builder_process.py")
        process = subprocess.Popen(
            [sys.executable, "-W", "error", script, tmp_path / "home", str(seconds), *destination],
            env={**os.environ, "PYTHONPATH": str(script.parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(params=["in the store", "at a destination"])
def place(request, tmp_path):
    """The destination argument, and the directory in which unfinished work lies."""
    if request.param == "in the store":
        return (), tmp_path / "home/staging"
    return (tmp_path / "out/model",), tmp_path / "out"


def result(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    return json.loads(out.splitlines()[-1])


def unfinished(directory):
    return [path for path in directory.iterdir() if len(path.name) >= 32 and path.is_dir()]


def test_two_processes_build_once(start, place):
    destination, staging = place
    first = start(1.0, *destination)
    assert first.stdout.readline() == "building\n"
    second = start(1.0, *destination)
    assert second.stdout.readline() == "waiting\n"
    done = [result(first), result(second)]
    assert [(item["built"], item["waits"]) for item in done] == [(True, 0), (False, 1)]
    assert done[0]["path"] == done[1]["path"]
    assert verify(Path(done[0]["path"]), full=True) == []
    assert unfinished(staging) == []


def test_processes_that_start_together_build_once(start, place):
    destination, _ = place
    processes = [start(0.3, *destination) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert sorted("building" in output for output in outputs) == [False, True]
    done = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert sorted(item["built"] for item in done) == [False, True]
    assert verify(Path(done[0]["path"]), full=True) == []


def test_a_killed_builder_leaves_nothing_that_could_be_taken_for_a_result(start, place, tmp_path):
    destination, staging = place
    killed = start(60, *destination)
    assert killed.stdout.readline() == "building\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=60)
    assert list(Store(tmp_path / "home").list()) == []
    (left,) = unfinished(staging)
    assert [path.name for path in left.iterdir()] == ["first.bin"]
    with pytest.raises(ArtifactError):
        open_artifact(left)

    done = result(start(0, *destination))
    assert (done["built"], done["waits"]) == (True, 0)
    assert verify(Path(done["path"]), full=True) == []
    assert unfinished(staging) == []
    assert not list(staging.glob("*.lock"))


def test_a_waiter_takes_over_from_a_killed_builder(start, place):
    destination, staging = place
    first = start(60, *destination)
    assert first.stdout.readline() == "building\n"
    second = start(0, *destination)
    assert second.stdout.readline() == "waiting\n"
    first.kill()
    done = result(second)
    assert (done["built"], done["waits"]) == (True, 1)
    assert unfinished(staging) == []


def test_the_work_of_a_living_builder_is_not_swept(start, tmp_path):
    store = Store(tmp_path / "home")
    builder = start(1.5)
    assert builder.stdout.readline() == "building\n"
    assert store.sweep() == []
    assert len(unfinished(store.root / "staging")) == 1
    other = store.get_or_build(
        "compiled", "other", cache_key({"o": 1}), {"o": 1}, lambda path: (path / "f").write_text("x")
    )
    assert other.built
    assert result(builder)["built"]


def test_an_artifact_that_is_being_replaced_is_not_removed(start, tmp_path):
    store = Store(tmp_path / "home")
    artifact = result(start(0))
    held = store.root / "locks" / f"compiled-{cache_key(PARTS)[:16]}.lock"
    code = (
        "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, held], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match="is not removed: another process is building it"):
            store.remove("slow")
        assert verify(Path(artifact["path"])) == []
    finally:
        holder.kill()
        holder.communicate()
    store.remove("slow")
    assert not Path(artifact["path"]).exists()
