"""Rotary embeddings whose frequencies depend on the length of the text: LongRoPE, dynamic NTK and what is made of them.

Transformers takes that length from the greatest position of a forward call. A prompt that is read in chunks would get another
length, and other frequencies, in each chunk. Here every token gets the length of the text that it is read with,
`Scope.token_lengths`, whatever the step holds beside it.

How a module depends on the length is found by calling it: with the lengths around every number of the configuration, and with
one that is greater than all of them. Two forms are known. Either there are two sets of frequencies and a length at which they
change, or the frequencies stay the same up to a length and grow from there by the function that the library has for the type.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.arange_positions import PerRow
from qeff_framework.seam.mask_plan import MaskPlan
from qeff_framework.seam.scope import Scope, current_scope, forward_scope

#: Positions that every length holds but the shortest, at which frequencies are compared.
_PROBED = 1
#: Beyond every length that a configuration can name.
_ENDLESS = 2**30

#: Nested configurations of encoders of images and sound.
_ENCODERS = ("vision_config", "audio_config")

_GREATEST = frozenset({torch.max, torch.Tensor.max, torch.amax, torch.Tensor.amax})


@dataclass(frozen=True, kw_only=True)
class LengthRule:
    """How frequencies depend on the length of the text."""

    #: Texts of up to so many tokens have one set of frequencies.
    limit: int
    #: Beyond the limit every length has frequencies of its own; otherwise all longer texts share a second set.
    grows: bool


@dataclass(frozen=True, kw_only=True)
class RotaryMatch:
    """A module whose frequencies depend on the length of the text."""

    #: Dotted name of the module.
    name: str
    #: By the argument ``layer_type`` of the module's forward, `None` where it has none. Types without a rule are not listed.
    rules: Mapping[str | None, LengthRule]


def find_length_dependent_rotary(model: torch.nn.Module) -> tuple[RotaryMatch, ...]:
    """The submodules of `model` that compute something else for a position when a text is longer.

    Raises:
        UnsupportedModelError: a module depends on the length in a form that is not known.
    """
    others = _other_modalities(model)
    return tuple(
        RotaryMatch(name=name, rules=rules)
        for name, module in model.named_modules()
        if _takes_positions_alone(module)
        and id(getattr(module, "config", None)) not in others
        and (rules := _rules(name, _forget(_fresh(module))))
    )


def replace_rotary(model: torch.nn.Module, matches: Sequence[RotaryMatch]) -> None:
    """Lets the matched submodules of `model`, a weightless copy, take lengths from `Scope.token_lengths`.

    Raises:
        UnsupportedModelError: a module does not compute what its rule says.
    """
    for match in matches:
        module = model.get_submodule(match.name)
        _forget(module)
        original = _fresh(module)
        module.forward = MethodType(_forward_by_token(match), module)
        for layer_type, rule in match.rules.items():
            try:
                agrees = _agrees(module, original, layer_type, rule)
            except Exception as error:
                raise _no_form(match.name, module, layer_type) from error
            if not agrees:
                raise _no_form(match.name, module, layer_type)


def forget_texts(model: torch.nn.Module) -> None:
    """Brings frequencies that a longer text has changed back to what they were before any text.

    Transformers itself does that only when it reads a text within the limit.
    """
    for module in model.modules():
        if _takes_positions_alone(module):
            _forget(module)


def length_limits(matches: Sequence[RotaryMatch]) -> tuple[int, ...]:
    """The lengths beyond which frequencies change, ascending."""
    return tuple(sorted({rule.limit for match in matches for rule in match.rules.values()}))


# --- finding --------------------------------------------------------------------------------------------------------------


def _other_modalities(model: torch.nn.Module) -> set[int]:
    """Identities of the configurations of encoders of images and sound: no text goes through these."""
    config: Any = getattr(model, "config", None)
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", ()) if name in _ENCODERS]
    return {id(part) for part in parts if part is not None}


def _takes_positions_alone(module: torch.nn.Module) -> bool:
    """Whether the forward computes from ``position_ids`` and from the dtype of hidden states, with buffers and no weights."""
    if next(module.parameters(), None) is not None or next(module.buffers(recurse=False), None) is None:
        return False
    parameters = list(inspect.signature(module.forward).parameters.values())
    needed = {parameter.name for parameter in parameters[1:] if parameter.default is inspect.Parameter.empty}
    return "position_ids" in {parameter.name for parameter in parameters[1:]} and needed <= {
        "position_ids",
        "layer_type",
    }


def _layer_types(module: torch.nn.Module) -> tuple[str | None, ...]:
    if "layer_type" not in inspect.signature(module.forward).parameters:
        return (None,)
    types = getattr(module, "rope_type", None)
    return tuple(types) if isinstance(types, Mapping) else (None,)


def _rules(name: str, module: torch.nn.Module) -> dict[str | None, LengthRule]:
    found = {layer_type: _rule(name, module, layer_type) for layer_type in _layer_types(module)}
    return {layer_type: rule for layer_type, rule in found.items() if rule is not None}


def _rule(name: str, module: torch.nn.Module, layer_type: str | None) -> LengthRule | None:
    """`None` when the frequencies are the same for every length."""
    try:
        short, endless = (_at_length(module, layer_type, length) for length in (2, _ENDLESS))
    except Exception:  # noqa: BLE001 - whatever a module says to arguments that it does not take, such as a table of positions
        return None
    if not all(bool(leaf.isfinite().all()) for leaf in short):
        raise UnsupportedModelError(
            f"its rotary embedding ({name}, rope_type {_rope_type(module, layer_type)!r}) gives no finite numbers, even for the "
            "shortest text; correct rope_theta and the other fields of rope_parameters in its config"
        )
    if _equal(short, endless):
        return None
    lengths = sorted({2, *_boundaries(getattr(module, "config", None))})
    results = {length: _at_length(module, layer_type, length) for length in lengths}
    limit = max(length for length in lengths if _equal(results[length], short))
    beyond = [length for length in lengths if length > limit]
    if all(_equal(results[length], short) for length in lengths if length <= limit):
        if limit + 1 in beyond and all(_equal(results[length], endless) for length in beyond):
            return LengthRule(limit=limit, grows=False)
        if limit > 2 and _growing_function(module, layer_type) is not None:
            return LengthRule(limit=limit, grows=True)
    raise _no_form(name, module, layer_type)


def _no_form(name: str, module: torch.nn.Module, layer_type: str | None) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"its rotary frequencies depend on the length of the text (rope_type {_rope_type(module, layer_type)!r} in {name}), in a "
        "way that has no form as a graph which reads a prompt in steps"
    )


def _boundaries(config: Any) -> Iterator[int]:
    """The lengths around every number of a configuration, at which something may change."""
    pending = [config.to_dict()] if config is not None else []
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, (list, tuple)):
            pending.extend(value)
        elif type(value) in (int, float) and 2 < value < _ENDLESS and value == int(value):
            yield from (int(value), int(value) + 1)


def _at_length(module: torch.nn.Module, layer_type: str | None, length: int) -> list[torch.Tensor]:
    """What a position is given in a text of `length` tokens, 2 at least."""
    last = length - 1
    positions = torch.tensor([[_PROBED] if last == _PROBED else [_PROBED, last]])
    return [leaf[..., :1, :] for leaf in _call(_fresh(module), positions, layer_type)]


def _call(module: torch.nn.Module, positions: torch.Tensor, layer_type: str | None) -> list[torch.Tensor]:
    arguments = {} if layer_type is None else {"layer_type": layer_type}
    with torch.no_grad():
        result = module(torch.zeros((*positions.shape, 1)), position_ids=positions, **arguments)
    leaves = pytree.tree_leaves(result)
    if not all(isinstance(leaf, torch.Tensor) and leaf.dim() >= 2 for leaf in leaves):
        raise TypeError("it returns something else than tensors with an axis of tokens")
    return leaves


def _fresh(module: torch.nn.Module) -> Any:
    """A copy, so that the module does not keep the greatest length that the copy has seen."""
    fresh = copy.copy(module)
    fresh.__dict__ = dict(module.__dict__)
    fresh.__dict__["_buffers"] = {
        name: None if buffer is None else buffer.clone()
        for name, buffer in module._buffers.items()  # noqa: SLF001 - PyTorch has no public way to a shallow copy
    }
    return fresh


def _forget(module: Any) -> Any:
    """The module itself, after it has read the shortest of texts: the library then forgets the longest one that it has seen."""
    for layer_type in _layer_types(module):
        # Whatever a module says to arguments that it does not take, such as a table of positions.
        with contextlib.suppress(Exception):
            _call(module, torch.tensor([[0]]), layer_type)
    return module


def _equal(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _rope_type(module: torch.nn.Module, layer_type: str | None) -> str:
    types = getattr(module, "rope_type", "unknown")
    return str(types.get(layer_type) if isinstance(types, Mapping) else types)


def _growing_function(module: torch.nn.Module, layer_type: str | None) -> Callable[..., Any] | None:
    return ROPE_INIT_FUNCTIONS.get(_rope_type(module, layer_type))


# --- replacing ------------------------------------------------------------------------------------------------------------


class _GivenGreatestPosition(TorchFunctionMode):
    """Answers the question for the greatest position of a call by a constant."""

    def __init__(self, position_ids: torch.Tensor, greatest: int) -> None:
        super().__init__()
        self._position_ids, self._greatest = position_ids, greatest

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Sees every call of the library while the mode is on."""
        del types
        if func in _GREATEST and len(args) == 1 and args[0] is self._position_ids and not kwargs:
            return torch.tensor(self._greatest, dtype=self._position_ids.dtype)
        return func(*args, **(kwargs or {}))


