"""Quantised checkpoints: the portable graph is float32, so the loader must dequantise what it reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from qeff_framework.errors import CheckpointError, OptionError
from qeff_framework.sources.files import read_json, safetensors_header
from qeff_framework.sources.quantized.formats import METHODS

_READABLE = f"{', '.join(sorted(METHODS))}, or a GGUF file"

#: Files in which quantisers stated what ``config.json`` does not; the method, and how a tensor is named that is packed so.
_BESIDE = {
    "quantize_config.json": ("gptq", ".qweight"),
    "quant_config.json": ("awq", ".qweight"),
    "hf_quant_config.json": ("modelopt", ".weight_scale"),
}
#: The field of older compressed-tensors, in place of ``quantization_config``.
_OLD_FIELD = "compression_config"
#: What MLX states beside, or in place of, that field.
_MLX_FIELD = "quantization"


def state_quantisation(config: Any, find: Callable[[str], Path | None], files: Callable[[], Iterable[Path]]) -> None:
    """Sets the ``quantization_config`` of a Transformers `config` where another field or file of the checkpoint states it.

    Such a file may be left over beside weights that are not packed: those of `files` decide.
    """
    if is_stated(config):
        return
    old = getattr(config, _OLD_FIELD, None)
    if isinstance(old, Mapping):
        config.quantization_config = {"quant_method": "compressed-tensors", **old}
        return
    if isinstance(getattr(config, _MLX_FIELD, None), Mapping):
        config.quantization_config = {"quant_method": "mlx"}
        return
    for name, (method, ending) in _BESIDE.items():
        path = find(name)
        if path is None:
            continue
        headers = (safetensors_header(file) for file in files() if file.suffix == ".safetensors")
        if not any(key.endswith(ending) for header in headers for key in header):
            continue
        content = read_json(path)
        content = content.get("quantization", content) if method == "modelopt" else content
        config.quantization_config = {"quant_method": "awq" if "w_bit" in content else method, **content}
        return


def check_given(config: Any, given: Any, name: str, *, gguf: str | None) -> None:
    """Raises `OptionError` for a ``quantization_config`` of the caller that is not the checkpoint's."""
    if not given:
        return
    method = _method(_content(given)).removesuffix("_4bit").removesuffix("_8bit") or "none"
    parts = (config, config.get_text_config())
    found = next((stated for part in parts if (stated := getattr(part, "quantization_config", None))), None)
    ours = "gguf" if gguf else None if not found else str(_value(_content(found).get("quant_method")))
    if method == ours:
        return
    told = "is not quantised" if ours is None else f"is quantised by {ours}"
    raise OptionError(
        f"from_pretrained: quantization_config= asks for {method}, and {name} {told}; leave it out: weights are read as what "
        "they stand for in float32, and a backend's options choose the precision of a program"
    )


def dequantise(config: Any, name: str) -> None:
    """Asks the loader, through a Transformers `config`, for dequantised weights where its quantiser leaves the choice.

    Raises:
        CheckpointError: the installed Transformers does not know the quantisation, and would read the numbers without scales.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        found = getattr(part, "quantization_config", None)
        if found is None:
            continue
        content = _content(found)
        method = _method(content)
        if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
            stated = f"quant_method '{method}'" if method else "a quantization_config without a quant_method"
            raise CheckpointError(
                f"the config.json of {name} states {stated}, which the installed Transformers does not know: it would read "
                "unscaled numbers as weights; give the model without quantisation, or in one of the formats that are read here: "
                f"{_READABLE}"
            )
        if "dequantize" not in inspect.signature(AUTO_QUANTIZATION_CONFIG_MAPPING[method]).parameters:
            raise CheckpointError(
                f"the config.json of {name} states quant_method '{method}', whose packed weights only that method's own kernels "
                f"read; give the model without quantisation, or in one of the formats that are read here: {_READABLE}"
            )
        part.quantization_config = {**content, "dequantize": True}


def take_settings(config: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The ``quantization_config`` of a checkpoint whose packed weights are read here; taken out of the Transformers `config`.

    `None` for any other checkpoint, and where `arguments` hold another quantisation than the checkpoint's.
    """
    parts = list({id(part): part for part in (config, config.get_text_config())}.values())
    found = next((stated for part in parts if (stated := getattr(part, "quantization_config", None))), None)
    if not found:
        return None
    content = _content(found)
    method = str(_value(content.get("quant_method")))
    given = arguments.get("quantization_config")
    if method not in METHODS or (given and _value(_content(given).get("quant_method")) != method):
        return None
    for part in parts:
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return {**content, "quant_method": method}


def is_stated(config: Any) -> bool:
    """Whether a Transformers `config` says that the checkpoint is quantised."""
    return any(getattr(part, "quantization_config", None) for part in (config, config.get_text_config()))


def loading_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a GGUF file is loaded with, so that its weights do not stay in their blocks."""
    import transformers

    gguf_config = getattr(transformers, "GgufConfig", None)
    if gguf_config is None or not arguments.get("gguf_file") or "quantization_config" in arguments:
        return {}
    return {"quantization_config": gguf_config(dequantize=True)}


def is_quantised(module: Any) -> bool:
    """Whether a quantiser of Transformers has loaded the module."""
    return getattr(module, "hf_quantizer", None) is not None


def _method(content: Mapping[str, Any]) -> str:
    # bitsandbytes has two quantisers under one method.
    if content.get("load_in_8bit") or content.get("load_in_4bit"):
        return f"bitsandbytes_{'4' if content.get('load_in_4bit') else '8'}bit"
    return str(_value(content.get("quant_method")) or "")


def _content(stated: Any) -> Mapping[str, Any]:
    content: Mapping[str, Any] = stated if isinstance(stated, Mapping) else stated.to_dict()
    return content


def _value(method: Any) -> Any:
    """Transformers keeps it as a member of an enumeration, a file as text."""
    return getattr(method, "value", method)
