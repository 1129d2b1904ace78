"""The keyword arguments of ``from_pretrained``: those of Transformers' loader, and what becomes of each.

Whatever is none of them must be a field of the checkpoint's config, which it then replaces (``num_hidden_layers=1``).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from qeff_framework.errors import OptionError
from qeff_framework.sources.configs import content_of

#: Where and how files are fetched.
FETCHING = frozenset({"cache_dir", "force_download", "local_files_only", "proxies", "token", "tqdm_class"})
#: Which files are read. The files themselves, or the commit, stand in the identity.
SELECTING = frozenset({"revision", "code_revision", "subfolder", "variant", "use_safetensors", "gguf_file"})
#: Decide the result beside the files.
DECIDING = frozenset({"config", "quantization_config", "generation_config", "key_mapping"})
#: Passed on; the graph is the same with any value that loads.
WITHOUT_EFFECT = frozenset(
    {"attn_implementation", "experts_implementation", "disable_mmap", "weights_only", "ignore_mismatched_sizes"}
)
#: Not passed on: the weights are loaded to the memory of the host, as float32.
HOST_MEMORY = frozenset({"device_map", "max_memory", "offload_folder", "offload_buffers", "low_cpu_mem_usage"})
DTYPE = frozenset({"dtype", "torch_dtype"})
TRUST = "trust_remote_code"
#: Not passed on: whether packed weights stay in their blocks.
KEEP = "keep_quantized"
#: Not passed on: folder or hub id of a LoRA adapter that is merged into the weights.
ADAPTER = "adapter"

_WEIGHTS_GIVEN = "load the module with Transformers and pass it: QEFFAutoModel(module)"
_ONE_HOST = "the weights are read by this process alone; leave it out"
_KERNELS = "the graph is made from Transformers' own code; leave it out"
_ADAPTER = "give the adapter's folder or hub id: adapter=..."
_PRECISION = "the graph is float32, and a backend's options choose its own precision when it compiles; leave it out"
_OLD = "Transformers has no such argument any more; leave it out"
#: Arguments of Transformers' loader that have no place here, with the remedy.
REFUSED: Mapping[str, str] = {
    "state_dict": _WEIGHTS_GIVEN,
    "output_loading_info": "what did not load is refused or told as a warning; leave it out",
    **dict.fromkeys(("device_mesh", "distributed_config", "tp_plan", "tp_size"), _ONE_HOST),
    **dict.fromkeys(("use_kernels", "kernel_config", "allow_all_kernels", "fusion_config"), _KERNELS),
    **dict.fromkeys(("adapter_kwargs", "adapter_name"), _ADAPTER),
    **dict.fromkeys(("from_tf", "from_flax", "offload_state_dict", "mirror"), _OLD),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit"), _PRECISION),
    "use_auth_token": "its name is token=...",
    "return_unused_kwargs": "leave it out",
}
#: Passed on to the model's own ``from_pretrained``, beside what every load takes.
FOR_MODEL = ("variant", "use_safetensors", *sorted(DECIDING - {"config"}), *sorted(WITHOUT_EFFECT))
KNOWN = FETCHING | SELECTING | DECIDING | WITHOUT_EFFECT | HOST_MEMORY | DTYPE | {TRUST, KEEP, ADAPTER}

_SWITCHES = (TRUST, KEEP, "use_safetensors", "local_files_only", "force_download", "ignore_mismatched_sizes")


def switch_problems(given: Mapping[str, Any]) -> list[str]:
    """What is wrong with arguments that are true or false: the text "false" would run code that nobody has trusted."""
    return [
        f"{name}={given[name]!r} cannot be given: it is True or False"
        for name in _SWITCHES
        if not isinstance(given.get(name), bool | None)
    ]


def split_arguments(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the loader, and the rest, which should be fields of the config.

    Raises:
        OptionError: an argument that has no place here, or a dtype other than float32. Names all of them.
    """
    problems = [f"{name}= cannot be given: {REFUSED[name]}" for name in given if name in REFUSED]
    problems += [
        f"{name}={value} cannot be given: the graph is float32, and a backend chooses its own precision when it compiles; "
        "leave it out"
        for name, value in given.items()
        if name in DTYPE and not _is_float32(value)
    ]
    problems += switch_problems(given)
    problems += _config_problems(given)
    if problems:
        raise OptionError(f"from_pretrained: {'; '.join(problems)}")
    arguments = {name: value for name, value in given.items() if name in KNOWN - DTYPE - HOST_MEMORY}
    # As in Transformers, `None` is nothing given.
    arguments = {name: value for name, value in arguments.items() if value is not None or name not in DECIDING}
    return arguments, {name: value for name, value in given.items() if name not in KNOWN}


def _config_problems(given: Mapping[str, Any]) -> list[str]:
    """What is wrong with configs that are no objects of Transformers, whose loader would tell the attribute that it misses."""
    problems = []
    if isinstance(given.get("config"), (str, os.PathLike)):
        problems.append("config= takes a config, not its place; load it first: config=AutoConfig.from_pretrained(...)")
    elif not hasattr(given.get("config"), "to_json_string") and given.get("config") is not None:
        problems.append(
            f"config= is a {type(given['config']).__name__} and should be a config of Transformers; give single fields by their "
            "names: num_hidden_layers=1"
        )
    settings = given.get("generation_config")
    if settings is not None and not hasattr(settings, "to_json_string"):
        problems.append(
            f"generation_config= is a {type(settings).__name__} and should be a GenerationConfig of Transformers: "
            "generation_config=GenerationConfig(...)"
        )
    return problems


def refuse_unknown(names: Iterable[str], known_fields: Iterable[str], model_type: str) -> None:
    """Raises `OptionError` for arguments that are neither of the loader nor fields of the config, with the nearest names."""
    known = sorted({*KNOWN, *known_fields})
    problems = []
    for name in names:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
        problems.append(f"unknown argument '{name}'" + (f", did you mean '{near[0]}'?" if near else ""))
    if problems:
        raise OptionError(
            f"from_pretrained: {'; '.join(problems)}; it takes the arguments of Transformers' from_pretrained and fields of the "
            f"config of model_type '{model_type}'; sizes and options of a backend are given to compile()"
        )


def is_field(config: Any, name: str) -> bool:
    """Whether a config of Transformers has a field of this name, and no method or private attribute."""
    return hasattr(config, name) and not name.startswith("_") and not callable(getattr(type(config), name, None))


def identifying(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON for a cache key.

    Raises:
        OptionError: a value has no JSON form, so that no key could tell it from another one.
    """
    plain = {}
    for name, value in arguments.items():
        if hasattr(value, "to_json_string"):
            plain[name] = content_of(json.loads(value.to_json_string()))
        else:
            plain[name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        try:
            json.dumps(plain[name], allow_nan=False)
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"from_pretrained: {name}= is a {type(value).__name__}, which cannot be told from another one in the cache; "
                "give text, numbers, lists, dictionaries or a config"
            ) from error
    return plain


def _is_float32(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_float32(part) for part in value.values())
    # "auto" names the type of the files; they are read as float32 whatever theirs is.
    return value is None or str(value).removeprefix("torch.") in ("float32", "float", "auto")
