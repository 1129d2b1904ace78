"""The functions of QEfficient's first interface: export, compile and execute by paths."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qeff_framework.plugin_api import OptionError
from QEfficient._compat.execution import generate_texts, load
from QEfficient._compat.models import QEFFAutoModelForCausalLM
from QEfficient._compat.notices import NotSupportedError, say_once
from QEfficient._compat.results import CloudAI100ExecInfo


def models_dir() -> Path:
    """Where it is kept which model a graph was exported from: ``QEFF_MODELS_DIR``, else beside the artifact store."""
    if named := os.environ.get("QEFF_MODELS_DIR"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    default = Path(cache) / "qeff" if cache else Path.home() / ".cache" / "qeff"
    return Path(os.environ.get("QEFF_HOME") or default) / "qeff_models"


def _record_of(onnx_path: str | os.PathLike[str]) -> Path:
    name = hashlib.sha256(os.fsencode(Path(onnx_path).resolve())).hexdigest()[:32]
    return models_dir() / "exports" / f"{name}.json"


def transform(model: Any, type: str = "Transformers", form_factor: str = "cloud") -> QEFFAutoModelForCausalLM:
    """The model of a torch module: what backends change in it is changed when it is compiled."""
    if type != "Transformers" or form_factor != "cloud":
        raise NotSupportedError(
            f"transform: type={type!r}, form_factor={form_factor!r} is not supported; leave both out"
        )
    return model if isinstance(model, QEFFAutoModelForCausalLM) else QEFFAutoModelForCausalLM(model)


def qualcomm_efficient_converter(
    model_name: str | None = None,
    model_kv: Any = None,
    local_model_dir: str | None = None,
    tokenizer: Any = None,
    cache_dir: str | None = None,
    onnx_dir_path: str | os.PathLike[str] | None = None,
    hf_token: str | None = None,
    seq_length: int | None = None,
    kv: bool = True,
    return_path: bool = True,
    form_factor: str = "cloud",
    full_batch_size: int | None = None,
) -> tuple[str, str]:
    """Exports a causal language model; returns the folder of the graph and its path.

    `QEfficient.compile` finds the model of the graph again by this path.
    """
    del tokenizer, seq_length, return_path, full_batch_size
    if not kv or form_factor != "cloud":
        raise NotSupportedError(f"export: kv={kv}, form_factor={form_factor!r} is not supported; leave both out")
    place = os.fspath(local_model_dir) if local_model_dir else model_name
    fetching = {name: value for name, value in (("cache_dir", cache_dir), ("hf_token", hf_token)) if value is not None}
    if model_kv is not None:
        model = transform(model_kv)
    elif place is not None:
        model = QEFFAutoModelForCausalLM.from_pretrained(place, **fetching)
    else:
        raise OptionError("export: give model_name, local_model_dir or model_kv")
    path = model.export(onnx_dir_path)
    if model_kv is None:
        folder = Path(str(place))
        record = _record_of(path)
        record.parent.mkdir(parents=True, exist_ok=True)
        fetching.pop("hf_token", None)
        text = json.dumps({"model": str(folder.resolve()) if folder.is_dir() else place, "arguments": fetching})
        record.write_text(text + "\n", encoding="utf-8")
    return str(path.parent), str(path)


def compile(
    onnx_path: str | os.PathLike[str],
    qpc_path: str | os.PathLike[str],
    num_cores: int,
    device_group: Sequence[int] | None = None,
    aic_enable_depth_first: bool = False,
    mos: int = -1,
    batch_size: int = 1,
    prompt_len: int = 32,
    ctx_len: int = 128,
    mxfp6: bool = True,
    mxint8: bool = False,
    custom_io_file_path: str | None = None,
    full_batch_size: int | None = None,
    allow_mxint8_mdp_io: bool = False,
    enable_qnn: bool = False,
    qnn_config: str | None = None,
    **kwargs: Any,
) -> str:
    """Compiles the model of a graph that `export` has made on this machine; returns ``<qpc_path>/qpcs``, the artifact."""
    if custom_io_file_path is not None:
        say_once("compile: custom_io_file_path has no effect: mxint8 sets the format of the cache")
    record = _record_of(onnx_path)
    if not record.is_file():
        raise NotSupportedError(
            f"compile: {os.fspath(onnx_path)} was not exported by QEfficient.export on this machine, so that its model is not "
            "known; export it first, or use QEFFAutoModelForCausalLM.from_pretrained(...).compile(...)"
        )
    known = json.loads(record.read_text(encoding="utf-8"))
    model = QEFFAutoModelForCausalLM.from_pretrained(
        known["model"], continuous_batching=full_batch_size is not None, **known["arguments"]
    )
    artifact = model.compile(
        compile_dir=Path(qpc_path) / "qpcs",
        num_cores=num_cores,
        device_group=device_group,
        aic_enable_depth_first=aic_enable_depth_first,
        mos=mos,
        batch_size=batch_size,
        prefill_seq_len=prompt_len,
        ctx_len=ctx_len,
        mxfp6_matmul=mxfp6,
        mxint8_kv_cache=mxint8,
        full_batch_size=full_batch_size,
        allow_mxint8_mdp_io=allow_mxint8_mdp_io,
        enable_qnn=enable_qnn,
        qnn_config=qnn_config,
        **kwargs,
    )
    return str(artifact)


def cloud_ai_100_exec_kv(
    tokenizer: Any,
    qpc_path: str | os.PathLike[str],
    prompt: str | Sequence[str] | None = None,
    prompts_txt_file_path: str | None = None,
    device_id: Sequence[int] | int | None = None,
    generation_len: int | None = None,
    stream: bool = True,
    automation: bool = False,
    **kwargs: Any,
) -> CloudAI100ExecInfo:
    """Generates text with an artifact, and prints the text and how long it took."""
    for decided in ("batch_size", "full_batch_size", "ctx_len"):
        kwargs.pop(decided, None)
    with load(qpc_path, device_id) as program:
        info = generate_texts(
            program,
            tokenizer,
            prompt=prompt,
            prompts_txt_file_path=prompts_txt_file_path,
            generation_len=generation_len,
            stream=stream,
            automation=automation,
            **kwargs,
        )
    if not automation:
        print(info)
    return info
