"""Running programs: one batch after the other, results in QEfficient's forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import qeff_framework
from qeff_framework.plugin_api import CompiledModel, InputError
from QEfficient._compat.backends import descriptor, has_option
from QEfficient._compat.keywords import GENERATE
from QEfficient._compat.notices import NotSupportedError, say_once
from QEfficient._compat.prompts import fix_prompts, get_input_prompts
from QEfficient._compat.results import CloudAI100ExecInfo, PerfMetrics, padded
from QEfficient._compat.translation import of_sampling_params, translate


def runtime_options(compiled: CompiledModel, device_ids: Sequence[int] | int | None) -> dict[str, Any]:
    """Options of the runtime for devices; told once where the backend has none to choose among."""
    if device_ids is None:
        return {}
    ids = (device_ids,) if isinstance(device_ids, int) else tuple(device_ids)
    if not ids:
        return {}
    if has_option(descriptor(compiled.backend).runtime_options, "device_ids"):
        return {"device_ids": ids}
    say_once(f"generate: device_ids={list(ids)} has no meaning on backend '{compiled.backend}' and is left out")
    return {}


def check_runtime(runtime_ai100: bool) -> None:
    """Refuses the PyTorch runtime."""
    if not runtime_ai100:
        raise NotSupportedError(
            "generate: runtime_ai100=False is not supported; call the torch module itself, model.model(**inputs)"
        )


def sizes_of(compiled: CompiledModel) -> tuple[int, int | None, int]:
    """``batch_size``, ``full_batch_size`` and ``ctx_len`` of a program that generates text."""
    entries = list(compiled.parts().values())[-1].specializations
    dims = [entry.dims for entry in entries]
    full = next((each["full_batch_size"] for each in dims if "full_batch_size" in each), None)
    rows = max(each["batch_size"] for each in dims)
    return (rows if full is None else 1), (None if full is None else rows), max(each["ctx_len"] for each in dims)


def generate_texts(
    program: Any,
    tokenizer: Any,
    *,
    prompts: str | Sequence[str] | None = None,
    prompt: str | Sequence[str] | None = None,
    prompts_txt_file_path: str | None = None,
    generation_len: int | None = None,
    stream: bool = True,
    streamer: Any = None,
    automation: bool = False,
    runtime_ai100: bool = True,
    sampling_params: Any = None,
    prompt_to_adapter_mapping: Sequence[str | None] | None = None,
    **others: Any,
) -> CloudAI100ExecInfo:
    """Generates text for any number of prompts with a loaded program, and prints how long it took."""
    check_runtime(runtime_ai100)
    settings = {**translate("generate", GENERATE, others), **of_sampling_params(sampling_params)}
    asked = get_input_prompts(prompts if prompts is not None else prompt, prompts_txt_file_path)
    batch_size, full_batch_size, _ = sizes_of(program.compiled)
    texts = fix_prompts(asked, batch_size, full_batch_size)
    mapping = list(prompt_to_adapter_mapping) if prompt_to_adapter_mapping is not None else None
    if mapping is not None:
        if len(mapping) != len(asked):
            raise InputError(f"prompt_to_adapter_mapping names {len(mapping)} adapters for {len(asked)} prompts")
        mapping = [mapping[index % len(mapping)] for index in range(len(texts))]
    if generation_len is not None:
        settings["generation_len"] = generation_len

    step = len(texts) if full_batch_size is not None else batch_size
    outputs = []
    for start in range(0, len(texts), step):
        chosen = {"prompt_to_adapter_mapping": mapping[start : start + step]} if mapping is not None else {}
        if streamer is not None:
            chosen["streamer"] = streamer
        outputs.append(
            program.generate(
                tokenizer,
                prompts=texts[start : start + step],
                stream=stream and streamer is None,
                **chosen,
                **settings,
            )
        )
    fill = padding_id(tokenizer if tokenizer is not None else program.tokenizer)
    ids = [padded(output.generated_ids, fill, generation_len) for output in outputs]
    answers = [list(output.generated_texts) for output in outputs]
    info = CloudAI100ExecInfo(
        batch_size=full_batch_size or batch_size,
        generated_texts=answers if full_batch_size is None else answers[0],
        generated_ids=ids if full_batch_size is None else ids[0],
        perf_metrics=PerfMetrics.joined([output.perf_metrics for output in outputs]),
    )
    if automation:
        print(f"input={texts}\noutput={info.generated_texts}\n{info}")
    return info


def padding_id(tokenizer: Any) -> int:
    """What rows of ids are filled with: the padding token, else the end token, else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        if (found := getattr(tokenizer, name, None)) is not None:
            return int(found)
    return 0


def load(path: Any, device_ids: Sequence[int] | int | None = None) -> Any:
    """Loads an artifact on the backend that it was compiled for."""
    from pathlib import Path

    directory = Path(path)
    return qeff_framework.load_compiled(directory, **runtime_options(CompiledModel.load(directory), device_ids))
