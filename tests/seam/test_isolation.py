"""What an export changes for the whole process concerns nobody else, and is afterwards as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from qeff_framework.seam.adapt import positional_masks
from qeff_framework.seam.isolation import exporting
from qeff_framework.seam.loop_recorder import LoopRecorder
from qeff_framework.seam.mask_plan import MaskPlan
from qeff_framework.seam.scope import Scope, forward_scope
from qeff_framework.seam.states import StateId

SIZES = {"batch_size": 1, "q_length": 3, "kv_length": 3, "q_offset": 0, "kv_offset": 0}


def causal(batch, head, query, key):
    del batch, head
    return key <= query


def eager_mask() -> object:
    return ALL_MASK_ATTENTION_FUNCTIONS["eager"](**SIZES, mask_function=causal, dtype=torch.float32)


def in_another_thread(function: Callable[[], object]) -> object:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0] if results else None


@pytest.fixture
def own_entry(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Somebody's own mask function in the library's registry."""

    def own(**_: object) -> str:
        return "own"

    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS, "eager", own)
    return own


def test_masks_of_a_trace_are_for_its_own_passes(own_entry):
    scope = Scope(masks=MaskPlan())
    with positional_masks():
        with forward_scope(scope):
            assert isinstance(eager_mask(), torch.Tensor)
            assert in_another_thread(eager_mask) == "own"
        assert eager_mask() == "own"
    assert ALL_MASK_ATTENTION_FUNCTIONS["eager"] is own_entry


def test_a_trace_within_a_trace_leaves_the_outer_one_its_masks():
    entries = ALL_MASK_ATTENTION_FUNCTIONS._local_mapping
    before = dict(entries)
    with positional_masks():
        with positional_masks(), forward_scope(Scope(masks=MaskPlan())):
            assert isinstance(eager_mask(), torch.Tensor)
        with forward_scope(Scope(masks=MaskPlan())):
            assert isinstance(eager_mask(), torch.Tensor)
    assert entries == before


def test_an_entry_that_somebody_sets_meanwhile_stays(monkeypatch):
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS, "sdpa", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    with positional_masks():
        ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = causal
    assert ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is causal


def test_exports_of_two_threads_take_turns():
    with exporting(), exporting():
        waiting = threading.Thread(target=lambda: exporting().__enter__())
        waiting.daemon = True
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
    waiting.join(5)
    assert not waiting.is_alive()


def test_the_recorder_follows_its_own_model_alone():
    watched, other = torch.nn.Sequential(torch.nn.Identity()), torch.nn.Identity()
    recorder = LoopRecorder()

    class Owner(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            in_another_thread(lambda: other(x))
            other(x)
            recorder.note(StateId(layer=0, role="recurrent"))
            return x

    watched.append(Owner())
    with recorder.watching(watched):
        watched(torch.zeros(1))
    assert recorder.owners(watched) == {0: "1"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.modules())
