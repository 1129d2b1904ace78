"""Which task a checkpoint is for, read from its config and Transformers' own mappings; no list of names of ours."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from qeff_framework.artifacts import store_root
from qeff_framework.auto.embedding_checkpoints import is_embedding_checkpoint
from qeff_framework.contracts import Task
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.sources import ModelSource

_CLASS_OF_TASK: Mapping[Task, str] = {
    "causal-lm": "QEFFAutoModelForCausalLM",
    "encoder": "QEFFAutoModelForFeatureExtraction",
    "sequence-classification": "QEFFAutoModelForSequenceClassification",
    "token-classification": "QEFFAutoModelForTokenClassification",
    "question-answering": "QEFFAutoModelForQuestionAnswering",
    "seq2seq-lm": "QEFFAutoModelForSeq2SeqLM",
}


def task_of(config: Mapping[str, Any]) -> Task:
    """The task of a checkpoint.

    The head that the checkpoint was saved with decides (``architectures``). A config without it is taken for a causal
    LM if Transformers has a causal-LM class, and no masked-LM class, for its model type: encoders such as BERT have
    both. An encoder-decoder is one in its config (``is_encoder_decoder``).

    Raises:
        UnsupportedModelError: its head is that of no task.
    """
    return _remembered(config) or _remember(config, _decide(config))


def check_task(source: ModelSource, task: Task) -> None:
    """Raises `UnsupportedModelError` when a checkpoint is for another task."""
    actual = task_of(source.config())
    if task == "encoder" and actual == "causal-lm" and is_embedding_checkpoint(source):
        return
    if actual != task:
        raise UnsupportedModelError(
            f"{source.name} ({_told(source.config())}) is not a model for {task} but for {actual}; use "
            f"{_CLASS_OF_TASK[actual]}, or QEFFAutoModel, which picks the class by itself"
        )


def _decide(config: Mapping[str, Any]) -> Task:
    # Transformers takes seconds to import; `_remembered` spares that for a checkpoint that was seen before.
    from transformers.models.auto import modeling_auto as auto

    model_type = str(config.get("model_type", ""))
    if model_type not in auto.MODEL_MAPPING_NAMES and "auto_map" not in config:
        raise UnsupportedModelError(
            f"the installed Transformers does not know model_type '{model_type}'; upgrade it, or pass trust_remote_code=True "
            "if the checkpoint brings its own code"
        )
    architectures = tuple(config.get("architectures") or ())
    if config.get("is_encoder_decoder"):
        seq2seq = auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        if any(name in _names(seq2seq) for name in architectures) or (not architectures and model_type in seq2seq):
            return "seq2seq-lm"
        raise UnsupportedModelError(
            f"{_told(config)} is an encoder-decoder model without a text head, or one whose input is no text; of the "
            "encoder-decoder models the tasks of this version carry those of AutoModelForSeq2SeqLM that read text"
        )
    causal = _names(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if architectures:
        if any(name in causal or name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
            return "causal-lm"
        heads: tuple[tuple[Task, Mapping[str, Any]], ...] = (
            ("sequence-classification", auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
            ("token-classification", auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
            ("question-answering", auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
        )
        for task, mapping in heads:
            if any(name in _names(mapping) for name in architectures):
                return task
        other = _names(auto.MODEL_MAPPING_NAMES) | _names(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
        pretraining = _names(auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES)
        if any(name in other | pretraining for name in architectures):
            return "encoder"
        raise UnsupportedModelError(
            f"{_told(config)} is none of those that the tasks of this version carry: a causal or encoder-decoder language "
            "model, a text encoder, a classifier of texts or tokens, a model for question answering"
        )
    if (
        model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    ):
        return "causal-lm"
    return "encoder"


def _names(mapping: Mapping[str, Any]) -> set[str]:
    """Class names of a Transformers auto mapping, whose values are names or tuples of names."""
    return {name for value in mapping.values() for name in ([value] if isinstance(value, str) else value)}


def _told(config: Mapping[str, Any]) -> str:
    return ", ".join(config.get("architectures") or ()) or f"model_type '{config.get('model_type')}'"


def _memo_key(config: Mapping[str, Any]) -> str:
    import importlib_metadata

    asked = {name: config.get(name) for name in ("model_type", "architectures", "is_encoder_decoder", "auto_map")}
    asked["transformers"] = importlib_metadata.version("transformers")
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _remembered(config: Mapping[str, Any]) -> Task | None:
    with contextlib.suppress(OSError, ValueError):
        task: Task = json.loads((store_root() / "tasks" / f"{_memo_key(config)}.json").read_text(encoding="utf-8"))
        return task if task in _CLASS_OF_TASK else None
    return None


def _remember(config: Mapping[str, Any], task: Task) -> Task:
    # A memo only: where it cannot be written, the next run decides again, and the store says what is wrong with its
    # root.
    with contextlib.suppress(OSError):
        folder = store_root() / "tasks"
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{_memo_key(config)}.{os.getpid()}"
        draft.write_text(json.dumps(task), encoding="utf-8")
        draft.replace(folder / f"{_memo_key(config)}.json")
    return task
