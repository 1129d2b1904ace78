"""Quantised checkpoints: the portable graph is float32, so the loader must dequantise what it reads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.quantized.formats import METHODS

_READABLE = f"{', '.join(sorted(METHODS))}, or a GGUF file"


def dequantise(config: Any, name: str) -> None:
    """Asks the loader, through a Transformers `config`, for dequantised weights where its quantiser leaves the choice.

    Raises:
        CheckpointError: the installed Transformers does not know the quantisation, and would read the numbers without scales.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        found = getattr(part, "quantization_config", None)
        if not found:
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
