"""The way of an author of a backend, from wheels alone: ``python -m tests.authors_path`` (15 minutes; needs a package index).

Builds the wheels, installs them into a fresh environment, and works in an empty folder, with nothing of the repository on any
path. What is run there is what the pages of `docs/backends` say: their commands and the files of the tutorial. Then come the
packages of other authors that disturb: one with the same name, one that crashes the interpreter when it is probed, one for
another version of the plugin API, one whose import takes seconds. The example backend for OpenVINO comes last.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.markdown import ROOT, blocks

#: Seconds that importing the slow package takes.
SLOW = 5.0

TINY = """
import sys
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
torch.manual_seed(0)
words = {"<unk>": 0, **{word: 1 + i for i, word in enumerate("My name is a b c d e f g h".split())}}
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=64)).save_pretrained(sys.argv[1])
tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = Whitespace()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(sys.argv[1])
"""

PACKAGE = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "{distribution}"
version = "1.0"
dependencies = ["qeff-framework"]
[project.entry-points."qeff_framework.backends.{group}"]
{backend} = "{module}:Descriptor"
[tool.setuptools]
py-modules = ["{module}"]
"""

DESCRIPTOR = """{before}
from qeff_framework.plugin_api import Backend, Capabilities, Probe

class Descriptor(Backend):
    name = "{backend}"
    summary = "made to disturb"
    implementation = "{module}:Hooks"
    capabilities = Capabilities(tasks=frozenset({{"causal-lm"}}))
    api = "{api}"

    def probe(self):
        {probe}
        return Probe(can_compile=True, can_execute=True, hardware=False, rank=1, checks=())

    def fingerprint(self):
        return {{}}

class Hooks:
    pass
"""


@dataclass
class Author:
    """A fresh environment and an empty folder."""

    folder: Path
    environment: Path
    failed: list[str] = field(default_factory=list)

    def run(self, command: str | Sequence[str], *, code: int = 0, shows: Sequence[str] = ()) -> float:
        """Runs `command`; reports when it ends with another code or does not print what it should. Returns its seconds."""
        words = shlex.split(command) if isinstance(command, str) else list(command)
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and name[:5] != "QEFF_"}
        variables |= {
            "PATH": f"{self.environment / 'bin'}:{variables['PATH']}",
            "QEFF_HOME": str(self.environment / "home"),
            "OMP_NUM_THREADS": "1",
        }
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(words, cwd=self.folder, env=variables, text=True, capture_output=True, check=False)
        seconds, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        told = done.stdout + done.stderr
        absent = [text for text in shows if text not in told]
        good = done.returncode == code and not absent
        shown = shlex.join(words).replace(str(self.environment.parent), "...")
        lines = [line for line in told.splitlines() if line.strip()]
        print(
            f"{'ok    ' if good else 'FAILED'} {shown}   ({seconds:.1f} s, {used:.1f} s of processor time)", flush=True
        )
        print("\n".join(f"         {line}" for line in lines[-3 if good else -40 :]), flush=True)
        if not good:
            self.failed.append(f"{shown}: exit code {done.returncode}, does not show {absent}")
        return seconds

    def check(self, good: bool, what: str) -> None:
        print(f"{'ok    ' if good else 'FAILED'} {what}", flush=True)
        if not good:
            self.failed.append(what)


def install_wheels(work: Path) -> Author:
    author = Author(work / "empty", work / "environment")
    author.folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", author.environment], check=True)
    # Copies: setuptools writes beside the sources that it builds.
    for path in ("plugins/ort_sim_backend", "examples/openvino_backend"):
        shutil.copytree(ROOT / path, work / "sources" / path, ignore=shutil.ignore_patterns("*.egg-info", "build"))
    sources = [ROOT, *(work / "sources").glob("*/*")]
    author.run(["pip", "wheel", "-q", "--no-deps", "-w", str(work / "wheels"), *map(str, sources)])
    (work / "constraints.txt").write_text((ROOT / "constraints.txt").read_text())
    author.run(
        f"pip install -q -c {work}/constraints.txt --find-links {work}/wheels qeff-framework qeff-ort-sim-backend"
    )
    author.run(["python", "-c", TINY, str(author.folder / "tiny")])
    return author


