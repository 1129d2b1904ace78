"""Ray itself: `make scale` installs it; `make test` does without. Replicas use a tiny program of ort_sim."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serving.processes import environment, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: `make scale` runs these tests"),
]

ROWS = [{"prompt": f"w{n % 50} w{n * 7 % 50}", "max_new_tokens": 30 + n % 20} for n in range(600)]


def batch(home: Path, artifact: Path, source: Path, target: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "qeff_framework", "batch", source, target, "--artifact", artifact, *options]
    return subprocess.Popen([str(part) for part in command], env=environment(home), stderr=subprocess.DEVNULL)


def lines(path: Path) -> dict[int, Any]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["row"] for line in found}) == len(found)
    return {line["row"]: line for line in found}


def replicas(process: psutil.Process) -> Iterator[psutil.Process]:
    for child in process.children(recursive=True):
        try:
            if "Replica" in " ".join(child.cmdline()):
                yield child
        except psutil.NoSuchProcess:
            continue


@pytest.mark.parametrize("killed", ["a replica", "the command"])
def test_what_is_killed_leaves_no_row_out_and_none_twice(
    killed: str, home: Path, artifact: Path, tmp_path: Path
) -> None:
    source, target, expected = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "expected.jsonl"))
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert batch(home, artifact, source, expected).wait(300) == 0
    options = ("--engine", "ray", "--replicas", "2", "--batch-size", "10")
    rng, kills = random.Random(0), 0
    process = batch(home, artifact, source, target, *options)
    try:
        while process.poll() is None:
            time.sleep(rng.uniform(0.3, 1))
            if kills == 2:
                continue
            if killed == "a replica":
                for replica in list(replicas(psutil.Process(process.pid)))[:1]:
                    replica.send_signal(signal.SIGKILL)
                    kills += 1
            elif target.exists() and target.stat().st_size > 0:
                ours = list(replicas(psutil.Process(process.pid)))
                process.kill()
                process.wait()
                kills += 1
                # Rows arrive while others are computed, also with as many replicas as processors.
                assert target.read_bytes().count(b"\n") < len(ROWS)
                assert psutil.wait_procs(ours, timeout=60)[1] == []
                process = batch(home, artifact, source, target, *options)
                before = target.stat().st_size
                while process.poll() is None and target.stat().st_size == before:
                    time.sleep(0.1)
    finally:
        process.kill()
    assert kills
    assert process.wait() == 0
    assert lines(target) == lines(expected)


def test_columns_are_kept_and_a_url_is_fetched(home: Path, artifact: Path) -> None:
    done = run(home, "-m", "tests.scale.replicas", "columns", str(artifact), RAY_USAGE_STATS_ENABLED="0")
    answered, fetched = (
        json.loads(line.lower() if line in ("True", "False") else line) for line in done.stdout.splitlines()[-2:]
    )
    assert fetched is True
    assert [row["id"] for row in answered] == [7, 8, 9]
    assert [len(row["token_ids"] or []) for row in answered] == [4, 3, 0]
    assert [row["error"] for row in answered] == [None, None, 'a row is an object with either "prompt" or "messages"']


def test_replicas_behind_ray_serve_speak_to_openais_client(home: Path, artifact: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"TEST_KEY": "sesame", "RAY_USAGE_STATS_ENABLED": "0"}
    done = run(home, "-m", "tests.scale.replicas", "http", str(artifact), str(port), **variables)
    (found,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    alone = run(
        home, "-m", "qeff_framework", "generate", str(artifact), "--prompt", "w5 w9", "--max-new-tokens", "4", "--json"
    )
    assert found["text"] == found["streamed"] == json.loads(alone.stdout)["results"][0]["text"]
    assert "temperature" in found["refused"]["message"]
    assert found["key"] == 401
