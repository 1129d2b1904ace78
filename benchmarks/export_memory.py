"""Peak memory and time of exporting one causal LM, imports and loading included.

    python benchmarks/export_memory.py CHECKPOINT

Prints one JSON object. Run it in a fresh process for each checkpoint: a peak never falls.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    """Loads, exports, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or hub id of a causal language model")
    parser.add_argument("--limit-mib", type=float, help="exit with status 1 when the peak is above this")
    arguments = parser.parse_args()

    import torch
    from transformers import AutoModelForCausalLM

    from qeff_framework.export.portable import export_portable

    peaks = {"imports": peak_mib()}
    module = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32).eval()
    peaks["load"] = peak_mib()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        export_portable(module, task="causal-lm", output_dir=Path(folder))
        written = sum(file.stat().st_size for file in Path(folder).iterdir())
    seconds = time.perf_counter() - start
    peaks["export"] = peak_mib()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    print(
        json.dumps(
            {
                "weights_mib": round(weights / 2**20, 1),
                "written_mib": round(written / 2**20, 1),
                "export_seconds": round(seconds, 1),
                "peak_mib_after": {name: round(value, 1) for name, value in peaks.items()},
            }
        )
    )
    return int(arguments.limit_mib is not None and peaks["export"] > arguments.limit_mib)


def peak_mib() -> float:
    """Largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB on Linux


if __name__ == "__main__":
    sys.exit(main())