def commands_of(document: str, marker: str) -> list[str]:
    """The indented block of `document` that has `marker` in it."""
    found: list[list[str]] = [[]]
    for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            found[-1].append(line.split("  #")[0].strip())
        elif found[-1]:
            found.append([])
    return next(block for block in found if any(marker in line for line in block))


def generated(author: Author) -> None:
    for command in commands_of("docs/backends/index.md", "qeff new-backend acme"):
        author.run(command)
    author.run("qeff generate tiny --backend acme --ctx-len 32 --max-new-tokens 4 --prompt 'My name is'")
    author.run("qeff new-backend Bolt --compiler python --dir bolt")
    author.run("pip install -q -e 'bolt[test]'")
    author.run("pytest -q bolt")
    author.run("pip uninstall -q -y qeff-acme-backend")


def tutorial(author: Author) -> None:
    inside = Author(author.folder / "tutorial", author.environment, author.failed)
    for block in (*blocks("docs/backends/tutorial.md", "python"), *blocks("docs/backends/tutorial.md", "toml")):
        target = inside.folder / str(block.file_name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text, encoding="utf-8")
    for command in commands_of("docs/backends/tutorial.md", "qeff backends acme --options"):
        inside.run(command.replace("gpt2", "../tiny --ctx-len 32"))


def disturbing(author: Author) -> None:
    def install(distribution: str, backend: str, *, before: str = "", api: str = "1.0", probe: str = "pass") -> None:
        module = distribution.replace("-", "_")
        folder = author.folder / distribution
        folder.mkdir()
        values = {"distribution": distribution, "backend": backend, "module": module, "group": f"v{api[0]}"}
        (folder / "pyproject.toml").write_text(PACKAGE.format(**values))
        (folder / f"{module}.py").write_text(DESCRIPTOR.format(before=before, probe=probe, api=api, **values))
        author.run(f"pip install -q ./{distribution}")

    generate = "qeff generate tiny --ctx-len 32 --max-new-tokens 2 --prompt 'My name is' --backend "
    install("somebody-elses-acme", "acme")
    author.run(f"{generate} acme", code=1, shows=["somebody-elses-acme", "qeff-acme-backend"])
    author.run(f"{generate} qeff-acme-backend:acme")
    author.run("pip uninstall -q -y somebody-elses-acme")

    install("qeff-crashing-backend", "crashing", probe="__import__('ctypes').string_at(0)")
    author.run("qeff backends", shows=["crashing", "ort_sim", "acme"])
    author.run("qeff doctor", shows=["crashing", "crashed with signal SIGSEGV", "ort_sim"])
    author.run(f"{generate} ort_sim")
    author.run("pip uninstall -q -y qeff-crashing-backend")

    install("qeff-later-backend", "later", api="2.0")
    author.run(f"{generate} later", code=1, shows=["plugin API v2", "v1"])
    author.run("pip uninstall -q -y qeff-later-backend")

    alone = min(author.run(f"{generate} ort_sim") for _ in range(3))
    install("qeff-slow-backend", "slow", before=f"import time\ntime.sleep({SLOW})")
    beside = min(author.run(f"{generate} ort_sim") for _ in range(3))
    author.check(
        beside < alone + SLOW / 2,
        f"a package whose import takes {SLOW:g} s: generate takes {beside:.1f} s, without it {alone:.1f} s",
    )
    author.run("pip uninstall -q -y qeff-slow-backend")


def shipped(author: Author) -> None:
    author.run("qeff test-backend ort_sim -q")
    work = author.environment.parent
    author.run(f"pip install -q -c {work}/constraints.txt --find-links {work}/wheels qeff-openvino-backend")
    author.run("qeff test-backend openvino -q")


PARTS = {"generated": generated, "tutorial": tutorial, "disturbing": disturbing, "shipped": shipped}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.authors_path", description=__doc__)
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="work in this folder, which must not exist, and keep it"
    )
    work = parser.parse_args().keep
    with tempfile.TemporaryDirectory(prefix="author-") as temporary:
        work = (work or Path(temporary, "work")).absolute()
        work.mkdir()
        author = install_wheels(work)
        for name, part in PARTS.items():
            print(f"-- {name}", flush=True)
            part(author)
    print(f"{len(author.failed)} failed", *author.failed, sep="\n  ")
    return bool(author.failed)


if __name__ == "__main__":
    sys.exit(main())
