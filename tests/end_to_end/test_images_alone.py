"""Tiny random models of images through `ort_sim`: class scores, and scores of texts for images, as Transformers computes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_utils import load_image

from qeff_framework import (
    QEFFAutoModel,
    QEFFAutoModelForImageClassification,
    QEFFAutoModelForZeroShotImageClassification,
    load_compiled,
)
from qeff_framework.cli.app import main
from qeff_framework.errors import CheckpointError, InputError, OptionError
from qeff_framework.sources import CheckpointSource
from tests.image_models import clip_of_words, picture, resnet


@pytest.fixture(autouse=True)
def _store(session_store: Path) -> None:
    """Exports lie there."""


def _pictures(folder: Path) -> list[Path]:
    return [picture(folder / "dark.png", 60), picture(folder / "bright.jpg", 250)]


def _turned(file: Path) -> Path:
    """A photograph that lies on its side, and says so."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((48, 32))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, exif=exif)
    return file


def test_a_tokenizer_is_no_processor_of_images(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    """Transformers takes it for one where a folder holds nothing else."""
    folder = next(iter(tokenizer_folders.values()))
    shutil.copytree(folder, tmp_path / "model")
    resnet()[0].save_pretrained(tmp_path / "model")
    model = QEFFAutoModelForImageClassification.from_pretrained(tmp_path / "model")
    with pytest.raises(
        CheckpointError, match=r"the processor of model, .*; add the checkpoint's preprocessor_config\.json"
    ):
        model.compile("ort_sim")


def test_classes_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, saved = resnet()
    for part in (module, saved):
        part.save_pretrained(tmp_path / "model")
    # Of the kind that an artifact gets as well: with torchvision, where that is installed.
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    model = QEFFAutoModel.from_pretrained(tmp_path / "model")
    assert isinstance(model, QEFFAutoModelForImageClassification)
    compiled = model.compile("ort_sim", batch_size=2)
    files = [*_pictures(tmp_path), _turned(tmp_path / "turned.jpg")]
    inputs = processor(images=[load_image(str(file)) for file in files] * 2, return_tensors="pt")
    with torch.no_grad():
        wanted = module(**inputs).logits.numpy()
    with load_compiled(compiled.directory) as program:
        np.testing.assert_allclose(program.generate(**inputs), wanted, atol=1e-4)
        with pytest.raises(InputError, match=r"the shape \[3, 16, 16\], the program takes \[3, 32, 32\]"):
            program.generate(pixel_values=np.zeros((1, 3, 16, 16), np.float32))
    with pytest.raises(OptionError, match="height and width belong together"):
        model.compile("ort_sim", height=32)
    artifact = str(compiled.directory)
    assert main(["generate", artifact, "--image", *map(str, files), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    np.testing.assert_allclose([result["logits"] for result in results], wanted[:3], atol=1e-4)
    assert main(["generate", artifact, "--image", str(files[0]), "--prompt", "a cat"]) != 0
    assert "it works on images alone; leave the prompts out" in capsys.readouterr().err


def test_images_and_texts_in_one_space(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    store_root: Path,
) -> None:
    """Two programs; what is to be said about their checkpoint is said once."""
    monkeypatch.setattr(CheckpointSource, "notes", lambda self: ("its weights are odd",))
    module, processor = clip_of_words()
    module.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    model = QEFFAutoModel.from_pretrained(tmp_path / "model")
    assert isinstance(model, QEFFAutoModelForZeroShotImageClassification)
    compiled = model.compile("ort_sim", batch_size=2)
    assert [each.getMessage() for each in caplog.records].count("its weights are odd") == 1
    files, texts = _pictures(tmp_path), ["w3 w4 w5 w19", "w7 w19", "w9 w2 w19"]
    inputs = processor(text=texts, images=[Image.open(file) for file in files], padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        wanted = module(**inputs)
    with load_compiled(compiled.directory) as program:
        found = program.generate(**inputs)
    for name, values in found._asdict().items():
        np.testing.assert_allclose(values, getattr(wanted, name).numpy(), atol=1e-4)
    assert main(["generate", str(compiled.directory), "--image", *map(str, files), "--prompt", *texts, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    np.testing.assert_allclose([result["logits"] for result in results], wanted.logits_per_image.numpy(), atol=1e-4)
