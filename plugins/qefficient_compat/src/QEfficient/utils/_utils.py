"""Helpers that scripts import: tokenizers, processors, downloads, paths."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import qeff_framework
from QEfficient._compat.notices import say_once


def load_hf_tokenizer(
    pretrained_model_name_or_path: str | os.PathLike[str],
    cache_dir: str | None = None,
    hf_token: str | None = None,
    padding_side: str = "right",
    **kwargs: Any,
) -> Any:
    """The tokenizer of a hub id, a folder, or a GGUF file, with a padding token."""
    from transformers import AutoTokenizer

    kwargs.pop("allow_patterns", None)
    place = Path(pretrained_model_name_or_path)
    if place.suffix == ".gguf" and place.is_file():
        pretrained_model_name_or_path, kwargs["gguf_file"] = place.parent, place.name
    tokenizer = AutoTokenizer.from_pretrained(
        pretrained_model_name_or_path, cache_dir=cache_dir, token=hf_token, padding_side=padding_side, **kwargs
    )
    padding_check_and_fix(tokenizer)
    return tokenizer


def load_hf_processor(
    pretrained_model_name_or_path: str | os.PathLike[str],
    cache_dir: str | None = None,
    hf_token: str | None = None,
    **kwargs: Any,
) -> Any:
    """The checkpoint's processor; its tokenizer has a padding token."""
    from transformers import AutoProcessor

    kwargs.pop("allow_patterns", None)
    opened: Any = AutoProcessor
    processor = opened.from_pretrained(pretrained_model_name_or_path, cache_dir=cache_dir, token=hf_token, **kwargs)
    if hasattr(processor, "tokenizer"):
        padding_check_and_fix(processor.tokenizer)
    return processor


def padding_check_and_fix(tokenizer: Any) -> None:
    """Pads with the end token where the tokenizer names no padding token."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else 0


def hf_download(
    repo_id: str | None = None,
    cache_dir: str | None = None,
    hf_token: str | None = None,
    allow_patterns: Sequence[str] | None = None,
    ignore_patterns: Sequence[str] | None = None,
) -> str:
    """Downloads a repository of the hub, or finds it; returns its folder."""
    from huggingface_hub import snapshot_download

    found: str = snapshot_download(
        str(repo_id),
        cache_dir=cache_dir,
        token=hf_token,
        allow_patterns=list(allow_patterns) if allow_patterns else None,
        ignore_patterns=list(ignore_patterns) if ignore_patterns else None,
    )
    return found


def login_and_download_hf_lm(
    model_name: str, *, hf_token: str | None = None, cache_dir: str | None = None, **patterns: Any
) -> str:
    """Downloads a language model; nobody is logged in for longer than that."""
    return hf_download(model_name, cache_dir, hf_token, **patterns)


def check_and_assign_cache_dir(local_model_dir: str | None, cache_dir: str | None) -> str | None:
    """The folder for downloads; `None`, that of Transformers, unless one is given. With a local model none is needed."""
    return None if local_model_dir is not None else cache_dir


def get_num_layers_from_config(config: Any) -> int:
    """Layers of the decoder."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(text.num_hidden_layers)


def get_padding_shape_from_config(config: Any, batch_size: int, seq_len: int) -> list[int]:
    """Shape of a layer's keys in the cache: ``[B, H, C, D]``."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return [batch_size, int(heads), seq_len, int(size)]


def create_json(file_path: str | os.PathLike[str], json_data: object) -> None:
    """Writes a JSON file."""
    Path(file_path).write_text(json.dumps(json_data, indent=4) + "\n", encoding="utf-8")


def load_json(file: str | os.PathLike[str]) -> Any:
    """Reads a JSON file."""
    return json.loads(Path(file).read_text(encoding="utf-8"))


def onnx_exists(onnx_path: str | os.PathLike[str]) -> bool:
    """Whether there is a graph."""
    return Path(onnx_path).is_file()


def qpc_exists(qpc_dir_path: str | os.PathLike[str]) -> bool:
    """Whether a directory is an artifact."""
    return (Path(qpc_dir_path) / "compiled.json").is_file()


def custom_format_warning(message: object, category: type[Warning], *args: Any, **kwargs: Any) -> str:
    """A warning as one line."""
    del args, kwargs
    return f"{category.__name__}: {message}\n"


def replace_transformers_quantizers() -> None:
    """Does nothing: quantised checkpoints are read without changing Transformers."""
    say_once("replace_transformers_quantizers() does nothing: quantised checkpoints are read as they are")


def undo_transformers_quantizers() -> None:
    """Does nothing, see `replace_transformers_quantizers`."""


def create_and_dump_qconfigs(
    qpc_path: str | os.PathLike[str],
    onnx_path: str | os.PathLike[str] | None = None,
    huggingface_config: Any = None,
    pytorch_transforms: Sequence[object] = (),
    onnx_transforms: Sequence[object] = (),
    specializations: Sequence[Mapping[str, object]] = (),
    mdp_ts_num_devices: int = 1,
    num_speculative_tokens: int | None = None,
    **compiler_options: Any,
) -> None:
    """Writes ``qconfig.json`` beside the directory `qpc_path`. `compile` writes one into every artifact by itself."""
    config = huggingface_config.to_dict() if hasattr(huggingface_config, "to_dict") else huggingface_config
    options = dict(compiler_options)
    options.setdefault("mdp_ts_num_devices", mdp_ts_num_devices)
    options.setdefault("num_speculative_tokens", num_speculative_tokens)
    place = Path(qpc_path).parent
    qeff_framework.create_and_dump_qconfigs(
        place,
        huggingface_config=config or {},
        export_dir=None if onnx_path is None else Path(onnx_path).parent,
        compile_dir=place,
        torch_transforms=pytorch_transforms,
        onnx_transforms=onnx_transforms,
        specializations=specializations,
        compiler_options=options,
        backend={},
        sdk_versions={},
        onnx_path=None if onnx_path is None else Path(onnx_path),
    )
