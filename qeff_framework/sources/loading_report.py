"""What Transformers says about loading: which weights a checkpoint did not hold, and which ones nothing took.

The loader itself only logs this, and leaves random values where weights are missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.files import safetensors_header

if TYPE_CHECKING:
    import torch

_UNSTATED = (
    "they belong to a quantisation, an adapter or an architecture that its config.json does not state, and without them the "
    "result is another one; give a checkpoint whose config.json states it and that Transformers can read, or one without it"
)
_UNSCALED = (
    "that is a quantisation which its config.json does not state, so that nothing scales them; give the checkpoint without "
    "quantisation, or one whose config.json states it and that Transformers can dequantise"
)
#: Types of integers that blocks of quantised weights are stored as, in the terms of safetensors and of torch.
_INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "int8", "uint8", "int16", "uint16", "int32", "uint32"})
#: Names under which training runs put the weights into a file of torch, beside the state of the optimizer.
_WRAPPING = ("state_dict", "model_state_dict", "model", "module")


@dataclass(frozen=True, kw_only=True)
class LoadingReport:
    """What came of loading a module."""

    #: Parameters and buffers that the checkpoint did not hold: they have random values, or those of the constructor.
    unloaded: frozenset[str]
    #: Worth a warning.
    notes: tuple[str, ...]


def judge_loading(
    info: Mapping[str, Any], module: torch.nn.Module, name: str, *, mismatch_allowed: bool
) -> LoadingReport:
    """Reads the `info` that ``from_pretrained(output_loading_info=True)`` returns beside `module`.

    `mismatch_allowed`: weights of another shape count as missing (``ignore_mismatched_sizes``).

    Raises:
        CheckpointError: nothing was loaded; weights have another shape; or a loaded weight has companions that were not read, as
            scales of a quantisation.
    """
    from qeff_framework.seam.deferred import has_numbers

    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = sorted(info["mismatched_keys"], key=lambda item: str(item[0]))
    if mismatched and not mismatch_allowed:
        told = [
            f"{key} is {list(theirs)} in the checkpoint and {list(ours)} in the model"
            for key, theirs, ours in mismatched
        ]
        raise CheckpointError(f"{name} does not fit its config: {some(told, 3, '; ')}; one of them is of another model")
    unloaded = frozenset([*missing, *(key for key, _, _ in mismatched)])
    parameters = dict(module.named_parameters(remove_duplicate=False))
    if parameters and unloaded.issuperset(parameters):
        held = f", and holds {some(unexpected)}, which the model does not have" if unexpected else ""
        raise CheckpointError(
            f"{name} holds no weight of {type(module).__name__}: it lacks {some(missing)}{held}"
            f"{_prefix_hint(missing, unexpected)}"
        )
    harmless = {buffer for buffer, _ in module.named_buffers()}
    unexpected = [key for key in unexpected if not harmless & {key, _model_key(key, module)}]
    loaded = {key for key in parameters if key not in unloaded}
    beside = [key for key in unexpected if _stands_beside(key, module, loaded)]
    if beside:
        raise CheckpointError(f"{name} holds {some(beside)} beside weights that are read without them: {_UNSTATED}")
    notes = []
    if unexpected:
        notes.append(
            f"{name} holds weights that {type(module).__name__} does not have; they are left out: {some(unexpected)}"
        )
    matrices = [key for key in sorted(loaded) if parameters[key].dim() > 1 and "bias" not in key.rpartition(".")[2]]
    zero = [key for key in matrices if not has_numbers(parameters[key])]
    if zero:
        notes.append(f"{name} holds nothing but zeros for {some(zero)}; if its download was cut, download it again")
    return LoadingReport(unloaded=unloaded, notes=tuple(notes))


def refuse_integer_weights(files: Iterable[Path], module: torch.nn.Module, name: str, *, unread: Iterable[str]) -> None:
    """Raises `CheckpointError` for a weight that a file holds as integers: it is quantised, and has no scale.

    `unread` are the names in the files that nothing took.
    """
    states, skipped = module.state_dict(), frozenset(unread)
    for path in files:
        for key, (dtype, dimensions) in _tensors(path).items():
            if dtype not in _INTEGERS or key in skipped:
                continue
            state = states.get(key, states.get(_model_key(key, module)))
            # The loader may have put a matrix together with others, under another name.
            is_weight = dimensions > 1 and key.endswith("weight") if state is None else state.is_floating_point()
            if is_weight:
                raise CheckpointError(f"{name} holds {key} as numbers of type {dtype}: {_UNSCALED}")


def _tensors(path: Path) -> dict[str, tuple[str, int]]:
    """Type and number of dimensions of each tensor in a file of weights, without reading the numbers."""
    import torch

    if path.suffix == ".safetensors":
        return {key: (str(entry["dtype"]), len(entry["shape"])) for key, entry in safetensors_header(path).items()}
    if path.suffix != ".bin":
        return {}
    content = torch.load(path, map_location="meta", weights_only=True)
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    return {key: (str(value.dtype).removeprefix("torch."), value.dim()) for key, value in tensors.items()}


def conversion_failures(said: Iterable[str]) -> str:
    """The failures in the loader's report about weights that it puts together from several; empty without one."""
    for message in said:
        _, _, details = message.partition("CONVERSION")
        if details:
            rows = [line.split("|")[0].strip() for line in message.splitlines() if "CONVERSION" in line and "|" in line]
            # A traceback, its last line, that line again, and what was being done.
            reasons = [line for line in details.splitlines() if re.match(r"\w*(Error|Exception): ", line)]
            # Of a second try, the error of the first one comes before: that there is such a report.
            reasons = [line for line in reasons if "CONVERSION" not in line]
            return (
                f"{some(rows)} cannot be made from the checkpoint's weights: {next(iter(reasons), 'no reason is told')}"
            )
    return ""


