"""What a format hands to the loader: weights by the names of the unquantised checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qeff_framework.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class GroupLayout:
    """How the numbers of a matrix are grouped, which is known without reading them."""

    bits: int
    #: As of `GroupedLevels`.
    block_size: int
    #: Scales of a row.
    count: int
    #: Groups are blocks of adjacent inputs.
    is_adjacent: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupedLevels:
    """A matrix of small integers with a scale and a zero point for each group of inputs."""

    #: uint8 ``[out, in]``, each below ``2 ** bits``.
    levels: torch.Tensor
    #: float32 ``[out, groups]``.
    scales: torch.Tensor
    #: uint8 ``[out, groups]``: the level that stands for 0.
    zero_points: torch.Tensor
    bits: int
    #: Adjacent inputs that share a scale; the last block may be shorter.
    block_size: int
    #: int64 ``[in]``: the group of each input, where groups are no blocks of adjacent inputs.
    groups: torch.Tensor | None = None

    @property
    def layout(self) -> GroupLayout:
        """How the numbers are grouped."""
        return GroupLayout(
            bits=self.bits,
            block_size=self.block_size,
            count=self.scales.shape[1],
            is_adjacent=self.groups is None,
        )

    def dequantised(self) -> torch.Tensor:
        """float32 ``[out, in]``."""
        inputs = self.levels.shape[1]
        weight, zero_points = self.levels.float(), self.zero_points.float()
        if self.groups is None and inputs % self.block_size == 0:
            blocks = weight.view(weight.shape[0], -1, self.block_size)
            blocks -= zero_points.unsqueeze(2)
            blocks *= self.scales.unsqueeze(2)
            return weight
        groups = self.groups if self.groups is not None else torch.arange(inputs) // self.block_size
        weight -= zero_points[:, groups]
        weight *= self.scales[:, groups]
        return weight


def stated_size(value: object, unstated: int) -> int:
    """A size of groups in a ``quantization_config``, where it may be a text or null."""
    try:
        return int(str(value)) if value is not None else unstated
    except ValueError as error:
        raise CheckpointError(
            f"the quantization_config states a group_size of {value!r}, which is no number; correct the config.json or download "
            "the checkpoint again"
        ) from error


def adjacent_block_size(inputs: int, groups: int, stated: int, name: str) -> int:
    """Adjacent inputs in each of `groups` blocks: as `stated` by the config, -1 for all; else equal parts.

    Raises:
        CheckpointError: neither fits. `name` is what the message calls the weight.
    """
    size = inputs if stated == -1 else stated
    if size > 0 and -(-inputs // size) == groups:
        return size
    if groups and inputs % groups == 0:
        return inputs // groups
    raise CheckpointError(
        f"{name} has {inputs} inputs and scales for {groups} groups, which groups of {stated} do not fit; the config.json or the "
        "weights are those of another checkpoint: download both again"
    )


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """One weight of the unquantised checkpoint, and what it is made from."""

    name: str
    #: The tensors that it is made from, or that have no place in the unquantised checkpoint.
    sources: tuple[str, ...]
    #: Those of `sources` without which there are no numbers; the others may be absent.
    needed: tuple[str, ...]
    #: Returns the weight as float32, ``[out, in]`` for a linear layer.
    read: Callable[[], torch.Tensor]
    #: That of what `read` returns, as far as it is known without reading: such a weight is read when it is written.
    shape: tuple[int, ...] | None = None
    #: Returns the part ``[start:stop]`` of the first dimension, where that takes no more than its share of the work.
    read_rows: Callable[[int, int], torch.Tensor] | None = None
    #: Returns the packed form, where it is one of integers in groups.
    levels: Callable[[], GroupedLevels] | None = None
    #: Returns the layout of `levels`, where that takes less than reading them.
    layout: Callable[[], GroupLayout] | None = None
    #: `read` returns the transpose of the matrices in `levels`.
    is_transposed: bool = False


class LazyTensor:
    """A weight for Transformers' loader, which asks for ``weight[...]`` when its turn has come."""

    def __init__(self, read: Callable[[], torch.Tensor]) -> None:
        self._read = read

    def __getitem__(self, key: object) -> torch.Tensor:
        if key is not Ellipsis:
            raise TypeError(f"a quantised weight is read whole, not by {key!r}")
        return self._read()
