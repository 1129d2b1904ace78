"""`qeff batch` killed again and again: whether the output is complete in the end, with each row once.

    python benchmarks/batch_kills.py ARTIFACT [--engine local|ray] [--victim command|replica] [--kills 10] [--rows 600] [--seed 0]

Answers the rows once without a kill, with the local engine: that is what is right, and how long it takes. Then the command, or
one replica of Ray, gets SIGKILL at random times, and the command is started again until the output is complete. An output that is
complete before there were enough kills is checked, and another one is begun. The exit code is 1 when a row is missing, is there
twice, or has another answer. Ray needs the extra `ray`; the package psutil is needed in any case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

#: Rows that a replica gets at a time.
BATCH_SIZE = 10


@dataclass
class Outputs:
    """What is found in the outputs."""

    complete: int = 0
    missing: int = 0
    twice: int = 0
    different: int = 0

    def check(self, target: Path, expected: dict[int, Any]) -> None:
        """Counts the rows of an output."""
        found = [json.loads(line) for line in target.read_text().splitlines()]
        counts = Counter(line["row"] for line in found)
        self.complete += 1
        self.missing += len(expected.keys() - counts.keys())
        self.twice += sum(count - 1 for count in counts.values())
        self.different += sum(line != expected.get(line["row"]) for line in found)


def main() -> int:
    """Kills, counts, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", help="a compiled causal language model with a tokenizer")
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--victim", choices=["command", "replica"], default="command")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.victim == "replica" and arguments.engine != "ray":
        parser.error("--victim replica needs --engine ray")

    rng = random.Random(arguments.seed)
    options = ["--engine", "ray", "--replicas", "2", "--batch-size", str(BATCH_SIZE)]
    options = options if arguments.engine == "ray" else []
    outputs, kills, begun = Outputs(), 0, 0
    with tempfile.TemporaryDirectory() as directory:
        source, plain = Path(directory) / "in.jsonl", Path(directory) / "expected.jsonl"
        write_rows(source, arguments.rows)
        expected, startup, work = undisturbed(arguments.artifact, source, plain)
        print(f"without a kill: {len(expected)} rows, the first after {startup:.1f} s, all {work:.1f} s later")
        if arguments.engine == "ray":
            _, startup, work = undisturbed(arguments.artifact, source, Path(directory) / "ray.jsonl", *options)
            print(f"with Ray: the first after {startup:.1f} s, all {work:.1f} s later")
        while kills < arguments.kills:
            target = Path(directory) / f"out{begun}.jsonl"
            begun += 1
            complete = False
            while not complete:
                with started(arguments.artifact, source, target, *options) as process:
                    while process.poll() is None and kills < arguments.kills:
                        # Most come while rows are answered, some while the program is loaded.
                        after = rng.uniform(0, startup + work)
                        if ends_within(process, after):
                            break
                        victim = process.pid if arguments.victim == "command" else replica(process, rng)
                        if victim is None:
                            continue
                        kill(victim, process.pid)
                        kills += 1
                        print(
                            f"kill {kills}: {after:.2f} s after the one before or the start, {lines(target)} rows there"
                        )
                    complete = process.wait() == 0
                    if not complete and kills >= arguments.kills and process.returncode != -signal.SIGKILL:
                        raise SystemExit(f"the command ended with {process.returncode}")
            outputs.check(target, expected)
    print(
        f"{kills} kills of a {arguments.victim} ({arguments.engine}); {outputs.complete} outputs of {len(expected)} rows each"
    )
    print(f"rows missing: {outputs.missing}; there twice: {outputs.twice}; with another answer: {outputs.different}")
    return int(bool(outputs.missing or outputs.twice or outputs.different))


def write_rows(source: Path, count: int) -> None:
    """Prompts of token ids and lengths of answers, mixed; each row is another one."""
    rng = random.Random(1)
    rows = [
        {"prompt": [rng.randrange(4, 60) for _ in range(2 + number % 9)], "max_new_tokens": 20 + number % 30}
        for number in range(count)
    ]
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def started(artifact: str, source: Path, target: Path, *options: str) -> subprocess.Popen[bytes]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "qeff_framework", "-q", "batch", source, target, "--artifact", artifact, *options]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)


def undisturbed(artifact: str, source: Path, target: Path, *options: str) -> tuple[dict[int, Any], float, float]:
    """The lines by row, the seconds until the first one, and those from there to the end."""
    begun = time.perf_counter()
    with started(artifact, source, target, *options) as process:
        while process.poll() is None and not lines(target):
            time.sleep(0.02)
        first = time.perf_counter()
        if process.wait() != 0:
            raise SystemExit(f"the command failed without a kill: status {process.returncode}")
    found = [json.loads(line) for line in target.read_text().splitlines()]
    return {line["row"]: line for line in found}, first - begun, time.perf_counter() - first


def lines(target: Path) -> int:
    """Complete lines of an output."""
    return target.read_bytes().count(b"\n") if target.exists() else 0


def ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Waits that long for the end of the command."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def replica(process: subprocess.Popen[bytes], rng: random.Random) -> int | None:
    """The process of one of Ray's actors that hold the program."""
    pids = [child.pid for child in psutil.Process(process.pid).children(recursive=True) if is_replica(child)]
    return rng.choice(pids) if pids else None


def is_replica(process: psutil.Process) -> bool:
    """Whether a process, which may have ended, is an actor that holds the program."""
    try:
        return "Replica" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def kill(victim: int, command: int) -> None:
    """SIGKILL. The replicas that a killed command leaves behind must end by themselves; Ray's other processes are ended here."""
    ours = psutil.Process(command).children(recursive=True) if victim == command else []
    replicas = [process for process in ours if is_replica(process)]
    psutil.Process(victim).send_signal(signal.SIGKILL)
    left = psutil.wait_procs(replicas, timeout=60)[1]
    if left:
        raise SystemExit(f"{len(left)} replicas outlived the command by 60 s")
    for process in ours:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ours, timeout=10)


if __name__ == "__main__":
    raise SystemExit(main())
