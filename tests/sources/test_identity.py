"""A key changes whenever what Transformers reads changes, and only then: files of a folder, one commit of the hub, code."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from qeff_framework import QEFFAutoModel
from qeff_framework.errors import CheckpointError, UnsupportedModelError
from qeff_framework.sources import CheckpointSource
from qeff_framework.sources.checkpoint_files import CheckpointFiles
from qeff_framework.sources.preprocessing import Preprocessing
from tests.checkpoints import save_tiny_checkpoint
from tests.sources.conftest import change_json
from tests.tiny_models import tiny_causal_lm

COMMITS = {"old": "a" * 40, "new": "b" * 40}


def identity(folder: Path | str, **arguments: Any) -> Mapping[str, Any]:
    return CheckpointSource(folder, arguments).identity()


# --- a folder ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "source.spm",
        "chat_template.jinja",
    ],
)
def test_files_that_are_read_count(checkpoint: Path, name: str) -> None:
    before = identity(checkpoint)
    file = checkpoint / name
    file.write_bytes((file.read_bytes() if file.exists() else b"") + b" ")
    assert identity(checkpoint) != before


@pytest.mark.parametrize(
    "name", ["README.md", "optimizer.pt", "optimizer.safetensors", "training_args.bin", "model.onnx", ".gitattributes"]
)
def test_files_that_are_not_read_do_not_count(checkpoint: Path, name: str) -> None:
    before = identity(checkpoint)
    (checkpoint / name).write_text("anything")
    assert identity(checkpoint) == before


def test_a_module_in_the_hands_of_the_caller_counts_as_it_is(checkpoint: Path) -> None:
    """It was exported with the caller's changes under the key of the files, so that the next run found them there."""
    model = QEFFAutoModel.from_pretrained(checkpoint)
    keys = [model._source.identity()]
    for value in (2.0, 1.0):
        module: Any = model.module
        module.lm_head.weight.data.fill_(value)
        keys.append(model._source.identity())
        model._source.release()
    module.config.rms_norm_eps = 0.5
    keys.append(model._source.identity())
    assert model.config["rms_norm_eps"] == 0.5
    assert all(one != other for place, one in enumerate(keys) for other in keys[:place])
    assert CheckpointSource(checkpoint, {}).identity() == keys[0]
    module.half()
    with pytest.raises(UnsupportedModelError, match=r"torch\.float16 parameters"):
        model._source.load("AutoModelForCausalLM")


def test_weights_of_torch_beside_a_stray_safetensors_file(checkpoint: Path) -> None:
    """What Transformers loads are the torch weights; another file beside them must not hide that they changed."""
    (checkpoint / "model.safetensors").rename(checkpoint / "optimizer.safetensors")
    keys = []
    for seed in (0, 1):
        module = tiny_causal_lm("llama", seed, num_hidden_layers=1)[0]
        torch.save(module.state_dict(), checkpoint / "pytorch_model.bin")
        keys.append(identity(checkpoint))
        loaded: Any = CheckpointSource(checkpoint, {}).load("AutoModelForCausalLM")
        assert torch.equal(loaded.lm_head.weight, module.lm_head.weight)
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("file", "arguments"),
    [("model.fp16.safetensors", {"variant": "fp16"}), ("pytorch_model.bin", {"use_safetensors": False})],
)
def test_weights_that_an_argument_chooses(checkpoint: Path, file: str, arguments: dict[str, Any]) -> None:
    (checkpoint / file).write_bytes(b"one")
    plain, chosen = identity(checkpoint), identity(checkpoint, **arguments)
    assert plain != chosen
    (checkpoint / file).write_bytes(b"two")
    assert identity(checkpoint) == plain
    assert identity(checkpoint, **arguments) != chosen