def _forward_by_token(match: RotaryMatch) -> Callable[..., Any]:
    def forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> Any:
        rule = match.rules.get(layer_type)
        original = _original(self)
        arguments = {} if layer_type is None else {"layer_type": layer_type}
        if rule is None:
            return original(x, position_ids=position_ids, **arguments)
        lengths = current_scope().token_lengths
        if lengths is None:
            raise UnsupportedModelError(f"{match.name} runs where the length of the text is not known")
        with _GivenGreatestPosition(position_ids, 1):
            short = original(x, position_ids=position_ids, **arguments)
        if rule.grows:
            long = _grown(match.name, self, x, position_ids, lengths, layer_type)
        else:
            with _GivenGreatestPosition(position_ids, rule.limit):
                long = _original(self)(x, position_ids=position_ids, **arguments)
        is_long = (lengths > rule.limit).unsqueeze(-1)
        return pytree.tree_map(lambda a, b: torch.where(is_long, b, a), short, long)

    return forward


def _original(module: torch.nn.Module) -> Any:
    """A copy with the forward of the class, whose call leaves the module as it is."""
    fresh = _fresh(module)
    fresh.__dict__.pop("forward", None)
    return fresh


def _grown(
    name: str,
    module: Any,
    x: torch.Tensor,
    position_ids: torch.Tensor,
    lengths: torch.Tensor,
    layer_type: str | None,
) -> Any:
    """What the module computes with frequencies for the length of each token: every token is a row of its own."""
    initialise = _growing_function(module, layer_type)
    if initialise is None or position_ids.dim() != 2:
        raise _no_form(name, module, layer_type)
    arguments = {} if layer_type is None else {"layer_type": layer_type}
    rows = position_ids.expand_as(lengths)
    frequencies, _ = initialise(module.config, x.device, seq_len=lengths.reshape(-1, 1), **arguments)
    original = _original(module)
    buffer = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
    del original._buffers[buffer]  # noqa: SLF001 - `register_buffer` takes tensors only
    original.__dict__[buffer] = PerRow(frequencies)
    # Behind the decorator of the library that would compute the frequencies anew.
    result = inspect.unwrap(type(module).forward)(original, x, rows.reshape(-1, 1), **arguments)
    return pytree.tree_map(lambda leaf: leaf.reshape(*rows.shape, *leaf.shape[2:]), result)


def _agrees(module: torch.nn.Module, original: Any, layer_type: str | None, rule: LengthRule) -> bool:
    """Whether the new forward gives rows of different lengths what the module as it was gives each row alone."""
    lengths = (3, rule.limit, rule.limit + 1, 2 * rule.limit + 5)
    positions = torch.arange(3).expand(len(lengths), -1)
    token_lengths = torch.tensor(lengths)[:, None].expand(-1, 3)
    with forward_scope(Scope(masks=MaskPlan(), token_lengths=token_lengths)):
        results = _call(module, positions, layer_type)
    for row, length in enumerate(lengths):
        wanted = _call(_fresh(original), torch.tensor([[0, 1, 2, length - 1]]), layer_type)
        if not _equal([result[row : row + 1] for result in results], [leaf[..., :3, :] for leaf in wanted]):
            return False
    return True
