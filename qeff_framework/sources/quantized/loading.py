"""Loads a quantised checkpoint through Transformers as the unquantised model that it stands for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from qeff_framework.sources.quantized.formats import QuantizedCheckpoint


def load_dequantised(
    checkpoint: QuantizedCheckpoint,
    auto_class: str,
    location: str,
    config: Any,
    arguments: Mapping[str, Any],
    *,
    deferred: bool = False,
) -> tuple[Any, Any]:
    """The module with float32 weights, and the loader's report about them. With `deferred`, weights are made when written.

    `location` is where generation config and code are read from, `config` the one without its ``quantization_config``, and
    `arguments` those of ``from_pretrained``.
    """
    import torch
    import transformers

    code = {name: arguments[name] for name in ("trust_remote_code", "code_revision") if arguments.get(name) is not None}
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        skeleton = getattr(transformers, auto_class).from_config(copy.deepcopy(config), **code)
    fetching = ("revision", "subfolder", "cache_dir", "token", "local_files_only", "force_download")
    place = {name: arguments[name] for name in fetching if arguments.get(name) is not None}
    taken = {name: value for name, value in arguments.items() if name not in (*place, *_OF_FILES)}
    if taken.get("generation_config") is None and skeleton.can_generate():
        taken["generation_config"] = _generation_config(location, place)
    module, info = type(skeleton).from_pretrained(
        None, **{**taken, "config": skeleton.config, "state_dict": checkpoint.state_dict(skeleton, deferred=deferred)}
    )
    module.config.name_or_path = location
    return module, info


#: Arguments of ``from_pretrained`` that say which files are read, or how they are quantised.
_OF_FILES = ("config", "quantization_config", "variant", "use_safetensors", "code_revision", "trust_remote_code")


def _generation_config(location: str, place: Mapping[str, Any]) -> Any:
    """The checkpoint's; Transformers reads it from the config's own fields where there is no such file."""
    import transformers

    try:
        return transformers.GenerationConfig.from_pretrained(location, **place)
    except OSError:
        return transformers.GenerationConfig.from_pretrained(
            location, config_file_name="config.json", _from_model_config=True, **place
        )