def test_weights_that_the_config_names(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "chosen.safetensors")
    change_json(checkpoint / "config.json", transformers_weights="chosen.safetensors")
    assert "chosen.safetensors" in identity(checkpoint)["files"]
    assert CheckpointSource(checkpoint, {}).load("AutoModelForCausalLM") is not None


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``org/tiny`` in a cache of the hub, at two commits; ``main`` is the old one, and there is no network."""
    from huggingface_hub import constants

    folder = tmp_path / "hub" / "models--org--tiny"
    for seed, commit in enumerate(COMMITS.values()):
        module = tiny_causal_lm("llama", seed, num_hidden_layers=1)[0]
        save_tiny_checkpoint(folder / "snapshots" / commit, module=module)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMITS["old"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder.parent))
    return folder


def from_hub(repository: Path, **arguments: Any) -> CheckpointSource:
    return CheckpointSource("org/tiny", {"cache_dir": str(repository.parent), **arguments})


def test_everything_comes_from_one_commit(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = QEFFAutoModel.from_pretrained("org/tiny", cache_dir=str(repository.parent))
    key = model._source.identity()
    # Somebody pushes between the two reads.
    (repository / "refs" / "main").write_text(COMMITS["new"])
    change_json(repository / "snapshots" / COMMITS["new"] / "generation_config.json", eos_token_id=99)
    (repository / "snapshots" / COMMITS["new"] / "tokenizer.json").unlink()

    module: Any = model._source.load("AutoModelForCausalLM")
    old = tiny_causal_lm("llama", 0, num_hidden_layers=1)[0]
    assert torch.equal(module.lm_head.weight, old.lm_head.weight)
    assert module.generation_config.eos_token_id == 2
    assert model._source.tokenizer_problem() is None
    model._source.save_companions(tmp_path)
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()
    assert model._source.identity() == key

    again = from_hub(repository).identity()
    assert (key["commit"], again["commit"]) == (COMMITS["old"], COMMITS["new"])
    assert from_hub(repository, revision=COMMITS["old"]).identity() == key


def test_damaged_files_of_the_hub_are_named(repository: Path) -> None:
    weights = repository / "snapshots" / COMMITS["old"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is cut"):
        from_hub(repository).load("AutoModelForCausalLM")


def test_code_of_another_repository_is_pinned(
    repository: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = repository.parent / "models--org--code"
    for commit in COMMITS.values():
        (code / "snapshots" / commit).mkdir(parents=True)
        (code / "snapshots" / commit / "mine.py").write_text("")
    (code / "refs").mkdir()
    folder = Path(shutil.copytree(saved, tmp_path / "with-code"))
    change_json(folder / "config.json", auto_map={"AutoConfig": "org/code--mine.Config"})

    arguments = {"cache_dir": str(repository.parent), "trust_remote_code": True}

    def code_identity() -> Any:
        return CheckpointSource(folder, arguments).identity()["code"]["org/code"]

    (code / "refs" / "main").write_text(COMMITS["old"])
    assert code_identity() == COMMITS["old"]
    opened = CheckpointFiles(str(folder), {**arguments}, overrides={}, named_by=None)
    assert opened.loader_arguments()["code_revision"] == COMMITS["old"]
    (code / "refs" / "main").write_text(COMMITS["new"])
    assert code_identity() == COMMITS["new"]


# --- code in the folder -----------------------------------------------------------------------------------------------

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class MineConfig(LlamaConfig):
    model_type = "mine"

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""
AUTO_MAP = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"}


@pytest.fixture
def with_code(checkpoint: Path) -> Path:
    (checkpoint / "mine.py").write_text(CODE)
    change_json(checkpoint / "config.json", model_type="mine", architectures=["MineForCausalLM"], auto_map=AUTO_MAP)
    return checkpoint


@pytest.fixture
def no_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(question: str = "") -> str:
        pytest.fail(f"a question was asked: {question}")

    monkeypatch.setattr("builtins.input", ask)


@pytest.mark.usefixtures("no_questions")
def test_code_runs_only_when_it_is_trusted(with_code: Path) -> None:
    flag = r"trust_remote_code=True \(on the command line --trust-remote-code\)"
    for _ in range(2):
        with pytest.raises(CheckpointError, match=rf"mine\.MineForCausalLM.*{flag}"):
            QEFFAutoModel.from_pretrained(with_code)
        # What was decided is remembered, for trusted and untrusted callers alike.
        model = QEFFAutoModel.from_pretrained(with_code, trust_remote_code=True)
    assert type(model.module).__name__ == "MineForCausalLM"
    with pytest.raises(CheckpointError, match=flag):
        CheckpointSource(with_code, {}).load("AutoModelForCausalLM")


@pytest.mark.usefixtures("no_questions")
def test_code_that_the_installed_transformers_can_do_without(checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", auto_map=AUTO_MAP)
    assert QEFFAutoModel.from_pretrained(checkpoint).module is not None


def test_code_counts_where_it_runs(with_code: Path) -> None:
    trusted, untrusted = identity(with_code, trust_remote_code=True), identity(with_code)
    assert trusted != untrusted
    (with_code / "package").mkdir()
    (with_code / "package" / "helper.py").write_text("x = 1")
    assert identity(with_code, trust_remote_code=True) != trusted
    assert identity(with_code) == untrusted


def test_code_that_changes_in_a_running_process_is_refused(with_code: Path) -> None:
    """Transformers takes the class that it has registered; what it loads would be kept under the key of the new code."""
    code = CODE.replace('"mine"', '"split"').partition("class MineForCausalLM")
    (with_code / "conf.py").write_text(code[0])
    heads = "from transformers import LlamaForCausalLM\n\nfrom .conf import MineConfig\n\n"
    (with_code / "model.py").write_text(heads + "".join(code[1:]))
    auto_map = {"AutoConfig": "conf.MineConfig", "AutoModelForCausalLM": "model.MineForCausalLM"}
    change_json(with_code / "config.json", model_type="split", auto_map=auto_map)
    CheckpointSource(with_code, {"trust_remote_code": True}).load("AutoModelForCausalLM")
    with (with_code / "model.py").open("a") as file:
        file.write("    scale = 2\n")
    with pytest.raises(CheckpointError, match=r"model\.py was changed since this process loaded.*begin a new process"):
        CheckpointSource(with_code, {"trust_remote_code": True}).load("AutoModelForCausalLM")


def test_a_tokenizer_whose_code_reads_texts_in_its_own_way(checkpoint: Path, tmp_path: Path) -> None:
    """An artifact carries its tokenizer.json alone, whose ids are other ones."""
    code = "from transformers import PreTrainedTokenizerFast\n\nclass Mine(PreTrainedTokenizerFast):\n    pass\n"
    change_json(
        checkpoint / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["own_tok.Mine", "own_tok.Mine"]},
        tokenizer_class="Mine",
    )
    (checkpoint / "own_tok.py").write_text(code)
    assert CheckpointSource(checkpoint, {"trust_remote_code": True}).tokenizer_problem() is None

    other = shutil.copytree(checkpoint, tmp_path / "other")
    own = "    def encode(self, text, *args, **kwargs):\n        return super().encode(text.replace('w5', 'w6'), *args, **kwargs)\n"
    (other / "own_tok.py").write_text(code + own)
    source = CheckpointSource(other, {"trust_remote_code": True})
    for _ in range(2):
        with pytest.raises(CheckpointError, match="its class Mine.*reads 'w5' otherwise than its tokenizer.json"):
            source.require_tokenizer()


def test_code_of_a_tokenizer_counts(checkpoint: Path) -> None:
    (checkpoint / "tok.py").write_text("")
    plain = identity(checkpoint)
    assert identity(checkpoint, trust_remote_code=True) == plain
    change_json(checkpoint / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.Mine", None]})
    before = identity(checkpoint, trust_remote_code=True)
    (checkpoint / "tok.py").write_text("x = 1")
    assert identity(checkpoint, trust_remote_code=True) != before


# --- tokenizers that cannot be loaded ---------------------------------------------------------------------------------

TOKENIZER_CODE = """
import a_package_that_may_be_missing
from transformers import PreTrainedTokenizerFast

