"""The draft model of ``--draft``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import compile_texts
from qeff_framework.cli.programs import artifact_at
from qeff_framework.errors import OptionError
from qeff_framework.tasks import task_spec

if TYPE_CHECKING:
    from qeff_framework.auto import QEFFAutoModelForCausalLM
    from qeff_framework.contracts import CompiledModel
    from qeff_framework.runtime import CompiledRunner

_REMEDY = "compile the program with -O num_speculative_tokens=4, or another number of tokens that a step checks"


def add_draft(group: Any) -> None:
    """The option that `check_draft` and `opened_draft` read."""
    group.add_argument(
        "--draft",
        metavar="MODEL|ARTIFACT",
        help="the same text in fewer steps: a smaller model of the same tokenizer proposes tokens (needs -O "
        "num_speculative_tokens=N); a model is compiled for the program's backend and sizes",
    )


def check_draft(args: argparse.Namespace) -> None:
    """Raises `OptionError` or `CheckpointError` where drafts cannot work, before a model is compiled for them."""
    if args.draft is None:
        return
    if getattr(args, "prompt_lookup_num_tokens", None) is not None:
        raise OptionError("--draft and --prompt-lookup-num-tokens both propose tokens; give one of the two")
    if artifact_at(Path(args.model)) is None and "num_speculative_tokens" not in compile_texts(args):
        raise OptionError(f"--draft {args.draft}: {_REMEDY}")
    if artifact_at(Path(args.draft)) is None:
        _draft_model(args)


def _draft_model(args: argparse.Namespace) -> QEFFAutoModelForCausalLM:
    from qeff_framework.auto import QEFFAutoModelForCausalLM

    return QEFFAutoModelForCausalLM.from_pretrained(args.draft)


@contextmanager
def opened_draft(args: argparse.Namespace, compiled: CompiledModel) -> Iterator[CompiledRunner | None]:
    """The loaded draft model for a compiled program, or `None`; a model is compiled first, for the same backend.

    Raises:
        OptionError: the program is not for text generation from texts, or checks no drafts.
    """
    if args.draft is None:
        yield None
        return
    from qeff_framework.generation.program_shape import ProgramShape
    from qeff_framework.runtime import load_compiled

    spec = task_spec(compiled.task)
    if not spec.generates_text or spec.reads_images or spec.reads_audio or spec.is_encoder_decoder:
        raise OptionError(f"the program is for {compiled.task}: --draft is for causal language models; leave it out")
    shape = ProgramShape.of(compiled)
    if shape.decodes[-1].width < 2:
        raise OptionError(f"--draft {args.draft}: the program returns the logits of one token per step; {_REMEDY}")
    draft = artifact_at(Path(args.draft))
    if draft is None:
        draft = _draft_model(args).compile(
            compiled.backend,
            extensions=args.extension,
            batch_size=shape.batch_size,
            ctx_len=shape.ctx_len,
            prefill_seq_len=shape.prefill_seq_len,
            num_speculative_tokens=0,
        )
    with load_compiled(draft.directory, verify=args.verify, extensions=args.extension) as runner:
        yield runner
