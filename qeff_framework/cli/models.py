"""The model that a command line names."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import OptionError
from qeff_framework.rare_collections import rare_collections

if TYPE_CHECKING:
    from qeff_framework.contracts import Task
    from qeff_framework.model import QEFFBaseModel


# It imports torch and Transformers, half a million objects that stay: the collector of cycles takes an eighth of that.
@rare_collections()
def open_model(args: argparse.Namespace, *, prefer: Task | None = None) -> QEFFBaseModel:
    """The model of `arguments.add_model`. Its weights are not loaded.

    A checkpoint that is for several tasks is opened for `prefer` if that is one of them, unless the user has chosen.
    """
    from qeff_framework.auto.model import model_of_checkpoint
    from qeff_framework.tasks import task_spec

    given: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("gguf_file", "revision", "trust_remote_code", "keep_quantized", "adapter")
        if getattr(args, name)
    }
    if args.no_safety_checker:
        given["safety_checker"] = None
    task = args.task
    if args.pooling is not None:
        if task not in ("auto", "encoder"):
            raise OptionError("--pooling is for encoders; leave it out, or choose --task encoder")
        # Whoever asks for a pooling has an encoder in mind; its class says so if the checkpoint is none.
        task = "encoder"
        given["pooling"] = None if args.pooling == "none" else args.pooling
    if args.kv_offload is not None:
        if task != "auto" and "kv_offload" not in task_spec(task).model_options:
            raise OptionError(
                f"--kv-offload and --no-kv-offload are for vision-language models, and --task is {task}; leave one out"
            )
        given["kv_offload"] = args.kv_offload
    if task == "auto":
        return model_of_checkpoint(args.model, given, prefer=prefer)
    return task_spec(task).model_class.from_pretrained(args.model, **given)