class Mine(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def needs_package(checkpoint: Path) -> Path:
    (checkpoint / "tok.py").write_text(TOKENIZER_CODE)
    auto_map = {"AutoTokenizer": ["tok.Mine", "tok.Mine"]}
    change_json(checkpoint / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Mine")
    return checkpoint


def test_a_missing_package_is_not_remembered(
    needs_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def source() -> CheckpointSource:
        return CheckpointSource(needs_package, {"trust_remote_code": True})

    for _ in range(2):
        problem = source().tokenizer_problem()
        assert problem is not None
        assert "a_package_that_may_be_missing" in problem
        with pytest.raises(CheckpointError, match="a_package_that_may_be_missing"):
            source().require_tokenizer()
    source().save_companions(tmp_path)
    assert not (tmp_path / "tokenizer").exists()

    site = tmp_path / "site"
    site.mkdir()
    (site / "a_package_that_may_be_missing.py").write_text("")
    monkeypatch.syspath_prepend(str(site))
    assert source().tokenizer_problem() is None
    # From here on it is remembered, and nothing is loaded to find out.
    monkeypatch.setattr(Preprocessing, "_load_tokenizer", lambda _: pytest.fail("the tokenizer was loaded"))
    assert source().tokenizer_problem() is None


def test_a_tokenizer_whose_code_is_not_trusted(needs_package: Path) -> None:
    with pytest.raises(CheckpointError, match="--trust-remote-code"):
        CheckpointSource(needs_package, {}).require_tokenizer()


def test_no_tokenizer_at_all(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.glob("*token*"):
        file.unlink()
    source = CheckpointSource(checkpoint, {})
    assert source.tokenizer_problem() is None, "there is nothing that an artifact would lack"
    source.save_companions(tmp_path)
    assert not (tmp_path / "tokenizer").exists()
    with pytest.raises(CheckpointError, match="comes with no tokenizer"):
        source.require_tokenizer()


# --- adapters ---------------------------------------------------------------------------------------------------------

LORA = '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}'


def test_an_adapter_beside_the_weights(checkpoint: Path) -> None:
    for name, content in (("adapter_config.json", LORA), ("adapter_model.safetensors", "x")):
        (checkpoint / name).write_text(content)
        with pytest.raises(CheckpointError, match="holds an adapter.* beside its weights.*take .* out.*adapter=FOLDER"):
            QEFFAutoModel.from_pretrained(checkpoint)
        (checkpoint / name).unlink()


def test_an_adapter_alone_is_that_of_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapter_config.json").write_text(LORA)
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="'org/base' is neither a local folder nor a model that the hub gives"):
        QEFFAutoModel.from_pretrained(tmp_path, local_files_only=True)


def test_an_adapter_on_the_hub(repository: Path) -> None:
    (repository / "snapshots" / COMMITS["old"] / "adapter_config.json").write_text(LORA)
    with pytest.raises(CheckpointError, match="org/tiny holds an adapter.* beside its weights"):
        from_hub(repository).config()
    inner = repository / "snapshots" / COMMITS["old"] / "inner"
    inner.mkdir()
    (inner / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="beside its weights"):
        from_hub(repository, subfolder="inner").config()
    (repository / "snapshots" / COMMITS["old"] / "config.json").unlink()
    with pytest.raises(CheckpointError, match="org/tiny is no model but an adapter.*'org/base'"):
        from_hub(repository).config()
