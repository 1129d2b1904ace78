"""The command, run in this process or in one of its own; tiny checkpoints; an artifact store for the whole session."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qeff_framework.cli import main
from tests.cli.toy_backend import install_toy

REPOSITORY = Path(__file__).parents[2]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *NUMBERS, "my", "name", "is", "sch\u00f6n"]
VOCABULARY = 40
PROGRAM_SIZES = ("--prefill-seq-len", "4", "--ctx-len", "32", "--batch-size", "2")


@dataclass(frozen=True)
class Result:
    """What a run of the command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("QEFF_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """One artifact store for all tests that need a model, so that each is exported once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def toy_site(tmp_path_factory) -> Path:
    """A site-packages directory with the toy backend, for the import path of whoever wants to see it."""
    return install_toy(tmp_path_factory.mktemp("site"))


@pytest.fixture
def qeff(capsys, monkeypatch, tmp_path) -> Run:
    """Runs the command in this process, by default with an empty artifact store."""

    def run(*argv: object, home: Path = tmp_path / "home", **environment: str) -> Result:
        monkeypatch.setenv("QEFF_HOME", str(home))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        code = main([str(part) for part in argv])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def model_qeff(qeff, store, toy_site, monkeypatch) -> Run:
    """Runs the command in this process with the session's store and the toy backend."""
    monkeypatch.syspath_prepend(str(toy_site))

    def run(*argv: object) -> Result:
        return qeff(*argv, home=store)

    return run


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Environment of a process of its own; ``PYTHONPATH`` can be extended."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QEFF_")}
    return {**kept, "QEFF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY)}


def run_process(environment: dict[str, str], *argv: object, **keywords: Any) -> Result:
    """Runs the command in a process of its own."""
    done = subprocess.run(
        command(*argv), env=environment, capture_output=True, text=True, timeout=300, check=False, **keywords
    )
    return Result(done.returncode, done.stdout, done.stderr)


def command(*argv: object) -> list[str]:
    return [sys.executable, "-m", "qeff_framework", *(str(part) for part in argv)]


def interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=60)


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """A tiny random Llama with a word tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_sizes(), num_key_value_heads=2, head_dim=8, initializer_range=0.4, eos_token_id=2)
    return _save(LlamaForCausalLM, config, tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    """A tiny random BERT with a word tokenizer."""
    from transformers import BertConfig, BertModel

    return _save(BertModel, BertConfig(**_sizes()), tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory) -> Path:
    """A tiny random BERT that tells moods apart, with a word tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(**_sizes(), initializer_range=0.4, id2label={0: "bad", 1: "middling", 2: "good"})
    return _save(BertForSequenceClassification, config, tmp_path_factory.mktemp("models") / "tiny-classifier")


@pytest.fixture(scope="session")
def tagger(tmp_path_factory) -> Path:
    """A tiny random BERT that labels tokens, with a word tokenizer."""
    from transformers import BertConfig, BertForTokenClassification

    config = BertConfig(**_sizes(), initializer_range=0.4, id2label={0: "O", 1: "PER", 2: "LOC"})
    return _save(BertForTokenClassification, config, tmp_path_factory.mktemp("models") / "tiny-tagger")


@pytest.fixture(scope="session")
def reader(tmp_path_factory) -> Path:
    """A tiny random BERT that answers questions, with a word tokenizer."""
    from transformers import BertConfig, BertForQuestionAnswering

    config = BertConfig(**_sizes(), initializer_range=0.4)
    return _save(BertForQuestionAnswering, config, tmp_path_factory.mktemp("models") / "tiny-reader")


@pytest.fixture(scope="session")
def exported(llama, store, tmp_path_factory) -> Path:
    """The tiny Llama as portable ONNX."""
    return _built(store, "export", llama, "-o", tmp_path_factory.mktemp("artifacts") / "onnx")


@pytest.fixture(scope="session")
def artifact(llama, store, tmp_path_factory) -> Path:
    """The tiny Llama, compiled for ort_sim."""
    target = tmp_path_factory.mktemp("artifacts") / "llama"
    return _built(store, "compile", llama, "--backend", "ort_sim", *PROGRAM_SIZES, "-o", target)


@pytest.fixture(scope="session")
def toy_artifact(llama, store, toy_site, tmp_path_factory) -> Path:
    """The tiny Llama, compiled for the toy backend."""
    target = tmp_path_factory.mktemp("artifacts") / "toy"
    return _built(store, "compile", llama, "--backend", "toy", *PROGRAM_SIZES, "-o", target, site=toy_site)


def _built(store: Path, *argv: object, site: Path | None = None) -> Path:
    """Runs the command and returns its last argument, the directory that it has filled."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        patch.setenv("QEFF_HOME", str(store))
        if site is not None:
            patch.syspath_prepend(str(site))
        code = main([str(part) for part in argv])
    assert code == 0, said.getvalue()
    return Path(str(argv[-1]))


def _sizes() -> dict[str, int]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }


def _save(model_class: Any, config: Any, folder: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    names = [*WORDS, *(f"w{index}" for index in range(len(WORDS), VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{% for m in messages %}{{ m.content }} {{ m.role }} {% endfor %}{{ last_word }}",
    ).save_pretrained(folder)
    return folder
