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


#: Helpers of QEfficient's own stages, which have no counterpart.
_INTERNAL = frozenset(
    {
        *("LRUCache", "create_export_hash", "create_model_params", "dump_qconfig", "generate_mdp_partition_config"),
        *("get_num_layers_vlm", "get_onnx_dir_name", "get_padding_shape_vlm", "get_qpc_dir_path", "hash_dict_params"),
        *("get_sliding_window_layers", "get_sliding_window_shapes", "make_serializable"),
    }
)


def __getattr__(name: str) -> Any:
    if name in _INTERNAL:
        # An AttributeError would lose its message in ``from QEfficient.utils import ...``.
        raise ImportError(
            f"QEfficient.utils.{name} is not provided: it is a helper of QEfficient's own stages; model.onnx_path and "
            "model.qpc_path say where results lie"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
