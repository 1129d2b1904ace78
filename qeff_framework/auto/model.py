"""`QEFFAutoModel`: the class that picks the task class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qeff_framework.auto.causal_lm import QEFFAutoModelForCausalLM
from qeff_framework.auto.dispatch import task_of
from qeff_framework.auto.embedding_checkpoints import is_embedding_checkpoint
from qeff_framework.auto.feature_extraction import QEFFAutoModelForFeatureExtraction
from qeff_framework.auto.question_answering import QEFFAutoModelForQuestionAnswering
from qeff_framework.auto.seq2seq_lm import QEFFAutoModelForSeq2SeqLM
from qeff_framework.auto.sequence_classification import QEFFAutoModelForSequenceClassification
from qeff_framework.auto.token_classification import QEFFAutoModelForTokenClassification
from qeff_framework.errors import OptionError
from qeff_framework.sources import CheckpointSource, ModuleSource

if TYPE_CHECKING:
    import torch

    from qeff_framework.contracts import Task
    from qeff_framework.model import QEFFBaseModel

CLASSES: Mapping[Task, type[QEFFBaseModel]] = {
    model_class.task: model_class
    for model_class in (
        QEFFAutoModelForCausalLM,
        QEFFAutoModelForFeatureExtraction,
        QEFFAutoModelForSequenceClassification,
        QEFFAutoModelForTokenClassification,
        QEFFAutoModelForQuestionAnswering,
        QEFFAutoModelForSeq2SeqLM,
    )
}


class QEFFAutoModel:
    """Builds the class that fits a checkpoint or a module: a causal LM continues a text, an encoder-decoder turns one into
    another, an encoder returns embeddings, a classifier scores texts or tokens, and another one finds answers.

    Example::

        model = QEFFAutoModel.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
        model.compile(num_cores=16)
        embeddings = model.generate(tokenizer(["one text", "another"], padding=True, return_tensors="np"))
    """

    def __new__(cls, model: torch.nn.Module, **kwargs: Any) -> QEFFBaseModel:  # type: ignore[misc]
        """Wraps a Transformers module; keyword arguments go to the task's class."""
        source = ModuleSource(model)
        # A module says more than its config: its own class is the head that it has.
        config = {**source.config(), "architectures": [type(model).__name__]}
        return CLASSES[task_of(source, config)](model, **kwargs)

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | os.PathLike[str], **hf_kwargs: Any) -> QEFFBaseModel:
        """Takes a checkpoint; see `QEFFBaseModel.from_pretrained`."""
        pooling = {"pooling": hf_kwargs.pop("pooling")} if "pooling" in hf_kwargs else {}
        source = CheckpointSource(pretrained_model_name_or_path, hf_kwargs)
        task = task_of(source)
        if task == "causal-lm" and is_embedding_checkpoint(source):
            task = "encoder"
        if pooling and task != "encoder":
            raise OptionError(f"pooling= is for text encoders, and {source.name} is a model for {task}; leave it out")
        # The same source: a hub's revision may stand for another commit when it is asked again.
        return CLASSES[task](source, **pooling)
