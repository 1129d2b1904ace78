"""`QEFFAutoModel`: the class that picks the task class."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from qeff_framework.auto.dispatch import PIPELINES, is_pipeline, task_of, task_of_checkpoint
from qeff_framework.errors import OptionError
from qeff_framework.sources import CheckpointSource, ModuleSource
from qeff_framework.tasks import task_spec, task_specs

if TYPE_CHECKING:
    import torch

    from qeff_framework.contracts import Task
    from qeff_framework.model import QEFFBaseModel


class QEFFAutoModel:
    """Builds the class that fits a checkpoint or a module: a causal LM continues a text, an encoder-decoder turns one into
    another, an encoder returns embeddings, a classifier scores texts or tokens, and another one finds answers. A checkpoint for
    images and text, such as Gemma 3, becomes a vision-language model; `QEFFAutoModelForCausalLM` takes its text model alone.

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
        return task_spec(task_of(source, config)).model_class(model, **kwargs)

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | os.PathLike[str], **hf_kwargs: Any) -> QEFFBaseModel:
        """Takes a checkpoint; see `QEFFBaseModel.from_pretrained`."""
        return model_of_checkpoint(pretrained_model_name_or_path, hf_kwargs)


def model_of_checkpoint(
    place: str | os.PathLike[str], hf_kwargs: dict[str, Any], *, prefer: Task | None = None
) -> QEFFBaseModel:
    """`QEFFAutoModel.from_pretrained`. A checkpoint that is for several tasks is taken for `prefer` if that is one of them."""
    if is_pipeline(place):
        return task_spec(PIPELINES).model_class.from_pretrained(place, **hf_kwargs)
    names = {name for spec in task_specs() for name in spec.model_options}
    options = {name: hf_kwargs.pop(name) for name in names & hf_kwargs.keys()}
    source = CheckpointSource(place, hf_kwargs)
    spec = task_spec(task_of_checkpoint(source, prefer))
    for name in options:
        if name not in spec.model_options:
            owners = " and ".join(other.models for other in task_specs() if name in other.model_options)
            raise OptionError(f"{name}= is for {owners}, and {source.name} is a model for {spec.name}; leave it out")
    # The same source: a hub's revision may stand for another commit when it is asked again.
    return spec.model_class(source, **options)
