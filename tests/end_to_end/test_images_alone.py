"""Tiny random models of images through `ort_sim`: class scores, and scores of texts for images, as Transformers computes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
)

from qeff_framework import (
    QEFFAutoModel,
    QEFFAutoModelForImageClassification,
    QEFFAutoModelForZeroShotImageClassification,
    load_compiled,
)
from qeff_framework.cli.app import main
from qeff_framework.errors import InputError, OptionError
from tests.image_models import picture

_SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_END = 19


@pytest.fixture(autouse=True)
def _store(session_store: Path) -> None:
    """Exports lie there."""


def _pictures(folder: Path) -> list[Path]:
    return [picture(folder / "dark.png", 60), picture(folder / "bright.jpg", 250)]


def test_classes_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ResNetForImageClassification(config).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model = QEFFAutoModel(module, processor=processor)
    assert isinstance(model, QEFFAutoModelForImageClassification)
    compiled = model.compile("ort_sim", batch_size=2)
    files = _pictures(tmp_path)
    inputs = processor(images=[Image.open(file) for file in files] * 2, return_tensors="pt")
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
    np.testing.assert_allclose([result["logits"] for result in results], wanted[:2], atol=1e-4)
    assert main(["generate", artifact, "--image", str(files[0]), "--prompt", "a cat"]) != 0
    assert "it works on images alone; leave the prompts out" in capsys.readouterr().err


def test_images_and_texts_in_one_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {f"w{index}": index for index in range(20)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    processor = CLIPProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w1", pad_token="w0"),
    )
    config = CLIPConfig(
        text_config={**_SIZES, "vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": _END, "pad_token_id": 0},
        vision_config={**_SIZES, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = CLIPModel(config).eval()
    module.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    model = QEFFAutoModel.from_pretrained(tmp_path / "model")
    assert isinstance(model, QEFFAutoModelForZeroShotImageClassification)
    compiled = model.compile("ort_sim", batch_size=2)
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
