"""The table of tasks. A new task is one file here and one line in `_TASKS`; everything else looks it up.

Only names stand in the table, so that looking at it imports nothing heavy.
"""

from __future__ import annotations

import difflib

from qeff_framework.errors import OptionError
from qeff_framework.tasks import (
    audio_classification,
    causal_lm,
    ctc,
    encoder,
    image_classification,
    image_text_to_text,
    question_answering,
    seq2seq_lm,
    sequence_classification,
    speech_seq2seq,
    text_to_image,
    token_classification,
    zero_shot_image_classification,
)
from qeff_framework.tasks.spec import TaskSpec

_TASKS: tuple[TaskSpec, ...] = (
    causal_lm.SPEC,
    encoder.SPEC,
    sequence_classification.SPEC,
    token_classification.SPEC,
    question_answering.SPEC,
    seq2seq_lm.SPEC,
    image_text_to_text.SPEC,
    speech_seq2seq.SPEC,
    ctc.SPEC,
    audio_classification.SPEC,
    image_classification.SPEC,
    zero_shot_image_classification.SPEC,
    text_to_image.SPEC,
)


def task_specs() -> tuple[TaskSpec, ...]:
    """All tasks of this version, in the order in which a checkpoint is tried for them."""
    return _TASKS


def task_names() -> list[str]:
    """The tasks of this version."""
    return [spec.name for spec in _TASKS]


def task_spec(name: str) -> TaskSpec:
    """What is known about a task. Raises `OptionError` for a name that no task of this version has."""
    for spec in _TASKS:
        if spec.name == name:
            return spec
    near = difflib.get_close_matches(name, task_names(), n=1)
    suggestion = f"did you mean '{near[0]}'?" if near else f"the tasks of this version are {', '.join(task_names())}"
    raise OptionError(f"there is no task '{name}'; {suggestion}")


__all__ = ["TaskSpec", "task_names", "task_spec", "task_specs"]
