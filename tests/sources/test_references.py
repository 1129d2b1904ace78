"""Checkpoints whose weights are not read: their files lie in the export, and everything is as if they had been read."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file

from qeff_framework import QEFFAutoModelForCausalLM
from qeff_framework.artifacts import Manifest, content_digest, manifest, verify
from qeff_framework.artifacts.digests import file_sha256
from qeff_framework.errors import ArtifactError, CheckpointError
from qeff_framework.seam.deferred import ComputedTensor, DeferredTensor, StoredTensor, beginnings, without_casts
from qeff_framework.sources import CheckpointSource
from qeff_framework.sources.references import PlacedShards
from qeff_framework.sources.torch_files import stored_tensors
from tests.sources.quantized import packing
from tests.sources.quantized.test_loading import pack
from tests.tiny_models import tiny_causal_lm

AUTO = "AutoModelForCausalLM"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where an export is written."""
    path = tmp_path / "export"
    path.mkdir()
    return path


@pytest.fixture(params=["model.safetensors", "pytorch_model.bin"])
def shard(request: pytest.FixtureRequest, checkpoint: Path) -> Path:
    """The one file of weights of `checkpoint`."""
    path = checkpoint / str(request.param)
    if path.suffix == ".bin":
        torch.save(load_file(checkpoint / "model.safetensors"), path)
        (checkpoint / "model.safetensors").unlink()
    return path


def refuse_links(*paths: object) -> NoReturn:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.mark.parametrize("model_type", ["gemma3_text", "gpt2", "mixtral"])
def test_every_parameter_is_what_the_loader_reads(model_type: str, directory: Path, tmp_path: Path) -> None:
    """Norms with an offset and tied weights, transposed weights, and experts that are stacked from several tensors."""
    module = tiny_causal_lm(model_type, tie_word_embeddings=True)[0]
    module.to(torch.bfloat16).save_pretrained(tmp_path / "tiny", max_shard_size="20KB")
    source = CheckpointSource(tmp_path / "tiny", {})
    referring = source.load_for_export(AUTO, directory)
    read = CheckpointSource(tmp_path / "tiny", {}).load(AUTO)

    deferred = dict(referring.named_parameters(remove_duplicate=False))
    assert all(isinstance(parameter, DeferredTensor) for parameter in deferred.values())
    for name, wanted in read.named_parameters(remove_duplicate=False):
        assert torch.equal(deferred[name].materialise(), wanted), name  # type: ignore[operator]
    assert all(torch.equal(buffer, referring.get_buffer(name)) for name, buffer in read.named_buffers())
    assert deferred["lm_head.weight"] is referring.get_input_embeddings().weight  # type: ignore[operator]
    assert len(list(directory.iterdir())) > 1


def test_files_are_linked_and_a_changed_checkpoint_is_exported_again(
    checkpoint: Path, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = QEFFAutoModelForCausalLM.from_pretrained(checkpoint).export()

    link = exported.directory / shard.name
    assert link.samefile(shard)
    assert not (exported.directory / "model.onnx.data").exists()
    assert Manifest.load(exported.directory).files[shard.name].sha256 == content_digest(shard)
    # Another name moves the time of the file's last change, and is no reason to read it.
    os.link(shard, checkpoint.parent / "another name")
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "ALWAYS_READ_BYTES", 0)
        patch.setattr(manifest, "file_sha256", refuse_reading_of(shard.name))
        assert not verify(exported.directory)
    content = bytearray(shard.read_bytes())
    content[place_of_a_number(shard)] ^= 1
    shard.write_bytes(content)
    again = QEFFAutoModelForCausalLM.from_pretrained(checkpoint).export()
    assert again.directory != exported.directory
    assert not verify(again.directory)
    assert [problem.file for problem in verify(exported.directory)] == [shard.name]


def place_of_a_number(shard: Path) -> int:
    """Behind the numbers of a file of torch stands the list of its parts."""
    if shard.suffix == ".safetensors":
        return shard.stat().st_size - 2
    return max(place.offset for place in stored_tensors(shard).values())


def refuse_reading_of(name: str) -> Callable[[Path], str]:
    def read(path: Path) -> str:
        assert path.name != name
        return file_sha256(path)

    return read


