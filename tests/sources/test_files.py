"""Which files of a folder are read is what Transformers does; what is damaged is told by name, with the remedy."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qeff_framework import QEFFAutoModelForCausalLM
from qeff_framework.errors import CheckpointError
from qeff_framework.sources import CheckpointSource
from qeff_framework.sources.files import check_weight_files, weight_files

NAMES = {
    None: [
        *("model.safetensors", "model.safetensors.index.json"),
        *("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ],
    "fp16": [
        *("model.fp16.safetensors", "model.safetensors.index.fp16.json"),
        *("pytorch_model.fp16.bin", "pytorch_model.bin.index.fp16.json"),
    ],
}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4' * 64}\nsize 123456\n"


def test_the_files_of_the_weights_are_those_that_transformers_reads(tmp_path: Path) -> None:
    """Every combination of files that may lie side by side, with every way to ask for some of them."""
    for shard in ("a.shard", "b.shard"):
        (tmp_path / shard).touch()
    index = json.dumps({"metadata": {}, "weight_map": {"x": "b.shard", "y": "a.shard", "z": "b.shard"}})
    compared = 0
    for asked, names in NAMES.items():
        for there in itertools.product((True, False), repeat=len(names)):
            present = [name for name, is_there in zip(names, there, strict=True) if is_there]
            for name in present:
                (tmp_path / name).write_text(index)
            for use_safetensors in (None, True, False):
                for variant in NAMES:
                    compared += _same_files(tmp_path, variant, use_safetensors) and variant == asked
            for name in present:
                (tmp_path / name).unlink()
    assert compared == 2 * (15 + 12 + 12), "each combination with a file of the format that is asked for"


def _same_files(folder: Path, variant: str | None, use_safetensors: bool | None) -> bool:
    """Compares with Transformers; says whether there were any files."""
    from transformers.modeling_utils import _get_resolved_checkpoint_files

    try:
        files, _ = _get_resolved_checkpoint_files(
            str(folder), variant, None, use_safetensors, None, is_remote_code=False, download_kwargs={}
        )
    except OSError:
        with pytest.raises(CheckpointError, match="holds no weights"):
            weight_files(folder, variant=variant, use_safetensors=use_safetensors)
        return False
    ours = weight_files(folder, variant=variant, use_safetensors=use_safetensors)
    assert [str(path) for path in ours if ".index" not in path.name] == files
    return True


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def as_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def as_dangling_link(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.parent / "blobs" / "nowhere")


@pytest.mark.parametrize(
    ("file", "damage", "complaint"),
    [
        ("model.safetensors", lambda file: file.write_text(POINTER), "is a git-lfs pointer .* `git lfs pull`"),
        ("model.safetensors", cut, "is cut: it has .* bytes; .*download it again"),
        ("model.safetensors", lambda file: file.write_bytes(b""), "is empty"),
        ("model.safetensors", lambda file: file.write_bytes(b"\x00" * 64), "is cut or no safetensors file"),
        ("model.safetensors", lambda file: file.write_bytes(b"\x08" + b"\x00" * 7 + b"nonsense"), "is damaged"),
        ("model.safetensors", as_directory, "is a directory"),
        ("model.safetensors", as_dangling_link, "is a link to .*blobs/nowhere, which does not exist"),
        ("config.json", cut, "is not valid JSON"),
        ("config.json", lambda file: file.write_text(POINTER), "is a git-lfs pointer"),
        ("config.json", as_directory, "is a directory"),
        ("generation_config.json", lambda file: file.write_text("{"), "is not valid JSON"),
        ("generation_config.json", lambda file: file.write_text("[]"), "holds no JSON object"),
        (
            "generation_config.json",
            lambda file: file.write_text('{"max_new_tokens": -1}'),
            "is not as Transformers takes",
        ),
        ("tokenizer.json", cut, "is not valid JSON"),
        ("tokenizer.json", lambda file: file.write_text(POINTER), "is a git-lfs pointer"),
        ("tokenizer_config.json", lambda file: file.write_bytes(b"\xff\xfe"), "is not valid JSON"),
        ("tokenizer.model", lambda file: file.write_text(POINTER), "is a git-lfs pointer"),
    ],
)
def test_a_damaged_file_is_named(
    checkpoint: Path, store_root: Path, file: str, damage: Callable[[Path], object], complaint: str
) -> None:
    damage(checkpoint / file)
    with pytest.raises(CheckpointError, match=rf"{file} {complaint}"):
        QEFFAutoModelForCausalLM.from_pretrained(checkpoint).export()
    assert not list((store_root / "exports").glob("*"))


@pytest.mark.parametrize("name", ["../model.safetensors", "a/../../model.safetensors", "/etc/hostname"])
def test_an_index_leads_out_of_no_checkpoint(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "model.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=f"names {name}, which lies outside of the checkpoint"):
        weight_files(checkpoint)


def test_a_file_that_lacks_its_last_byte_is_cut(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="model.safetensors is cut"):
        check_weight_files([file])


def test_weights_of_torch_that_were_cut(checkpoint: Path) -> None:
    import torch

    (checkpoint / "model.safetensors").unlink()
    torch.save({"x": torch.ones(1000)}, checkpoint / "pytorch_model.bin")
    cut(checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is cut"):
        CheckpointSource(checkpoint, {}).load("AutoModelForCausalLM")


def test_shards(saved: Path, checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    (checkpoint / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(saved).save_pretrained(checkpoint, max_shard_size="20KB")
    shards = sorted(checkpoint.glob("*.safetensors"))
    assert len(shards) > 2
    whole = CheckpointSource(checkpoint, {})
    assert {file.name for file in shards} < set(whole.identity()["files"])
    assert whole.load("AutoModelForCausalLM") is not None

    content = shards[1].read_bytes()
    cut(shards[1])
    with pytest.raises(CheckpointError, match=f"{shards[1].name} is cut"):
        CheckpointSource(checkpoint, {}).load("AutoModelForCausalLM")
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"incomplete: .*{shards[1].name} is not there"):
        CheckpointSource(checkpoint, {}).identity()
    shards[1].write_bytes(content)
    index = checkpoint / "model.safetensors.index.json"
    for text, complaint in (("{", "is not valid JSON"), ("{}", "is no index of shards")):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=rf"index\.json {complaint}"):
            CheckpointSource(checkpoint, {}).identity()


def test_weights_under_another_name_are_told(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model.fp16.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no weights.*it holds model\.fp16\.safetensors"):
        CheckpointSource(checkpoint, {}).identity()
    assert "model.fp16.safetensors" in CheckpointSource(checkpoint, {"variant": "fp16"}).identity()["files"]
    # An artifact has a config beside its program, so it looks like a checkpoint.
    (checkpoint / "compiled.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"it is a compiled program: give the model that it was made of"):
        CheckpointSource(checkpoint, {}).identity()


def test_a_file_in_place_of_its_folder(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file; give the folder"):
        CheckpointSource(saved / "model.safetensors", {})


def test_a_subfolder(saved: Path, tmp_path: Path, store_root: Path) -> None:
    shutil.copytree(saved, tmp_path / "repository" / "inner")
    source = CheckpointSource(tmp_path / "repository", {"subfolder": "inner"})
    assert source.identity() == CheckpointSource(saved, {}).identity()
    assert source.load("AutoModelForCausalLM") is not None
    assert source.tokenizer_problem() is None
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        CheckpointSource(tmp_path / "repository", {})


def test_a_file_of_torch_that_holds_more_than_tensors_is_refused_without_its_advice(checkpoint: Path) -> None:
    """Torch's message says how to run what the file holds."""
    import torch

    (checkpoint / "model.safetensors").unlink()
    torch.save({"x": Path("a class that no loader of weights knows")}, checkpoint / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError,
        match=r"holds more than plain tensors.* save the checkpoint as safetensors \(save_pretrained\)$",
    ):
        CheckpointSource(checkpoint, {}).load("AutoModelForCausalLM")
