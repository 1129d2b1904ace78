"""Helpers that scripts import."""

from __future__ import annotations

from typing import Any

from QEfficient.utils._utils import (
    check_and_assign_cache_dir,
    create_and_dump_qconfigs,
    create_json,
    custom_format_warning,
    get_num_layers_from_config,
    get_padding_shape_from_config,
    hf_download,
    load_hf_processor,
    load_hf_tokenizer,
    load_json,
    login_and_download_hf_lm,
    onnx_exists,
    padding_check_and_fix,
    qpc_exists,
    replace_transformers_quantizers,
    undo_transformers_quantizers,
)

__all__ = [
    "check_and_assign_cache_dir",
    "create_and_dump_qconfigs",
    "create_json",
    "custom_format_warning",
    "get_num_layers_from_config",
    "get_padding_shape_from_config",
    "hf_download",
    "load_hf_processor",
    "load_hf_tokenizer",
    "load_json",
    "login_and_download_hf_lm",
    "onnx_exists",
    "padding_check_and_fix",
    "qpc_exists",
    "replace_transformers_quantizers",
    "undo_transformers_quantizers",
]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}: of the helpers of QEfficient.utils there are {', '.join(__all__)}"
    )
