"""Configs and modules of Transformers, as both sources read and write them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch

#: A number that was written as a text.
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")


def plain_config(config: Any) -> dict[str, Any]:
    """A config as JSON. A quantization config is dropped: GGUF weights are dequantised on loading."""
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    content.pop("quantization_config", None)
    return content


def content_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the fields that tell where it came from or which version wrote it."""
    return {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}


def odd_field(config: Mapping[str, Any], inside: str = "") -> str:
    """Which field of a config that Transformers did not take is of a kind that it never takes; empty where none is.

    Its own message is that of Python about the value, without file and field.
    """
    import torch

    for name, value in config.items():
        if name in ("dtype", "torch_dtype") and not isinstance(value, (Mapping, type(None))):
            if not isinstance(value, str) or not isinstance(getattr(torch, value, None), torch.dtype):
                known = '"float32", "bfloat16" or "float16"'
                return f"{inside}{name}={value!r} is no type of torch; write {known}, or remove the field"
        elif name == "quantization_config" and not isinstance(value, (Mapping, type(None))):
            return (
                f"{inside}{name}={value!r:.60} is no object with a quant_method; write what the quantiser wrote, or remove the "
                "field where the weights are not quantised"
            )
        elif isinstance(value, Mapping) and (found := odd_field(value, f"{inside}{name}.")):
            return found
    return ""


def number_as_text(config: Mapping[str, Any], inside: str = "") -> str:
    """Which field of a config holds a number as a text, which Transformers' code may compute with; empty where none does."""
    for name, value in config.items():
        if isinstance(value, str) and _NUMBER.fullmatch(value) and not name.endswith("version"):
            return f"{inside}{name}={value!r} is a text; write the number without quotation marks"
        if isinstance(value, Mapping) and (found := number_as_text(value, f"{inside}{name}.")):
            return found
    return ""


def padding_beyond_vocabulary(config: Mapping[str, Any], inside: str = "") -> str:
    """Which ``pad_token_id`` has no row in its config's vocabulary: torch then makes no table, and names no field."""
    padding, size = config.get("pad_token_id"), config.get("vocab_size")
    if isinstance(padding, int) and isinstance(size, int) and not -size <= padding < size:
        return (
            f"{inside}pad_token_id={padding} is no token of a vocabulary of {inside}vocab_size={size}; write the tokenizer's id, "
            "or null where the model pads nothing"
        )
    inner = (
        padding_beyond_vocabulary(value, f"{inside}{name}.")
        for name, value in config.items()
        if isinstance(value, Mapping)
    )
    return next(filter(None, inner), "")


def rotation_without_base(config: Mapping[str, Any], inside: str = "") -> str:
    """Which ``rope_parameters`` name no ``rope_theta``, as where a ``rope_scaling`` of older releases replaces all of them."""
    for name, value in config.items():
        if not isinstance(value, Mapping):
            continue
        if name == "rope_parameters" and "rope_type" in value and value.get("rope_theta") is None:
            return (
                f"{inside}{name}={dict(value)} has no rope_theta, the base of the rotary frequencies; give the one that "
                f"the model was trained with among them: {name}={ {**value, 'rope_theta': 10000.0} }"
            )
        if found := rotation_without_base(value, f"{inside}{name}."):
            return found
    return ""


def checked_module(module: torch.nn.Module) -> torch.nn.Module:
    """Returns the float32 `module` in eval mode and without gradients. Raises what `check_float32` raises."""
    check_float32(module)
    return module.eval().requires_grad_(False)


@contextlib.contextmanager
def for_inference(module: torch.nn.Module) -> Iterator[None]:
    """Puts a caller's `module` into eval mode without gradients, and back: its training goes on behind the export."""
    training = [part for part in module.modules() if part.training]
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part in training:
            part.training = True
        for parameter in learning:
            parameter.requires_grad_(True)


def check_float32(module: torch.nn.Module) -> None:
    """Raises `UnsupportedModelError`: a parameter has another floating-point type, or is a block of quantised weights."""
    import torch

    is_quantised = getattr(module, "hf_quantizer", None) is not None
    odd = {
        parameter.dtype
        for parameter in module.parameters()
        if parameter.dtype != torch.float32 and (parameter.is_floating_point() or is_quantised)
    }
    if odd:
        # A cast of quantised numbers would leave their scales behind.
        wide = odd <= {torch.float16, torch.bfloat16, torch.float64}
        remedy = (
            "load it with dtype=torch.float32 (backends choose their own precision when they compile)"
            if wide
            else "they are quantised: load it with a quantization_config that has dequantize=True, where its kind has that, or "
            "take the checkpoint without quantisation"
        )
        raise UnsupportedModelError(
            f"{type(module).__name__} has {', '.join(sorted(map(str, odd)))} parameters; portable graphs are float32: {remedy}"
        )


def save_generation_config(module: Any, directory: Path) -> None:
    """Writes ``generation_config.json``, if the module has such a config."""
    content = generation_config(module)
    if content is not None:
        write_json(directory / "generation_config.json", content)


def generation_config(module: Any) -> dict[str, Any] | None:
    """Returns what a module's generation config sets differently from Transformers' defaults; `None` without one."""
    config = getattr(module, "generation_config", None)
    if config is None:
        return None
    content: dict[str, Any] = config.to_diff_dict()
    if isinstance(biases := content.get("sequence_bias"), Mapping):
        # JSON has no tuples as keys; Transformers takes pairs as well.
        content["sequence_bias"] = [[list(sequence), bias] for sequence, bias in biases.items()]
    for name, value in content.items():
        if hasattr(value, "to_dict"):  # a watermarking config
            content[name] = value.to_dict()
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` with sorted keys."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
