"""Adapters (LoRA and its kin): a folder of one as the model, and those beside the weights of a checkpoint, which are refused.

Transformers applies them where peft happens to be installed and passes them over elsewhere. What a checkpoint computes must not
depend on that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qeff_framework.errors import CheckpointError, OptionError
from qeff_framework.sources.files import CONFIG as CHECKPOINT_CONFIG
from qeff_framework.sources.files import read_json
from qeff_framework.sources.lora import LoraAdapter, folders_of_adapters
from qeff_framework.sources.places import HubRepository, LocalFolder, Place

CONFIG = "adapter_config.json"
#: What peft saves.
FILES = (CONFIG, "adapter_model.safetensors", "adapter_model.bin")


def is_adapter_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a local folder holds an adapter and no model."""
    path = Path(path).expanduser()
    return (path / CONFIG).is_file() and not (path / CHECKPOINT_CONFIG).exists()


def base_of_folder(path: str | os.PathLike[str], *, given: object) -> tuple[str, str | None]:
    """Where the base model of the adapter in a folder lies, by its config, and its revision on the hub.

    Raises:
        CheckpointError: the config names none, or an `adapter` was given beside this one.
    """
    path = Path(path).expanduser()
    if given is not None:
        raise CheckpointError(
            f"{path} is an adapter itself, and adapter={given} is another one; give the base model and one adapter"
        )
    adapter = LoraAdapter(LocalFolder(path.resolve()), path.name)
    base = adapter.base
    if base is None:
        raise CheckpointError(
            f"the adapter {path} does not say which model it is for; give both: from_pretrained(BASE, adapter={str(path)!r}), "
            "with the model that the adapter was made for"
        )
    if _looks_local(base) and not Path(base).expanduser().exists():
        raise base_is_missing(path, base)
    return base, adapter.base_revision


def base_is_missing(path: str | os.PathLike[str], base: str, reason: str = "") -> CheckpointError:
    """What to raise where the base model that the config of an adapter names cannot be read."""
    told = f": {reason.partition('; check the spelling')[0]}" if reason else ""
    return CheckpointError(
        f"the adapter {path} is for the model '{base}', which is not there{told}; give both: from_pretrained(BASE, "
        f"adapter={str(path)!r}), with the model that the adapter was made for"
    )


def open_adapter(name_or_path: str | os.PathLike[str], arguments: Mapping[str, Any]) -> LoraAdapter:
    """The adapter in a local folder, or on the hub. `arguments`: those of ``from_pretrained`` about fetching."""
    if not isinstance(name_or_path, str | os.PathLike):
        raise OptionError(
            f"adapter={name_or_path!r} is no folder and no hub id; give one adapter, which is merged into the weights. "
            "Several, among which prompts choose, are for QEFFAutoPeftModelForCausalLM"
        )
    text = os.fspath(name_or_path)
    path = Path(text).expanduser()
    if path.is_dir():
        return LoraAdapter(LocalFolder(path.resolve()), path.resolve().name)
    if _looks_local(text):
        raise CheckpointError(f"adapter folder {text} does not exist; give a folder with an {CONFIG}, or a hub id")
    return LoraAdapter(HubRepository(text, arguments), text.rpartition("/")[2])


def _looks_local(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text


def refuse_adapter(place: Place, name: str, *, alone: bool, names: Sequence[str] = FILES) -> None:
    """Raises `CheckpointError` with the remedy if `place` holds one of `names`. `alone`: there is no model beside it."""
    if all(place.optional_file(file) is None for file in names):
        inner = folders_of_adapters(place) if alone else []
        if inner:
            raise CheckpointError(
                f"{name} holds no model, and adapters in its folders {', '.join(folder.name for folder in inner)}; give one of "
                f"them with its base model: from_pretrained(BASE, adapter={str(inner[0])!r})"
            )
        return
    found: Mapping[str, Any] = {}
    with contextlib.suppress(CheckpointError):
        path = place.optional_file(CONFIG)
        found = {} if path is None else read_json(path)
    kind = f"adapter ({found['peft_type']})" if found.get("peft_type") else "adapter"
    base = found.get("base_model_name_or_path")
    if alone:
        of_base = f" for the base model '{base}'" if base else ""
        raise CheckpointError(
            f"{name} is no model but an {kind}{of_base}; give both: from_pretrained({base or 'BASE'!r}, adapter={name!r})"
        )
    raise CheckpointError(
        f"{name} holds an {kind} beside its weights, which is applied when it is asked for alone; take {', '.join(FILES)} out "
        "of it to another folder. If the weights do not hold it already, give both: from_pretrained(MODEL, adapter=FOLDER)"
    )