def absent_members(names: Iterable[str]) -> list[str]:
    """Names that are missing among those of lists inside of a layer, such as experts, where most members have one like it."""
    lists: dict[str, dict[int, set[str]]] = {}
    for name in names:
        parts = name.split(".")
        *outer, inner = [index for index, part in enumerate(parts) if part.isdecimal()] or [0]
        if outer and inner + 1 < len(parts):
            members = lists.setdefault(".".join(parts[:inner]), {})
            members.setdefault(int(parts[inner]), set()).add(".".join(parts[inner + 1 :]))
    absent = []
    for place, members in lists.items():
        count = max(members) + 1
        for part in sorted(set().union(*members.values())):
            lacking = [number for number in range(count) if part not in members.get(number, ())]
            if 2 * len(lacking) < count:
                absent += [f"{place}.{number}.{part}" for number in lacking]
    return absent


def some(names: Sequence[str], count: int = 4, separator: str = ", ") -> str:
    """The first `count` of `names`, and how many more there are."""
    return separator.join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _stands_beside(key: str, module: torch.nn.Module, loaded: set[str]) -> bool:
    """Whether `key` lies in a module, or below a weight, that was loaded: ``proj.weight_scale`` beside ``proj.weight``.

    A module counts if it is a leaf, or if `key` is a direct member: attention may hold buffers beside its projections.
    """
    leaves = {name.rpartition(".")[0] for name in loaded}
    parts = _model_key(key, module).split(".")
    for end in range(1, len(parts)):
        above = ".".join(parts[:end])
        if above in loaded:
            return True
        if above in leaves and (end == len(parts) - 1 or not any(module.get_submodule(above).children())):
            return True
    return False


def _model_key(key: str, module: torch.nn.Module) -> str:
    """`key` of a checkpoint as a name in the module: one of both may lack the prefix of the model without its head."""
    prefix = str(getattr(module, "base_model_prefix", ""))
    first = {name.split(".")[0] for name, _ in module.named_children()}
    if key.partition(".")[0] in first or not prefix:
        return key
    shorter = key.removeprefix(f"{prefix}.")
    return shorter if shorter != key else f"{prefix}.{key}"


def _prefix_hint(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """What to do, in particular where all names begin with the same prefix, or the weights lie one level deeper."""
    for found in unexpected:
        wanted = next((name for name in missing if found.endswith(f".{name}")), None)
        if wanted is not None:
            prefix = found.removesuffix(wanted)
            pattern = "^" + prefix.replace(".", r"\.")
            return (
                f": its names begin with {prefix!r}; save the model without it, or pass key_mapping={{{pattern!r}: ''}}"
            )
    wrapping = next((name for name in _WRAPPING if name in unexpected), None)
    if wrapping is not None:
        return (
            f": a training run saves its weights so, in the entry {wrapping!r} beside other things; write "
            f"torch.load(file, weights_only=True)[{wrapping!r}] into a file of its own, in the place of this one"
        )
    return "; give the checkpoint of this architecture"
