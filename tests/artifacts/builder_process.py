"""A process that builds one artifact, for tests with several processes: ``builder_process.py ROOT SECONDS [DESTINATION]``.

It writes half of the artifact, says ``building``, sleeps, writes the rest; and at the end prints what it did as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from qeff_framework.artifacts import Store, cache_key

PARTS = {"model": "slow"}


def main() -> None:
    root, seconds, *rest = sys.argv[1:]
    waits = []

    def build(directory: Path) -> None:
        (directory / "first.bin").write_bytes(b"1" * 100_000)
        print("building", flush=True)
        time.sleep(float(seconds))
        (directory / "second.bin").write_bytes(b"2" * 100_000)

    artifact = Store(Path(root)).get_or_build(
        "compiled",
        "slow",
        cache_key(PARTS),
        PARTS,
        build,
        destination=Path(rest[0]) if rest else None,
        on_wait=lambda: (waits.append(1), print("waiting", flush=True)),
    )
    print(json.dumps({"path": str(artifact.path), "built": artifact.built, "waits": len(waits)}), flush=True)


main()
