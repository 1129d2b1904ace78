"""Finds the modules that own recurrent states, by watching a forward pass."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import torch

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.states import StateId


class LoopRecorder:
    """Watches a forward pass; tells which modules own the states that the cache is asked for."""

    def __init__(self) -> None:
        self._running: list[torch.nn.Module] = []
        self._owners: dict[int, list[torch.nn.Module]] = {}
        self._recurrent: set[int] = set()

    @contextlib.contextmanager
    def watching(self, model: torch.nn.Module) -> Iterator[None]:
        """Follows the modules of `model` as they run."""
        handles = [
            handle
            for module in model.modules()
            for handle in (
                module.register_forward_pre_hook(lambda module, _: self._running.append(module)),
                module.register_forward_hook(lambda *_: self._leave(), always_call=True),
            )
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        self._running.pop()

    def note(self, state: StateId) -> None:
        """The cache is asked for `state`, or given it."""
        if state.role == "recurrent":
            self._recurrent.add(state.layer)
        known = self._owners.setdefault(state.layer, list(self._running))
        common = itertools.takewhile(lambda pair: pair[0] is pair[1], zip(known, self._running, strict=False))
        self._owners[state.layer] = [module for module, _ in common]

    def owners(self, model: torch.nn.Module) -> dict[int, str]:
        """By layer with a recurrent state: the name of the innermost module that makes all uses of its states."""
        names = {id(module): name for name, module in model.named_modules()}
        found = {layer: names.get(id(self._owners[layer][-1]), "") for layer in sorted(self._recurrent)}
        if "" in found.values():
            raise UnsupportedModelError("its recurrent states are updated outside of its layers")
        return found
