"""The check passes what is right, catches what is wrong, and says where it went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qeff_framework.coverage import parity
from qeff_framework.coverage.images import ImageReference, SeenLogits
from qeff_framework.coverage.parity import HIDDEN_TOLERANCE, check_parity
from qeff_framework.coverage.processes import CheckError
from qeff_framework.coverage.reference import reference_embedding
from qeff_framework.coverage.tiny import tiny_model
from qeff_framework.dialect import ops
from qeff_framework.seam import cache
from qeff_framework.seam.scope import Step

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("module_store"),
]


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What one test has exported, another one finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEFF_HOME", str(tmp_path_factory.mktemp("qeff-home")))
        yield


def test_a_decoder_passes_with_its_facts() -> None:
    facts = check_parity("gpt_bigcode", task="causal-lm", backend="ort_sim")
    assert facts["class"] == "GPTBigCodeForCausalLM"
    assert 0 < facts["logit_error"] < 1e-3
    assert facts["margin"] >= 0.01


def test_an_encoder_passes_with_its_facts() -> None:
    facts = check_parity("distilbert", task="encoder", backend="ort_sim")
    assert facts["class"] == "DistilBertModel"
    assert 0 < facts["hidden_error"] <= HIDDEN_TOLERANCE


def test_an_encoder_without_a_mask_reads_padding_as_transformers_does() -> None:
    facts = check_parity("fnet", task="encoder", backend="ort_sim")
    assert facts["padding_effect"] > 0.1 > HIDDEN_TOLERANCE >= facts["hidden_error"]


def test_keys_in_wrong_slots_are_caught(monkeypatch: pytest.MonkeyPatch, store_root: Path) -> None:
    def crowded(state: torch.Tensor, tokens: torch.Tensor, step: Step) -> torch.Tensor:
        return ops.kv_update(state, tokens, step.position_ids.clamp(max=10))

    monkeypatch.setattr(cache, "_written", crowded)
    with pytest.raises(CheckError, match="differs from step") as caught:
        check_parity("gpt_bigcode", task="causal-lm", backend="ort_sim")
    assert caught.value.facts["stage"] == "tokens"
    assert caught.value.facts["logit_error"] > 1e-2


def test_hidden_states_of_another_model_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny_model("distilbert", "encoder", seed=1)

    def of_other_weights(module: torch.nn.Module, prompts: list[list[int]], *, width: int = 0) -> list[torch.Tensor]:
        return reference_embedding(other, prompts, width=width)

    monkeypatch.setattr(parity, "reference_embedding", of_other_weights)
    with pytest.raises(CheckError, match="standard deviations") as caught:
        check_parity("distilbert", task="encoder", backend="ort_sim")
    assert caught.value.facts["stage"] == "values"


def test_what_transformers_cannot_do_is_no_failure_of_the_export(store_root: Path) -> None:
    with pytest.raises(CheckError, match="bbox") as caught:
        check_parity("bros", task="encoder", backend="ort_sim")
    assert caught.value.facts["stage"] == "reference"
    assert caught.value.facts["where"].startswith("models/bros/")
    assert not store_root.exists()


def test_a_stage_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckError, match="UnknownBackendError") as caught:
        check_parity("distilbert", task="encoder", backend="nonesuch")
    assert caught.value.facts["stage"] == "compile"


def test_logits_of_images_and_text_are_compared_beside_the_tokens() -> None:
    """A logit that is off by less than what changes the tokens is found."""
    want = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    reference = ImageReference(
        prompts=[[5, 6]], images=[[]], tokens=[[1, 2]], logits=[want], margin=1.0, image_tokens=1
    )
    exact, wrong = SeenLogits(), SeenLogits()
    for step, ids in enumerate(([5, 6], [5, 6, 1])):
        exact(torch.tensor([ids]), want[step : step + 1])
        wrong(torch.tensor([ids]), want[step : step + 1] + (0.02 if step else 0))
    assert exact.error(reference) == 0
    assert wrong.error(reference) == pytest.approx(0.02 / float(want[1].std()), rel=0.05)
