"""The table of tasks: everything that it names is there, and a task is added with one file and one line."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForNextSentencePrediction, BertConfig, BertForNextSentencePrediction

import qeff_framework
from qeff_framework import QEFFAutoModel, load_compiled, tasks
from qeff_framework.cli.app import main
from qeff_framework.errors import OptionError
from qeff_framework.registry import registry
from qeff_framework.runtime import CompiledRunner
from qeff_framework.tasks import TaskSpec, task_names, task_spec, task_specs
from tests.checkpoints import save_tiny_checkpoint
from tests.tasks import toy_task

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _store(session_store: Path) -> None:
    """Exports and decisions lie there."""


@pytest.mark.parametrize("spec", task_specs(), ids=lambda spec: spec.name)
def test_everything_that_a_task_names_is_there(spec: TaskSpec) -> None:
    model_class = spec.model_class
    assert model_class.task == spec.name
    assert getattr(qeff_framework, model_class.__name__) is model_class
    # What another library loads has no class of Transformers.
    assert not model_class.transformers_class or hasattr(__import__("transformers"), model_class.transformers_class)
    assert dataclasses.is_dataclass(model_class.shapes)
    taken = inspect.signature(model_class.from_pretrained).parameters
    assert taken.keys() >= {*spec.model_options}
    runner = spec.runner if isinstance(spec.runner, type) else typing.get_type_hints(spec.runner)["return"]
    assert issubclass(runner, CompiledRunner)
    builder = [*inspect.signature(spec.build_graph).parameters.values()]
    assert [each.name for each in builder if each.kind is not inspect.Parameter.KEYWORD_ONLY] == ["module", "request"]
    assert [*inspect.signature(spec.show_results).parameters] == ["runner", "request"]


def test_task_names_differ_and_a_misspelt_one_is_answered_with_the_right_one() -> None:
    assert len({*task_names()}) == len(task_names())
    with pytest.raises(OptionError, match="there is no task 'causal_lm'; did you mean 'causal-lm'"):
        task_spec("causal_lm")


def test_no_other_file_decides_by_the_name_of_a_task() -> None:
    """A comparison with a task's name is a place that a new task would have to be added to."""
    compared = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in (ROOT / "qeff_framework").rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if any(f'task {sign} "{name}"' in line for name in task_names() for sign in ("==", "!="))
    ]
    # What sentence-transformers has made of a decoder, the simplest cases of the fuzz command, and the kit's model of each kind.
    allowed = ("qeff_framework/auto/dispatch.py", "qeff_framework/coverage/", "qeff_framework/testing/")
    assert [line for line in compared if not line.startswith(allowed)] == []


def test_the_table_imports_nothing_heavy() -> None:
    script = "import sys, qeff_framework.tasks; print({'torch', 'transformers', 'onnx', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def test_a_task_is_one_file_and_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks, "_TASKS", (*tasks.task_specs(), toy_task.SPEC))
    installed = registry.descriptor("ort_sim")
    carried = dataclasses.replace(installed.capabilities, tasks=installed.capabilities.tasks | {toy_task.SPEC.name})
    backend = type("BackendWithTheTask", (type(installed),), {"capabilities": carried})

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
        )
        checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint", module=BertForNextSentencePrediction(config))

    model = QEFFAutoModel.from_pretrained(checkpoint)
    assert isinstance(model, toy_task.ModelForNextSentencePrediction)
    compiled = model.compile(backend=backend, seq_len=8, compile_dir=tmp_path / "artifact")
    ids = [[4, 5, 6, 7]]
    with load_compiled(compiled.directory) as program:
        logits = program.generate({"input_ids": ids})
    module = AutoModelForNextSentencePrediction.from_pretrained(checkpoint)
    with torch.no_grad():
        wanted = module(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(logits, wanted, atol=1e-5)

    assert main(["generate", str(compiled.directory), "--prompt", "w4 w5 w6 w7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["follows"] == [bool(wanted[0, 0] > wanted[0, 1])]
