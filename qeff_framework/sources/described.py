"""The config that describes a module in memory, whatever was changed on it since it was built."""

from __future__ import annotations

import copy
from typing import Any

from qeff_framework.sources.configs import plain_config


def described_config(module: Any) -> dict[str, Any]:
    """Returns the config of a Transformers `module` as JSON, with the numbers of layers and of tokens that the module has.

    Layers may have been cut off, and other embeddings put in, without a change of the config. Whether the config fits is found
    out by building the model that it describes, without weights.
    """
    content = plain_config(module.config)
    built = _built_from(module)
    if built is None:
        return content
    text = _text_part(module.config, content)
    # Older families have names of their own for what all families have.
    names: dict[str, str] = getattr(module.config.get_text_config(), "attribute_map", {})
    layers, vocabulary = (names.get(name, name) for name in ("num_hidden_layers", "vocab_size"))
    for name, lengths in _changed_lists(module, built).items():
        # Of more layers than the config names, most classes run only as many as it names.
        if text.get(layers) == lengths[0] > lengths[1] and not _is_below_list(name):
            for field, value in text.items():
                # Lists with an entry for each layer: layer_types, no_rope_layers, ...
                if "layer" in field and isinstance(value, list) and len(value) == lengths[0]:
                    text[field] = value[: lengths[1]]
            text[layers] = lengths[1]
    tokens, described = _tokens(module), _tokens(built)
    if tokens != described and text.get(vocabulary) == described:
        text[vocabulary] = tokens
    return content


def _built_from(module: Any) -> Any:
    import torch

    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return type(module)(copy.deepcopy(module.config))
    except Exception:  # noqa: BLE001 - a class that takes more than a config cannot be compared
        return None


def _changed_lists(module: Any, built: Any) -> dict[str, tuple[int, int]]:
    """Lists of modules that have another length than the config says: the length by the config, and the module's."""
    import torch

    ours = {name: part for name, part in module.named_modules() if isinstance(part, torch.nn.ModuleList)}
    return {
        name: (len(part), len(ours[name]))
        for name, part in built.named_modules()
        if isinstance(part, torch.nn.ModuleList) and name in ours and len(part) != len(ours[name])
    }


def _is_below_list(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _tokens(module: Any) -> int | None:
    try:
        count: int | None = module.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        return None
    return count


def _text_part(config: Any, content: dict[str, Any]) -> dict[str, Any]:
    """The part of `content` that stands for the config of the text model."""
    text = config.get_text_config()
    for name in getattr(config, "sub_configs", ()):
        if getattr(config, name, None) is text and isinstance(content.get(name), dict):
            part: dict[str, Any] = content[name]
            return part
    return content
