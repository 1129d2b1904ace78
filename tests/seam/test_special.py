"""Families whose code goes around the seam: the tokens of Transformers, in chunks, with padding in a batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from qeff_framework.coverage.reference import clear_reference
from qeff_framework.coverage.tiny import tiny_model
from qeff_framework.export.portable import export_portable
from qeff_framework.seam import special
from tests.portable_loop import greedy

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::RuntimeWarning"
)


@pytest.mark.parametrize("model_type", special._FAMILIES)
def test_tokens_equal_transformers(model_type, tmp_path):
    module = tiny_model(model_type, "causal-lm")
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    reference = clear_reference(module)

    exported = export_portable(module, task="causal-lm", output_dir=tmp_path)

    tokens = greedy(exported, reference.prompts, new_tokens=8, chunk=4, ctx_len=24)
    assert tokens == [row[:8] for row in reference.tokens]
    if model_type != "rwkv":  # Transformers itself halves weights of it when it runs them.
        assert all(parameter.equal(before[name]) for name, parameter in module.named_parameters())


def test_each_family_stands_in_a_file_with_its_reason():
    files = {path.stem for path in Path(special.__file__).parent.glob("*.py")} - {"__init__"}

    assert files == set(special._FAMILIES.values())
    for name in files:
        text = (Path(special.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        assert text.startswith('"""'), f"{name} does not say why it is special"
