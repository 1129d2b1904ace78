"""Source of a small installed backend: it compiles nothing, continues a text by counting, and misbehaves on request."""

from __future__ import annotations

from pathlib import Path

from qeff_framework.plugin_api import BACKEND_GROUP
from tests.fake_distributions import write_distribution

DESCRIPTOR = """
from dataclasses import dataclass

from qeff_framework.plugin_api import Backend, Capabilities, Check, CompileOptions, Probe, RuntimeOptions, Status, option


@dataclass(frozen=True, kw_only=True)
class ToyOptions(CompileOptions):
    level: int = option(1, "how hard to try", minimum=0)
    mode: str = option("plain", "what to do", choices=("plain", "wait", "refuse", "crash", "noisy"))
    flags: tuple[str, ...] = option((), "raw flags")


@dataclass(frozen=True, kw_only=True)
class ToyRuntime(RuntimeOptions):
    shift: int = option(1, "added to a token to get the next one")


class ToyBackend(Backend):
    name = "toy"
    summary = "counts"
    options = ToyOptions
    runtime_options = ToyRuntime
    capabilities = Capabilities(tasks=frozenset({"causal-lm"}), dry_run=True)
    implementation = "toy_hooks:ToyHooks"

    def probe(self):
        checks = [
            Check(name="fingers", status=Status.OK, detail="ten"),
            Check(name="toes", status=Status.WARNING, detail="in shoes", remedy="take the shoes off"),
        ]
        return Probe(can_compile=True, can_execute=True, hardware=False, rank=-5, checks=checks)

    def fingerprint(self):
        return {"toy": "1"}
"""

HOOKS = """
import os
import time
from pathlib import Path

import numpy as np

from qeff_framework.plugin_api import CompiledModel, CompileError, hookimpl


class ToyHooks:
    @hookimpl
    def compile(self, request):
        options = request.options
        if options.mode == "refuse":
            raise CompileError("the toy compiler refuses this model; try mode=plain")
        if options.mode == "crash":
            raise ZeroDivisionError("a bug of the toy backend")
        if options.mode == "wait":
            request.progress("waiting to be interrupted")
            (request.output_dir / "half").write_text("half a program")
            Path(os.environ["TOY_WAITING"]).touch()
            time.sleep(60)
        if options.mode == "noisy":
            print("printed by Python")
            os.write(1, b"written by native code\\n")
        (request.output_dir / "program.txt").write_text(repr(options))
        return request.result(backend="toy", program={})

    @hookimpl
    def execute(self, request):
        return ToySession(request.compiled, request.options.shift)


class ToySession:
    def __init__(self, compiled, shift):
        self.compiled, self._shift = compiled, shift
        self._vocabulary = next(item for item in compiled.outputs if item.name == "logits").shape[-1]
        self.info = {"device": "fingers", "simulator": "yes"}

    def run(self, inputs):
        ids, positions = inputs["input_ids"], inputs["position_ids"]
        last = ids[np.arange(len(ids)), positions.argmax(axis=1)]
        return {"logits": np.eye(self._vocabulary, dtype=np.float32)[(last + self._shift) % self._vocabulary][:, None]}

    def reset(self):
        pass

    def close(self):
        pass
"""


def install_toy(root: Path) -> Path:
    """Installs the backend into `root` and returns `root`."""
    write_distribution(
        root,
        "qeff-toy-backend",
        "0.3.0",
        entry_points={BACKEND_GROUP: {"toy": "toy_backend:ToyBackend"}},
        modules={"toy_backend": DESCRIPTOR, "toy_hooks": HOOKS},
    )
    return root
