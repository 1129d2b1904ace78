"""A denoiser cut behind its first block, so that what the other blocks add can be kept from one step for the next.

The rule is that of diffusers' ``FirstBlockCacheConfig``. Three programs take the place of one: `FIRST` computes the first block
and what it adds; `REST` goes on from there and also returns what the other blocks added; `SKIP` adds what an earlier `REST`
returned. The denoiser's own code runs in all three; what a part does not need is no part of its graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from qeff_framework.errors import UnsupportedModelError

if TYPE_CHECKING:
    from qeff_framework.diffusion.calls import Call

FIRST: Final = "first"
REST: Final = "rest"
SKIP: Final = "skip"
#: diffusers' own default.
DEFAULT_THRESHOLD: Final = 0.05


def is_cut(component: Any) -> bool:
    """Whether diffusers has caches for the component; a ControlNet has none."""
    return hasattr(component, "enable_cache")


def calls_of_parts(component: torch.nn.Module, call: Call) -> list[Call]:
    """The calls of the three programs. Raises `UnsupportedModelError` for a denoiser that cannot be cut, with the reason."""
    from qeff_framework.diffusion.calls import CallGraph, example_tensors
    from qeff_framework.export.stages import stage
    from qeff_framework.export.trace import probe
    from qeff_framework.seam.weightless import weightless_copy

    own = weightless_copy(component)

    def result(part: Call) -> dict[str, Any]:
        graph = CallGraph(own, part)
        with stage(f"probe run of the part {part.part} of {call.told}"):
            probe(graph, (example_tensors(part.inputs),))
        described: dict[str, Any] = graph.result["dict"]
        return described

    first = replace(call, part=FIRST)
    given = {"first_block": result(first)["first_block"]}
    rest = replace(call, part=REST, given=given)
    return [first, rest, replace(call, part=SKIP, given={**given, "tail": result(rest)["tail"]})]


def run_part(component: torch.nn.Module, method: str, arguments: Mapping[str, Any], part: str, given: Any) -> Any:
    """What the graph of a part returns, as a dict; of `SKIP` what the component returns."""
    blocks = _Blocks(component)
    with blocks.cut(part, given):
        value = getattr(component, method)(**arguments)
    if part == FIRST:
        return {"first_block": blocks.first, "residual": blocks.residual}
    return {"value": value, "tail": blocks.tail} if part == REST else value


class _Blocks:
    """The blocks of a denoiser, and what has been seen of them in one run."""

    def __init__(self, component: torch.nn.Module) -> None:
        from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS
        from diffusers.hooks._helpers import TransformerBlockRegistry

        self._kind = type(component).__name__
        self._blocks = [
            block
            for name, blocks in component.named_children()
            if name in _ALL_TRANSFORMER_BLOCK_IDENTIFIERS and isinstance(blocks, torch.nn.ModuleList)
            for block in blocks
        ]
        if len(self._blocks) < 2:
            raise UnsupportedModelError(
                f"{self._kind} cannot be cut behind its first block: it is no stack of at least two transformer blocks; leave "
                "enable_first_block_cache out"
            )
        try:
            self._facts = {block: TransformerBlockRegistry.get(type(block)) for block in self._blocks}
        except ValueError as error:
            raise UnsupportedModelError(
                f"diffusers does not say what the blocks of {self._kind} return ({error}), so its caches do not work with them; "
                "leave enable_first_block_cache out"
            ) from error
        self.first: Any = None
        self.residual: torch.Tensor | None = None
        self.tail: tuple[torch.Tensor, ...] = ()

    @contextmanager
    def cut(self, part: str, given: Mapping[str, Any]) -> Iterator[None]:
        """Replaces what the blocks do."""
        try:
            for number, block in enumerate(self._blocks):
                # On the object, where it hides the method of the class.
                block.forward = self._replaced(number, block, part, given)
            yield
        finally:
            for block in self._blocks:
                vars(block).pop("forward", None)

    def _replaced(self, number: int, block: torch.nn.Module, part: str, given: Mapping[str, Any]) -> Any:
        own = block.forward
        head, tail = number == 0, number == len(self._blocks) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            if head and part != FIRST:
                self.first = given["first_block"]
                return self._sum(block, given["tail"]) if part == SKIP else self.first
            if not head and part != REST:
                return self._untouched(block, args, kwargs)
            output = own(*args, **kwargs)
            if head:
                self.first = output
                taken = self._facts[block]._get_parameter_from_args_kwargs("hidden_states", args, kwargs)  # noqa: SLF001
                self.residual = self._states(block, output)[0] - taken
            elif tail:
                first = self._states(self._blocks[0], self.first)
                last = self._states(block, output)
                if len(first) != len(last):
                    raise UnsupportedModelError(
                        f"the first block of {self._kind} returns states of {len(first)} kinds and its last one of {len(last)}: "
                        "nothing can be kept of the difference, in diffusers neither; leave enable_first_block_cache out"
                    )
                self.tail = tuple(new - old for new, old in zip(last, first, strict=True))
            return output

        return forward

    def _states(self, block: torch.nn.Module, output: Any) -> tuple[torch.Tensor, ...]:
        """The states of the picture, and of the text where a block returns these too."""
        if not isinstance(output, tuple):
            return (output,)
        facts = self._facts[block]
        indices = (facts.return_hidden_states_index, facts.return_encoder_hidden_states_index)
        found = tuple(output[index] for index in indices if index is not None)
        if len(found) != len(output) or any(each is None for each in found):
            raise UnsupportedModelError(
                f"{type(block).__name__} of {self._kind} returns more, or less, than the states of picture and text, which the "
                "cache of the first block keeps; leave enable_first_block_cache out"
            )
        return found

    def _sum(self, block: torch.nn.Module, tail: tuple[torch.Tensor, ...]) -> Any:
        sums = [new + old for new, old in zip(tail, self._states(block, self.first), strict=True)]
        if not isinstance(self.first, tuple):
            return sums[0]
        facts = self._facts[block]
        order = {facts.return_hidden_states_index: 0, facts.return_encoder_hidden_states_index: 1}
        return tuple(sums[order[index]] for index in range(len(sums)))

    def _untouched(self, block: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        facts = self._facts[block]
        hidden = facts._get_parameter_from_args_kwargs("hidden_states", args, kwargs)  # noqa: SLF001
        if facts.return_encoder_hidden_states_index is None:
            return hidden
        text = facts._get_parameter_from_args_kwargs("encoder_hidden_states", args, kwargs)  # noqa: SLF001
        return (hidden, text) if facts.return_hidden_states_index == 0 else (text, hidden)


@dataclass
class KeptBlocks:
    """What was seen in the steps of one picture, for the calls of one name (with and without the prompt)."""

    residual: torch.Tensor | None = None
    #: Outputs of `REST` by name.
    tail: Mapping[str, Any] | None = None

    def must_compute(self, residual: torch.Tensor, threshold: float) -> bool:
        """Whether the first block has added something else than in the last step that was computed."""
        kept = self.residual
        if kept is None:
            return True
        difference = (residual - kept).abs().mean() / kept.abs().mean()
        return bool(difference > threshold)
