"""Tensors whose numbers stay in a file until an operator needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qeff_framework.errors import CheckpointError
from qeff_framework.seam.deferred import DeferredTensor, DeferredWriteError, StoredTensor, has_numbers

SHAPE = (8, 6)


@pytest.fixture
def numbers() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.fixture
def deferred(numbers: torch.Tensor, tmp_path: Path) -> DeferredTensor:
    """`numbers` behind seven other bytes."""
    file = tmp_path / "weights"
    file.write_bytes(b"header " + numbers.view(torch.uint8).numpy().tobytes())
    return DeferredTensor.of_file(StoredTensor(path=file, offset=7, shape=SHAPE, dtype=torch.bfloat16))


MOVES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cast": lambda x: x.to(torch.float32),
    "stack": lambda x: torch.stack([x.float(), x.float()], dim=1),
    "chunks": lambda x: torch.cat(x.chunk(3, dim=1)[::-1]),
    "turned": lambda x: x.mT,
    "permuted rows": lambda x: x.view(2, 4, 6).transpose(1, 2).reshape(12, 4),
    "parameter": lambda x: torch.nn.Parameter(x.float(), requires_grad=False),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_what_moves_numbers_reads_none(
    move: Callable[[torch.Tensor], torch.Tensor], deferred: DeferredTensor, numbers: torch.Tensor
) -> None:
    moved, wanted = move(deferred), move(numbers)

    assert isinstance(moved, DeferredTensor)
    assert (moved.shape, moved.dtype) == (wanted.shape, wanted.dtype)
    assert torch.equal(moved.materialise(), wanted)


def test_what_computes_gets_the_numbers(deferred: DeferredTensor, numbers: torch.Tensor) -> None:
    computed = torch.ones(2, 6) @ deferred.float().T + 1

    assert type(computed) is torch.Tensor
    assert torch.equal(computed, torch.ones(2, 6) @ numbers.float().T + 1)


def test_a_weight_is_not_written_to(deferred: DeferredTensor) -> None:
    with pytest.raises(DeferredWriteError, match="writes into a weight"):
        deferred.zero_()


def test_numbers_that_are_gone_are_an_error(deferred: DeferredTensor) -> None:
    stored = deferred.recipe
    assert isinstance(stored, StoredTensor)
    stored.path.write_bytes(stored.path.read_bytes()[:-1])

    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        deferred.materialise()


def test_zeros_are_told_from_numbers(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    rows = torch.zeros(5, 4)
    file.write_bytes(rows.numpy().tobytes())
    deferred = DeferredTensor.of_file(StoredTensor(path=file, offset=0, shape=(5, 4), dtype=torch.float32))

    assert not has_numbers(deferred)
    rows[4, 3] = 1.0
    file.write_bytes(rows.numpy().tobytes())
    assert has_numbers(torch.stack([deferred, deferred]))
    with file.open("wb") as hole:
        hole.truncate(rows.nbytes)
    assert not has_numbers(deferred)
