"""The answers of sources whose owner has loaded everything: no files lie behind them, and nothing is known to be missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qeff_framework.contracts import PackedMatrix

if TYPE_CHECKING:
    import torch


class InMemorySource:
    """The answers of a `ModelSource` whose weights are in memory and belong to the caller."""

    def load(self, auto_class: str) -> torch.nn.Module:
        """The module; each source says how."""
        raise NotImplementedError

    @property
    def trusted(self) -> bool:
        """Its code has run already."""
        return True

    def load_for_export(self, auto_class: str, directory: Path) -> torch.nn.Module:
        """As `load`."""
        del directory
        return self.load(auto_class)

    def keep_weights(self, used: Collection[str]) -> Mapping[str, str]:
        """No files lie behind it."""
        del used
        return {}

    def unloaded(self) -> frozenset[str]:
        """None: the caller's weights are what they are."""
        return frozenset()

    def packed_matrices(self, module: torch.nn.Module) -> Mapping[str, PackedMatrix]:  # noqa: ARG002 - see `ModelSource`
        """None: a module holds numbers, whatever it was loaded from."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """None: nothing was loaded."""
        return ()

    def release(self) -> None:
        """Keeps it: it belongs to the caller."""

    def tokenizer_problem(self) -> str | None:
        """None: no tokenizer was to be loaded."""
        return None

    def sentence_transformers(self) -> None:
        """Nothing is said about what follows it."""

    def stated_pooling(self) -> None:
        """Nothing is said about its embeddings."""
