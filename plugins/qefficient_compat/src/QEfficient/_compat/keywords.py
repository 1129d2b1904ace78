"""The map from QEfficient's interface to that of qeff_framework.

It decides what is done with every keyword, and ``docs/migrating.md`` is made from it: a feature that the core gets is one
changed line here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

#: What is done with a keyword.
#:
#: - ``"forwarded"``: passed on, as `Keyword.to` where that is given.
#: - ``"device"``: where, or in which number format, a device computes. Passed on to a backend that has the option, else left out
#:   with a warning.
#: - ``"size"``: passed on where the installed qeff_framework has such a size, else refused.
#: - ``"no effect"``: left out with a log line; results are the same.
#: - ``"here"``: the method itself takes care of it.
#: - ``"refused"``: an error with `Keyword.note`.
Treatment = Literal["forwarded", "device", "size", "no effect", "here", "refused"]


@dataclass(frozen=True, kw_only=True)
class Keyword:
    """One keyword of a method of QEfficient."""

    name: str
    treatment: Treatment
    #: The name in qeff_framework, where it differs.
    to: str = ""
    #: For the page; of a refused keyword, what to use instead.
    note: str = ""
    #: Values that ask for nothing, beside `None` and `False`.
    harmless: Sequence[object] = ()

    def asks_for_nothing(self, value: object) -> bool:
        """Whether the keyword was given in vain."""
        return value is None or value is False or any(value is each or value == each for each in self.harmless)


def _same(*names: str) -> tuple[Keyword, ...]:
    return tuple(Keyword(name=name, treatment="forwarded") for name in names)


_ONE_TRACE = "the export traces one layer of each kind and reads no weights"

#: Keywords of ``from_pretrained``. Others are arguments of Transformers' ``from_pretrained`` or fields of the config.
FROM_PRETRAINED: tuple[Keyword, ...] = (
    Keyword(name="continuous_batching", treatment="here", note="compile takes `full_batch_size` where it is `True`"),
    Keyword(
        name="full_batch_size", treatment="here", note="deprecated there too: the same as `continuous_batching=True`"
    ),
    Keyword(name="qaic_config", treatment="here", note="see its keys below"),
    Keyword(name="is_tlm", treatment="here", note="an old form of `speculative_model_type=target`"),
    Keyword(
        name="pooling", treatment="here", note="`None` is no pooling; `avg` is `mean`; functions are taken as they are"
    ),
    Keyword(name="hf_token", treatment="forwarded", to="token"),
    Keyword(name="kv_offload", treatment="here", note="`False` is one program for images and text"),
    Keyword(name="finite_adapters", treatment="here", note="both forms are `QEFFAutoPeftModelForCausalLM`"),
    Keyword(name="adapter_name", treatment="here", note="of the adapter that is loaded first"),
    Keyword(
        name="torch_dtype",
        treatment="here",
        note="weights are read as float32; the backend's options set what it computes in",
    ),
    Keyword(name="dtype", treatment="here", note="as `torch_dtype`"),
    *_same("attn_implementation", "low_cpu_mem_usage", "cache_dir", "trust_remote_code", "revision", "gguf_file"),
    Keyword(name="use_cache", treatment="no effect", note="every program keeps its cache", harmless=(True,)),
    Keyword(name="max_seq_len_cached", treatment="no effect", note="rotary tables follow `ctx_len`"),
    Keyword(name="weight_free", treatment="no effect", note=_ONE_TRACE),
    Keyword(name="layerwise", treatment="no effect", note=_ONE_TRACE),
    Keyword(
        name="enable_proxy", treatment="refused", note="export a config with fewer layers instead (num_hidden_layers=1)"
    ),
)

#: Keys of ``qaic_config``.
QAIC_CONFIG: tuple[Keyword, ...] = (
    Keyword(
        name="speculative_model_type",
        treatment="here",
        note="`target`: compile takes `num_speculative_tokens`; `turbo` is refused",
    ),
    Keyword(name="include_sampler", treatment="size"),
    Keyword(
        name="max_top_k_ids",
        treatment="here",
        note="the sampler chooses among 512 tokens; more are refused, fewer are `top_k`",
    ),
    Keyword(name="return_pdfs", treatment="size", note="without it: read the logits of a program without a sampler"),
    Keyword(
        name="include_guided_decoding",
        treatment="size",
        note="without it: a `LogitsProcessor` in generate(..., logits_processor=[...]) of a program without a sampler",
    ),
    Keyword(name="ccl_enabled", treatment="size"),
    Keyword(name="comp_ctx_lengths_prefill", treatment="size"),
    Keyword(name="comp_ctx_lengths_decode", treatment="size"),
    Keyword(
        name="num_kv_blocks", treatment="device", harmless=(1,), note="an option of compile here; compile takes it too"
    ),
    Keyword(name="num_kv_heads_repeat", treatment="device", to="replicate_kv_heads", harmless=(1,), note="likewise"),
    Keyword(name="enable_blocking", treatment="no effect", note="`num_kv_blocks` alone decides"),
    Keyword(name="blocking_mode", treatment="here", note="`kv`; the compiler splits heads and queries"),
    Keyword(
        name="mla_absorption", treatment="no effect", note="the cache holds the keys and values that attention reads"
    ),
    Keyword(name="pretrained_model_name_or_path", treatment="no effect", note="it is known"),
    Keyword(
        name="dflash_dlm", treatment="refused", note="use prompt lookup: generate(..., prompt_lookup_num_tokens=...)"
    ),
    Keyword(
        name="target_layer_ids",
        treatment="refused",
        note="use prompt lookup: generate(..., prompt_lookup_num_tokens=...)",
    ),
)

#: Keywords of ``compile``. Others are options of the backend under their own names.
COMPILE: tuple[Keyword, ...] = (
    Keyword(name="backend", treatment="here", note="of this package alone: the backend by name"),
    Keyword(name="onnx_path", treatment="here", note="the export of this model; another file is refused"),
    *_same("compile_dir", "prefill_seq_len", "ctx_len", "batch_size", "seq_len", "num_cores"),
    *_same("img_size", "height", "width", "num_frames", "num_images", "skip_vision", "skip_lang"),
    Keyword(
        name="full_batch_size",
        treatment="here",
        to="full_batch_size",
        note="needs `continuous_batching=True`, is told and left out without it",
    ),
    Keyword(name="kv_cache_batch_size", treatment="here", note="as `full_batch_size`"),
    Keyword(
        name="num_speculative_tokens",
        treatment="here",
        note="for `speculative_model_type=target`; 0 alone is a program without drafts",
    ),
    Keyword(name="comp_ctx_lengths_prefill", treatment="forwarded", note="a list, or its text"),
    Keyword(name="comp_ctx_lengths_decode", treatment="forwarded", note="a list, or its text"),
    Keyword(name="num_devices", treatment="device", harmless=(0, 1), note="0 is 1"),
    Keyword(name="device_group", treatment="here", to="num_devices", note="its length"),
    Keyword(name="aic_num_cores", treatment="forwarded", to="num_cores"),
    Keyword(name="mxfp6_matmul", treatment="device", note='`simulate="ai100"` of `ort_sim` computes in this format'),
    Keyword(name="mxfp6", treatment="device", to="mxfp6_matmul"),
    Keyword(name="mxint8_kv_cache", treatment="device", note='`simulate="ai100"` of `ort_sim` computes in this format'),
    Keyword(name="mxint8", treatment="device", to="mxint8_kv_cache"),
    Keyword(name="aic_hw_version", treatment="device", to="hw_version", note="`2.0` is `ai100`"),
    Keyword(name="mos", treatment="device", harmless=(-1,)),
    Keyword(name="ols", treatment="device"),
    Keyword(name="aic_enable_depth_first", treatment="device"),
    Keyword(name="allow_mxint8_mdp_io", treatment="device"),
    Keyword(name="convert_to_fp16", treatment="device"),
    Keyword(name="mdp_num_partitions", treatment="device", harmless=(1,)),
    Keyword(name="mdp_load_partition_config", treatment="device"),
    Keyword(name="user_tiled", treatment="device"),
    Keyword(name="split_retained_state_io", treatment="device"),
    Keyword(name="multicast_weights", treatment="device"),
    Keyword(name="enable_qnn", treatment="here", note="backend `qnn`, target `aic`"),
    Keyword(name="qnn_config", treatment="here", note="with `enable_qnn`; the file is read as it is"),
    Keyword(
        name="artifacts",
        treatment="forwarded",
        to="dry_run",
        note="the compiler's inputs are written, and nothing is run",
    ),
    Keyword(name="prefill_only", treatment="size", note="without it: both programs in one artifact"),
    Keyword(name="retain_full_kv", treatment="no effect", note="every state holds all of `ctx_len`"),
    Keyword(name="enable_chunking", treatment="no effect", note="every program reads long prompts in chunks"),
    Keyword(name="num_kv_blocks", treatment="device", harmless=(1,)),
    Keyword(name="replicate_kv_heads", treatment="device", harmless=(1,)),
    Keyword(
        name="use_onnx_subfunctions",
        treatment="device",
        to="sub_functions",
        note="layers that are alike are calls of one function in what the compiler reads",
    ),
    Keyword(name="offload_pt_weights", treatment="no effect", note=_ONE_TRACE, harmless=(True,)),
    Keyword(name="dynamo", treatment="no effect", note="every export goes through torch.export"),
    Keyword(name="layerwise", treatment="no effect", note=_ONE_TRACE),
    Keyword(name="layerwise_window_size", treatment="no effect", note=_ONE_TRACE, harmless=(1,)),
    Keyword(name="moe_prefill_packed_chunk_size", treatment="no effect", note="experts are lowered by their op"),
    Keyword(name="mdp_ts_num_devices", treatment="no effect", note="ignored there too; `num_devices` counts"),
    Keyword(
        name="node_precision_info",
        treatment="refused",
        note="its names are those of another graph; give fp32_nodes=(...)",
    ),
    Keyword(name="specializations", treatment="refused", note="give prefill_seq_len, ctx_len, batch_size or seq_len"),
    Keyword(name="custom_io", treatment="refused", note="mxint8_kv_cache=True sets the format of the cache"),
    Keyword(
        name="kv_cache_prefix", treatment="refused", note="the names of states are fixed: past_key.i, past_value.i"
    ),
    Keyword(name="dflash_block_size", treatment="refused", note="use num_speculative_tokens and prompt lookup"),
    Keyword(
        name="io_encrypt", treatment="refused", note="compile without it; programs with encrypted IO cannot be run here"
    ),
)

#: Entries of ``compilation`` of a module in the configuration of a pipeline.
PIPELINE_MODULE: tuple[Keyword, ...] = (
    Keyword(name="mdp_ts_num_devices", treatment="device", to="num_devices", harmless=(0, 1)),
    Keyword(name="mdts_mos", treatment="device"),
    Keyword(name="compile_only", treatment="no effect", note="compiling runs nothing else", harmless=(True,)),
    *(each for each in COMPILE if each.treatment == "device" or each.name == "aic_num_cores"),
)

#: Keywords of ``export``.
EXPORT: tuple[Keyword, ...] = (
    *_same("export_dir", "use_onnx_subfunctions"),
    *(each for each in COMPILE if each.name in ("offload_pt_weights", "dynamo", "layerwise")),
    *(each for each in COMPILE if each.name in ("layerwise_window_size", "enable_chunking", "kv_cache_prefix")),
    Keyword(name="prefill_only", treatment="no effect", note="one graph serves prefill and decode"),
    Keyword(name="prefill_seq_len", treatment="no effect", note="the graph has no fixed sizes"),
    Keyword(name="num_cores", treatment="no effect", note="it belongs to compile"),
)

#: Keywords of ``generate``. Others are settings of a generation config.
GENERATE: tuple[Keyword, ...] = (
    *_same("tokenizer", "inputs", "processor", "images", "generation_len", "stream", "prompt_to_adapter_mapping"),
    Keyword(name="streamer", treatment="here", note="one prompt at a time"),
    Keyword(
        name="prompts",
        treatment="here",
        note="fewer than the batch are repeated, as there; of an incomplete batch none is dropped",
    ),
    Keyword(name="prompt", treatment="here", note="as `prompts`"),
    Keyword(name="prompts_txt_file_path", treatment="here", note="a prompt on each line"),
    Keyword(
        name="device_id", treatment="here", to="device_ids", note="an option of the runtime, where the backend has it"
    ),
    Keyword(name="device_ids", treatment="here", note="as `device_id`"),
    Keyword(
        name="sampling_params", treatment="here", note="settings of the sampler, the same for all prompts; see below"
    ),
    Keyword(name="automation", treatment="here", note="prints prompts and texts"),
    Keyword(name="iteration", treatment="no effect", note="`qeff bench` measures", harmless=(1,)),
    Keyword(name="is_tlm", treatment="no effect", note="the program knows it"),
    Keyword(name="include_sampler", treatment="no effect", note="the program knows it"),
    Keyword(name="include_guided_decoding", treatment="no effect", note="the program knows it"),
    Keyword(
        name="return_pdfs",
        treatment="no effect",
        note="the program knows it; `QAICInferenceSession.run` returns `probs`",
    ),
    Keyword(name="comp_ctx_lengths_prefill", treatment="no effect", note="the program knows them"),
    Keyword(name="comp_ctx_lengths_decode", treatment="no effect", note="the program knows them"),
    Keyword(name="enable_debug_logs", treatment="no effect", note="`qeff doctor`, and logging of the backend"),
    Keyword(
        name="runtime_ai100", treatment="here", note="`False` is refused: call `model.model(...)`, the torch module"
    ),
    Keyword(name="write_io", treatment="refused", note="`qeff compare` shows tensors layer by layer"),
    Keyword(name="write_io_dir", treatment="refused", note="`qeff compare` shows tensors layer by layer"),
    Keyword(
        name="prompt_to_lora_id_mapping", treatment="refused", note="name the adapters: prompt_to_adapter_mapping=[...]"
    ),
)

#: Entries of ``sampling_params``: the setting that each is, or "" for one that is not passed on.
SAMPLING_PARAMS: Mapping[str, str] = {
    "repetition_penalties": "repetition_penalty",
    "presence_penalties": "presence_penalty",
    "frequency_penalties": "frequency_penalty",
    "temperatures": "temperature",
    "top_ks": "top_k",
    "top_ps": "top_p",
    "min_ps": "min_p",
    "random_numbers": "",
    "token_bitmasks": "suppress_tokens",
}
#: Values of entries of ``sampling_params`` that ask for nothing.
NEUTRAL: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_k": -1,
    "top_p": 1.0,
    "min_p": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class Name:
    """A name of QEfficient and what it is here."""

    name: str
    instead: str
    note: str = ""


#: Names that scripts import, in the order of the page.
NAMES: tuple[Name, ...] = (
    Name(
        name="QEFFAutoModel",
        instead="QEFFAutoModelForFeatureExtraction",
        note="a dict with `output`; without pooling `[N, S, H]`",
    ),
    Name(name="QEFFAutoModelForCausalLM", instead="QEFFAutoModelForCausalLM", note="`CloudAI100ExecInfo`"),
    Name(
        name="QEFFAutoModelForSequenceClassification",
        instead="QEFFAutoModelForSequenceClassification",
        note="a dict with `logits`, a torch tensor",
    ),
    Name(
        name="QEFFAutoModelForImageTextToText",
        instead="QEFFAutoModelForImageTextToText",
        note="`CloudAI100ExecInfoNew`",
    ),
    Name(name="QEFFAutoModelForSpeechSeq2Seq", instead="QEFFAutoModelForSpeechSeq2Seq", note="`CloudAI100ExecInfoNew`"),
    Name(name="QEFFAutoModelForCTC", instead="QEFFAutoModelForCTC", note="the text of each clip"),
    Name(
        name="QEffAutoPeftModelForCausalLM",
        instead="QEFFAutoPeftModelForCausalLM",
        note="also as `QEFFAutoPeftModelForCausalLM`; token ids `[N, max_new_tokens]`, filled with zeros",
    ),
    Name(
        name="peft.lora.QEffAutoLoraModelForCausalLM",
        instead="QEFFAutoPeftModelForCausalLM",
        note="`load_adapter`, `unload_adapter`, `prompt_to_adapter_mapping`; `compile(max_loras=4)` leaves room for later ones",
    ),
    Name(name="QEFFCommonLoader", instead="QEFFAutoModel", note="the class follows from the checkpoint"),
    Name(name="export", instead="QEFFAutoModelForCausalLM.export", note="returns the folder and the path of the graph"),
    Name(
        name="compile",
        instead="QEFFAutoModelForCausalLM.compile",
        note="of a graph that `export` has made on this machine",
    ),
    Name(name="cloud_ai_100_exec_kv", instead="load_compiled(...).generate"),
    Name(
        name="transform",
        instead="QEFFAutoModelForCausalLM(module)",
        note="transforms belong to backends and run when compiling",
    ),
    Name(
        name="generation.cloud_infer.QAICInferenceSession",
        instead="load_compiled(...).session",
        note="states are written as inputs and read as outputs; an artifact of several programs is refused",
    ),
    Name(
        name="generation.text_generation_inference",
        instead="load_compiled(...).generate",
        note="results, prompts and files of prompts",
    ),
    Name(
        name="utils",
        instead="",
        note="the helpers that scripts import: tokenizers, processors, downloads, `create_and_dump_qconfigs`",
    ),
    Name(
        name="utils.constants.QnnConstants",
        instead="qnn_backend.constants.QnnConstants",
        note="needs the package of backend `qnn`",
    ),
    Name(name="cloud.infer", instead="qeff generate", note="`python -m QEfficient.cloud.infer`"),
    Name(name="cloud.export", instead="qeff export"),
    Name(name="cloud.compile", instead="qeff compile"),
    Name(name="cloud.execute", instead="qeff generate DIRECTORY"),
    Name(
        name="cloud.finetune",
        instead="",
        note="refused: train with `transformers` and `peft`, and give the folder of the adapter",
    ),
    Name(
        name="QEffFluxPipeline",
        instead="QEFFDiffusionPipeline",
        note="also as `QEFFFluxPipeline`; a call compiles for its sizes, and takes `custom_config_path` and `parallel_compile`",
    ),
    Name(name="QEffWanPipeline", instead="QEFFDiffusionPipeline", note="videos stand in `images`, as there"),
    Name(name="QEffWanImageToVideoPipeline", instead="QEFFDiffusionPipeline", note="likewise"),
    Name(
        name="diffusers",
        instead="",
        note="the pipelines by the same names; modules of a pipeline are no objects of their own, and load adapters with "
        "`QEFFDiffusionPipeline.load_lora_weights`",
    ),
)
