"""Adapters (LoRA and its kin) in or beside a checkpoint: they are not applied, so they are refused.

Transformers applies them where peft happens to be installed and passes them over elsewhere. What a checkpoint computes must not
depend on that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.files import read_json
from qeff_framework.sources.places import Place

CONFIG = "adapter_config.json"
#: What peft saves.
FILES = (CONFIG, "adapter_model.safetensors", "adapter_model.bin")


def refuse_adapter(place: Place, name: str, *, alone: bool, names: Sequence[str] = FILES) -> None:
    """Raises `CheckpointError` with the remedy if `place` holds one of `names`. `alone`: there is no model beside it."""
    if all(place.optional_file(file) is None for file in names):
        return
    found: Mapping[str, Any] = {}
    with contextlib.suppress(CheckpointError):
        path = place.optional_file(CONFIG)
        found = {} if path is None else read_json(path)
    kind = f"adapter ({found['peft_type']})" if found.get("peft_type") else "adapter"
    base = found.get("base_model_name_or_path")
    merge = (
        "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), ADAPTER).merge_and_unload().save_pretrained(DIR), "
        "with peft and the Auto class of the task"
    )
    if alone:
        of_base = f" for the base model '{base}'" if base else ""
        raise CheckpointError(
            f"{name} is no model but an {kind}{of_base}; merge it into its base and give the result: {merge}"
        )
    raise CheckpointError(
        f"{name} holds an {kind} beside its weights, and adapters are not applied; take {', '.join(FILES)} out of it. "
        f"If the weights do not hold it already, merge it then and give the result: {merge}"
    )