def test_without_links_there_is_one_copy(
    checkpoint: Path, shard: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    source = CheckpointSource(checkpoint, {})
    source.load_for_export(AUTO, directory)

    assert not source.keep_weights({shard.name})  # The copy is read for the manifest.
    assert not (directory / shard.name).samefile(shard)
    assert content_digest(directory / shard.name) == content_digest(shard)


def test_on_another_file_system_there_is_one_copy(checkpoint: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not os.access(elsewhere, os.W_OK) or elsewhere.stat().st_dev == checkpoint.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    shard = checkpoint / "model.safetensors"
    with tempfile.TemporaryDirectory(dir=elsewhere) as directory:
        placed = PlacedShards({shard: content_digest(shard)}, Path(directory), name="tiny")
        copy = placed.path_of(shard)
        assert copy is not None
        assert not copy.samefile(shard)
        assert copy.read_bytes() == shard.read_bytes()
        assert not placed.keep({"model.safetensors"})


@pytest.fixture
def read_only(checkpoint: Path, shard: Path) -> Iterator[Path]:
    """The folder of a checkpoint on a file system that takes no writing, whoever asks."""
    assert shard.parent == checkpoint
    mount = ["mount", "--bind", "--options", "ro", str(checkpoint), str(checkpoint)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield checkpoint
    finally:
        subprocess.run(["umount", "--lazy", str(checkpoint)], check=True)


def test_a_read_only_checkpoint_is_copied(read_only: Path, shard: Path, directory: Path) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        (read_only / "new").touch()
    source = CheckpointSource(read_only, {})
    module = source.load_for_export(AUTO, directory)
    source.save_companions(directory)
    assert all(isinstance(parameter, DeferredTensor) for parameter in module.parameters())
    assert not source.keep_weights({shard.name})
    copy = directory / shard.name
    assert copy.read_bytes() == shard.read_bytes()
    assert not copy.samefile(shard)  # Links do not cross a mount.


def test_a_file_that_cannot_grow_is_an_error_that_leaves_nothing(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, store_root: Path
) -> None:
    """A real limit of the operating system, in the middle of the copy."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(os, "link", refuse_links)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, hard))
    try:
        with pytest.raises(ArtifactError, match=r"cannot build .*tiny.*File too large.*limit of file sizes"):
            QEFFAutoModelForCausalLM.from_pretrained(checkpoint).export()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in (store_root / "staging").iterdir() if path.is_dir()]
    assert not list((store_root / "exports").glob("*"))


def test_a_packed_file_that_is_cut_meanwhile_is_an_error(checkpoint: Path, directory: Path) -> None:
    """Its weights are computed from the file when they are written."""
    pack(checkpoint, packing.AWQ, packing.awq)
    shard = checkpoint / "model.safetensors"
    source = CheckpointSource(checkpoint, {})
    module: Any = source.load_for_export(AUTO, directory)
    os.truncate(shard, shard.stat().st_size // 2)

    last = max(
        (leaf for leaf in map(packed_leaf, module.parameters()) if leaf), key=lambda leaf: leaf.sources[0].offset
    )
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        last.read()
    with pytest.raises(CheckpointError, match="changed while it was exported"):
        source.keep_weights(())


def test_too_little_space_for_unpacked_weights_is_told_before_the_trace(
    checkpoint: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(checkpoint, packing.AWQ, packing.awq)
    source = CheckpointSource(checkpoint, {})
    module: Any = source.load_for_export(AUTO, directory)
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())
    usage: Any = namedtuple("usage", "total used free")  # noqa: PYI024
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, numbers))
    CheckpointSource(checkpoint, {}).load_for_export(AUTO, directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, numbers - 1))
    with pytest.raises(ArtifactError, match="writing the weights of tiny as numbers needs"):
        CheckpointSource(checkpoint, {}).load_for_export(AUTO, directory)


def packed_leaf(parameter: Any) -> ComputedTensor | None:
    recipe = without_casts(parameter.recipe)
    return recipe if isinstance(recipe, ComputedTensor) else None


def test_a_copy_without_space_is_refused_before_it_is_made(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, store_root: Path
) -> None:
    usage: Any = namedtuple("usage", "total used free")  # noqa: PYI024
    monkeypatch.setattr(os, "link", refuse_links)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1))
    monkeypatch.setattr(shutil, "copyfile", refuse_links)

    with pytest.raises(
        ArtifactError, match=r"a copy of the weights of tiny needs \d+\.\d kB, and the disk of .* has 0\.0 kB left"
    ):
        QEFFAutoModelForCausalLM.from_pretrained(checkpoint).export()
    assert not list((store_root / "exports").glob("*"))


def test_a_file_that_changes_meanwhile_is_an_error(checkpoint: Path, shard: Path, directory: Path) -> None:
    source = CheckpointSource(checkpoint, {})
    last = max(map(stored_leaf, source.load_for_export(AUTO, directory).parameters()), key=lambda leaf: leaf.offset)
    os.truncate(shard, last.offset + 1)

    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        last.read()
    with pytest.raises(CheckpointError, match="changed while it was exported"):
        source.keep_weights({shard.name})


def stored_leaf(parameter: Any) -> StoredTensor:
    (leaf,) = beginnings(parameter.recipe)
    assert isinstance(leaf, StoredTensor)
    return leaf


def test_a_file_that_is_replaced_meanwhile_is_kept_as_it_was(checkpoint: Path, shard: Path, directory: Path) -> None:
    wanted = content_digest(shard)
    placed = PlacedShards({shard: wanted}, directory, name="tiny")
    other = checkpoint / "download"
    other.write_bytes(b"another checkpoint")
    other.replace(shard)

    assert placed.keep({shard.name}) == {shard.name: wanted}
    assert content_digest(directory / shard.name) == wanted


def test_a_file_that_changed_before_it_was_placed_is_not_known_by_its_old_digest(
    tmp_path: Path, directory: Path, store_root: Path
) -> None:
    """Digests of large files are remembered: what lies there now must not be taken for what the export's key was made of."""

    def write(content: bytes) -> None:
        shard.write_bytes(content * (2 << 20))
        os.utime(shard, (1_000_000_000, 1_000_000_000))

    shard = tmp_path / "model.safetensors"
    write(b"a")
    digest = content_digest(shard)
    write(b"b")
    PlacedShards({shard: digest}, directory, name="large")
    assert content_digest(shard) == hashlib.sha256(shard.read_bytes()).hexdigest() != digest


def test_what_fails_leaves_the_checkpoint_alone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, store_root: Path
) -> None:
    shard = checkpoint / "model.safetensors"
    before = shard.read_bytes()
    monkeypatch.setattr("qeff_framework.export.causal_lm.find_rms_norms", refuse_links)

    with pytest.raises(OSError, match="cross-device"):
        QEFFAutoModelForCausalLM.from_pretrained(checkpoint).export()
    assert shard.stat().st_nlink == 1
    assert shard.read_bytes() == before
    assert not [path for path in (store_root / "staging").iterdir() if path.is_dir()]


def test_a_file_of_torch_is_referred_to(checkpoint: Path, directory: Path) -> None:
    """Also what lies transposed there, and what leaves out numbers of a larger tensor."""
    read = CheckpointSource(checkpoint, {}).load(AUTO)
    states = {name: state.clone() for name, state in read.state_dict().items()}
    wide = torch.randn(64, 64)
    states["model.layers.0.self_attn.q_proj.weight"] = torch.randn(32, 32).T
    states["model.layers.0.self_attn.o_proj.weight"] = wide[:32, :32]
    torch.save(states, checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()

    source = CheckpointSource(checkpoint, {})
    deferred: Any = dict(source.load_for_export(AUTO, directory).named_parameters(remove_duplicate=False))
    assert (directory / "pytorch_model.bin").samefile(checkpoint / "pytorch_model.bin")
    assert {*deferred} >= {*read.state_dict()}
    for name, parameter in deferred.items():
        assert torch.equal(parameter.materialise(), states[name]), name
    computed = {name for name in deferred if isinstance(without_casts(deferred[name].recipe), ComputedTensor)}
    assert computed == {"model.layers.0.self_attn.o_proj.weight"}


def test_files_of_other_formats_are_read(checkpoint: Path, directory: Path) -> None:
    """Such as those of torch before 1.6, whose numbers have no place of their own."""
    torch.save(
        load_file(checkpoint / "model.safetensors"),
        checkpoint / "pytorch_model.bin",
        _use_new_zipfile_serialization=False,
    )
    (checkpoint / "model.safetensors").unlink()

    read = CheckpointSource(checkpoint, {}).load_for_export(AUTO, directory)

    assert not any(isinstance(parameter, DeferredTensor) for parameter in read.parameters())
    assert not list(directory.iterdir())


def test_a_blob_of_the_hub_has_its_digest_for_a_name(checkpoint: Path) -> None:
    snapshot, blobs = checkpoint / "snapshots" / ("0" * 40), checkpoint / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    digest = "ab" * 32
    shutil.copy(checkpoint / "config.json", snapshot)
    (checkpoint / "model.safetensors").rename(blobs / digest)
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs") / digest)

    files = CheckpointSource(snapshot, {}).identity()["files"]

    assert files["model.safetensors"] == digest
    assert files["config.json"] == content_digest(checkpoint / "config.json")
