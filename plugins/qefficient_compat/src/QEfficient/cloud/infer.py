"""``python -m QEfficient.cloud.infer``: export, compile and generate in one command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from qeff_framework.plugin_api import InputError
from QEfficient._compat.commands import Command, run
from QEfficient._compat.models import QEFFAutoModelForImageTextToText, QEFFCommonLoader
from QEfficient._compat.prompts import get_input_prompts
from QEfficient.utils import check_and_assign_cache_dir, load_hf_processor, load_hf_tokenizer


def main(
    model_name: str,
    num_cores: int,
    device_group: Sequence[int] | None = None,
    prompt: str | Sequence[str] | None = None,
    prompts_txt_file_path: str | None = None,
    aic_enable_depth_first: bool = False,
    mos: int = 1,
    batch_size: int = 1,
    full_batch_size: int | None = None,
    prompt_len: int = 32,
    ctx_len: int = 128,
    generation_len: int | None = None,
    mxfp6: bool = False,
    mxint8: bool = False,
    local_model_dir: str | None = None,
    cache_dir: str | None = None,
    hf_token: str | None = None,
    allow_mxint8_mdp_io: bool = False,
    enable_qnn: bool = False,
    qnn_config: str | None = None,
    trust_remote_code: bool = False,
    image_path: str | None = None,
    image_url: str | None = None,
    **compiler_options: Any,
) -> None:
    """Exports and compiles where that was not done yet, and prints what the model says to the prompts."""
    prompts = get_input_prompts(prompt, prompts_txt_file_path)
    cache_dir = check_and_assign_cache_dir(local_model_dir, cache_dir)
    fetching: dict[str, Any] = {"cache_dir": cache_dir} if cache_dir is not None else {}
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code} if trust_remote_code else {}
    model: Any = QEFFCommonLoader.from_pretrained(
        model_name,
        hf_token=hf_token,
        full_batch_size=full_batch_size,
        local_model_dir=local_model_dir,
        **fetching,
        **trust,
    )
    model.compile(
        prefill_seq_len=prompt_len,
        ctx_len=ctx_len,
        num_cores=num_cores,
        mxfp6_matmul=mxfp6,
        mxint8_kv_cache=mxint8,
        aic_enable_depth_first=aic_enable_depth_first,
        batch_size=batch_size,
        mos=mos,
        device_group=device_group,
        full_batch_size=full_batch_size,
        allow_mxint8_mdp_io=allow_mxint8_mdp_io,
        enable_qnn=enable_qnn,
        qnn_config=qnn_config,
        **compiler_options,
    )
    place = local_model_dir or model_name
    if isinstance(model, QEFFAutoModelForImageTextToText):
        image = image_path or image_url
        if image is None:
            raise InputError("the model reads images; give --image_path or --image_url")
        processor = load_hf_processor(place, cache_dir, hf_token, **trust)
        print(
            model.generate(
                processor=processor,
                images=[image],
                prompts=prompts[:1],
                device_ids=device_group,
                generation_len=generation_len,
                stream=True,
            )
        )
    elif image_path or image_url:
        raise InputError(f"{place} reads no images; leave --image_path and --image_url out")
    else:
        tokenizer = load_hf_tokenizer(place, cache_dir, hf_token, **trust)
        print(model.generate(tokenizer, prompts, device_group, generation_len=generation_len))


def command(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = Command(prog="python -m QEfficient.cloud.infer", description="Exports, compiles and generates text.")
    parser.loading(trust=True)
    parser.compiling()
    parser.prompting()
    parser.flag("image_path", help="an image for the prompt")
    parser.flag("image_url", help="address of an image for the prompt")
    values = parser.parsed(arguments, options=True)
    return run(lambda: main(**values))


if __name__ == "__main__":
    sys.exit(command())
