"""What is wrong with a checkpoint is told before work where it can be, at the end of a command, and on every run."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cli.conftest import PROGRAM_SIZES

PACKAGE = "a_package_that_is_not_here"


@pytest.fixture(scope="module")
def without_tokenizer(llama, tmp_path_factory):
    """The tiny Llama with a tokenizer whose code needs a package, and with a weight that nothing takes."""
    from safetensors.torch import load_file, save_file
    from torch import ones

    folder = shutil.copytree(llama, tmp_path_factory.mktemp("models") / "untold")
    file = folder / "tokenizer_config.json"
    auto_map = {"AutoTokenizer": ["tok.Mine", "tok.Mine"]}
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": auto_map, "tokenizer_class": "Mine"}))
    (folder / "tok.py").write_text(f"import {PACKAGE}\nclass Mine: pass\n")
    weights = {**load_file(folder / "model.safetensors"), "vision.proj.weight": ones(2, 2)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_texts_need_a_tokenizer_before_anything_is_compiled(qeff, without_tokenizer, tmp_path):
    for flags, reason in (([], "--trust-remote-code"), (["--trust-remote-code"], PACKAGE)):
        for _ in range(2):
            result = qeff("generate", without_tokenizer, "--backend", "ort_sim", "--prompt", "one", *flags)
            assert result.code == 1
            assert reason in result.err.splitlines()[-1]
    assert not (tmp_path / "home" / "exports").exists()


def test_a_program_without_its_tokenizer_says_why(model_qeff, without_tokenizer, tmp_path):
    trusted = (without_tokenizer, "--trust-remote-code", "--backend", "toy", *PROGRAM_SIZES)
    for _ in range(2):
        result = model_qeff("compile", *trusted, "-o", tmp_path / "program")
        assert result.code == 0
        end = result.out[result.out.index("warning") :]
        assert PACKAGE in end
        assert "vision.proj.weight" in end
        # And as a log record, which Python code sees as well.
        assert [line for line in result.err.splitlines() if line.startswith("qeff: warning: ") and PACKAGE in line]
    document = model_qeff("compile", *trusted, "--json").json
    assert any(PACKAGE in text for text in document["warnings"])

    result = model_qeff("generate", tmp_path / "program", "--prompt", "one")
    assert result.code == 1
    assert PACKAGE in result.err.splitlines()[-1]
