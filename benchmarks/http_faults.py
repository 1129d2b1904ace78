"""Malformed requests against `qeff serve`: no status of 500 and above, no crash, no leak.

    python benchmarks/http_faults.py ARTIFACT [--requests 1000] [--slow 50] [--seed 0]

Serves the artifact by a process of its own. Schemathesis makes requests from the server's OpenAPI document, valid and invalid
ones; then come broken JSON, wrong UTF-8, numbers and nesting that JSON parsers stumble over, bodies above the limit (with their
length and in chunks), lengths that are not kept, broken request lines, clients that hang up, and clients that send a body one
byte at a time and stop. A program of images also gets messages whose images are none, a program of speech gets forms whose files
are none. The same completion is asked for before and after. The exit code is 1 when an answer had a status of 500 or above, when
the completion changed, when the server ended, or when it kept files, or more than 5 % of memory. Memory is counted from a warm-up
on, with a request of every malformed kind. The server runs with a fixed `MALLOC_MMAP_THRESHOLD_`: otherwise glibc
raises the threshold at each large body that is freed, puts the next ones on its heap, and returns them to the system when the top
of the heap happens to be free, so that the resident size swings by the largest bodies (24 to 37 MiB of heap were seen) without
anything being held. Needs the extra `serve`, and the packages schemathesis and psutil.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
from http_fault_files import FORM, data_url, form, message_with, picture, speech, wrong_images, wrong_sounds
from serve_load import serving

COMPLETION = {"model": "model", "prompt": [5, 6, 7], "max_tokens": 8}
PATHS = ("/v1/completions", "/v1/chat/completions")
SPEECH = "/v1/audio/transcriptions"
JSON = "application/json"
Statuses = collections.Counter[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrong:
    """What a server of one kind of program is sent."""

    #: Path, type and body of a request in order.
    good: tuple[str, str, bytes]
    paths: Sequence[str]
    kind: str
    bodies: Callable[[random.Random], bytes]
    #: Of a body, in MiB.
    limit: int


def main() -> int:
    """Sends, counts, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "artifact", help="a compiled language model with a tokenizer, vision-language model or speech model"
    )
    parser.add_argument("--requests", type=int, default=1000, help="requests of each of the two kinds (default 1000)")
    parser.add_argument("--slow", type=int, default=50, help="slow senders at once (default 50)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    with serving(arguments.artifact) as (url, process):
        server = psutil.Process(process.pid)
        wrong = wrong_for(url)
        before = completion(url, wrong)
        rng = random.Random(arguments.seed)
        # Modules that are imported, and messages that are built, at the first fault of each kind.
        statuses = {"warm-up": warm_up(url, arguments.seed, wrong)}
        files, memory = settled(server)
        sizes = []
        statuses["from the OpenAPI document"] = from_document(url, arguments.requests, arguments.seed)
        for part in ("first half", "second half"):
            statuses[f"malformed, {part}"] = malformed(url, arguments.requests // 2, rng, wrong)
            sizes.append(settled(server)[1])
        statuses["slow senders"] = slow(url, arguments.slow, before, wrong)
        same = completion(url, wrong) == before
        left, size = settled(server)
        sizes.append(size)
        kept, growth = left - files, max(sizes) / memory - 1
        alive = process.poll() is None
    bad = 0
    for kind, counts in statuses.items():
        print(f"{kind}: {counts.total()} requests; {dict(sorted(counts.items()))}")
        bad += sum(count for status, count in counts.items() if status.startswith("5"))
    print(f"{bad} answers with 500 or above; the completion is {'the same' if same else 'ANOTHER'}; alive: {alive}")
    told = ", ".join(f"{each / 2**20:.1f}" for each in sizes)
    print(
        f"{kept:+d} open files; memory {memory / 2**20:.1f} MiB after the warm-up, then {told} MiB: at most {growth:+.1%}"
    )
    return int(bool(bad or not same or not alive or kept > 2 or growth > 0.05))


def settled(server: psutil.Process) -> tuple[int, int]:
    """Open files and resident bytes once the last requests are through: kept-alive connections are closed after 5 seconds."""
    time.sleep(6)
    return server.num_fds(), server.memory_info().rss


def wrong_for(url: str) -> Wrong:
    """What the server's program must refuse: told by its pages, and by whether it answers about an image."""
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=60) as answer:
        pages = json.load(answer)["paths"]
    if SPEECH in pages:
        good = form({"model": b"model"}, speech())
        return Wrong(good=(SPEECH, FORM, good), paths=(SPEECH,), kind=FORM, bodies=wrong_sounds, limit=25)
    text = Wrong(good=(PATHS[0], JSON, json.dumps(COMPLETION).encode()), paths=PATHS, kind=JSON, bodies=bodies, limit=4)
    asked = message_with(data_url(picture()))
    image = Wrong(
        good=(PATHS[1], JSON, asked),
        paths=PATHS,
        kind=JSON,
        bodies=lambda rng: rng.choice((bodies, wrong_images))(rng),
        limit=25,
    )
    try:
        completion(url, image)
    except urllib.error.HTTPError:
        return text
    return image


def completion(url: str, wrong: Wrong) -> Any:
    """The text of one request in order."""
    path, kind, body = wrong.good
    request = urllib.request.Request(f"{url}{path}", body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        told = json.load(answer)
    return told["choices"][0].get("text", told["choices"][0].get("message")) if "choices" in told else told["text"]


def from_document(url: str, requests: int, seed: int) -> Statuses:
    """Requests that Schemathesis makes up."""
    import hypothesis
    import schemathesis
    from schemathesis import GenerationMode

    statuses: Statuses = collections.Counter()
    rng = random.Random(seed)
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    posts = [each for each in operations if each.method == "post"]
    # Pages without a body have little to vary.
    plan = [(each, 5) for each in operations if each.method != "post"]
    left = requests - sum(count for _, count in plan)
    plan += [(each, -(-left // len(posts))) for each in posts]
    for operation, count in plan:
        modes = (
            (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
            if operation.method == "post"
            else (GenerationMode.POSITIVE,)
        )
        for mode in modes:
            share = -(-count // len(modes))

            @hypothesis.seed(seed)
            @hypothesis.settings(
                max_examples=share, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                if isinstance(case.body, dict) and rng.random() < 0.9:
                    case.body["model"] = "model"  # another one is refused before anything else is looked at
                try:
                    answer = case.call(timeout=60)
                except ValueError:
                    return  # the client itself cannot send it
                statuses[str(answer.status_code)] += 1
                if answer.status_code >= 500:
                    print(
                        "status", answer.status_code, case.method, case.path, repr(case.body)[:500], answer.text[:300]
                    )

            send()
    return statuses


def bodies(rng: random.Random) -> bytes:
    """A body that is not what a page takes."""
    good = json.dumps(COMPLETION).encode()
    cut = rng.randrange(len(good))
    depth = rng.choice([100, 10_000, 200_000])
    return rng.choice(
        [
            good[:cut],
            good[:cut] + bytes([rng.randrange(128, 256)]) + good[cut:],
            bytes(rng.randrange(256) for _ in range(rng.randrange(200))),
            b"[" * depth,
            b'{"a":' * depth,
            b'{"model": "model", "prompt": "a", "max_tokens": %s}'
            % rng.choice([b"NaN", b"1e999", b"9" * 5000, b"-0.0"]),
            b'{"model": "model", "prompt": "\\ud800", "max_tokens": 1}',
            b'{"model": "model", "prompt": "\\u0000", "max_tokens": 1}',
            b'{"model": "model", "prompt": [%d], "max_tokens": 1}' % rng.choice([-1, 2**31, 2**63, 2**70, 10**6]),
            b'{"model": "model", "prompt": "a", "prompt": 5, "max_tokens": true}',
            b'{"model": "model", "messages": [{"role": "user", "content": %s}]}'
            % rng.choice([b"5", b"null", b"[]", b'[{"type": "image_url"}]', b'{"a": 1}', b'"\\udfff"']),
            b'{"model": "model", "prompt": "a", "temperature": %s}'
            % rng.choice([b"1e-320", b"1e308", b"-Infinity", b"null"]),
            b'{"model": "model", "prompt": "a", "stop": ["%s"]}' % (b"x" * rng.choice([0, 1, 100_000])),
            b'{"model": "model", "prompt": "a", "logit_bias": {"%d": 1e300}}' % rng.choice([0, 10**8]),
            b'"' + good + b'"',
            b"\xef\xbb\xbf" + good,
            good.decode().encode("utf-16"),
        ]
    )


def warm_up(url: str, seed: int, wrong: Wrong) -> Statuses:
    """Some requests of both kinds, and one with a grammar, whose library reads the vocabulary once."""
    form = {"response_format": {"type": "json_object"}}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(COMPLETION | form).encode(), headers)
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
    return from_document(url, 60, seed + 1) + malformed(
        url, 200 if wrong.bodies is bodies else 600, random.Random(seed + 1), wrong
    )


def malformed(url: str, requests: int, rng: random.Random, wrong: Wrong) -> Statuses:
    """Requests that no client library sends, each over a connection of its own."""
    statuses: Statuses = collections.Counter()
    for _ in range(requests):
        for kind, status in exchange(url, rng, wrong):
            statuses[status] += 1
            if status.startswith("5"):
                print("status", status, kind)
    return statuses


def exchange(url: str, rng: random.Random, wrong: Wrong) -> Iterator[tuple[str, str]]:
    """One request and the status of its answer."""
    body = wrong.bodies(rng)
    head = f"POST {rng.choice(wrong.paths)} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {wrong.kind}\r\n".encode()
    sized = head + b"Content-Length: %d\r\n\r\n"
    kind = rng.choices(
        ["body", "too large", "too large in chunks", "shorter", "longer", "line", "header", "hung up"],
        [20, 0.3, 0.3, 1, 1, 1, 1, 1],
    )[0]
    raw = {
        "body": sized % len(body) + body,
        "too large": sized % (wrong.limit * 2**20 + 1) + b"x" * 100_000,
        "too large in chunks": head
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"100000\r\n%s\r\n" % (b"x" * 2**20) * (wrong.limit + 1)
        + b"0\r\n\r\n",
        "shorter": sized % (len(body) + 10) + body,
        "longer": sized % max(len(body) - 10, 0) + body,
        "line": rng.choice(
            [b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET " + b"/" * 100_000 + b"\r\n"]
        ),
        "header": head
        + rng.choice([b"Content-Length: -5", b"Content-Length: x", b"X: " + b"y" * 100_000, b": a"])
        + b"\r\n\r\n",
        "hung up": sized % 5000 + body[:20],
    }[kind]
    status = "no answer"
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60) as connection:
        try:
            connection.sendall(raw)
            if kind in ("shorter", "line"):
                connection.shutdown(socket.SHUT_WR)
            if kind != "hung up":
                words = connection.recv(65536).split(b" ", 2)
                status = words[1].decode() if len(words) > 1 else status
        except OSError as error:
            status = type(error).__name__
    yield f"{kind}: {raw[:300]!r}", status


def slow(url: str, count: int, expected: Any, wrong: Wrong) -> Statuses:
    """Clients that stop in the middle of a body; another client is answered meanwhile."""
    statuses: Statuses = collections.Counter()
    path, kind, _ = wrong.good
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: 100\r\n\r\n".encode()
    port = int(url.rpartition(":")[2])
    connections = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(count)]
    for each in connections:
        each.sendall(head)
    started = time.perf_counter()
    for _ in range(10):
        for each in connections:
            each.sendall(b"{")
        time.sleep(1)
        if completion(url, wrong) != expected:
            statuses["another text beside slow senders"] += 1
    for each in connections:
        words = each.recv(65536).split(b" ", 2)
        statuses[words[1].decode() if len(words) > 1 else "no answer"] += 1
        each.close()
    print(f"slow senders were answered within {time.perf_counter() - started:.0f} s")
    return statuses


if __name__ == "__main__":
    raise SystemExit(main())
