"""From a classifier's logits to scores between 0 and 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def class_scores(logits: NDArray[Any], problem_type: str | None) -> NDArray[Any]:
    """Scores of ``logits [..., labels]``, by the rule of Transformers' text-classification pipeline.

    A ``"regression"`` keeps its values. Labels that do not exclude each other (``"multi_label_classification"``, or a single
    one) go through a sigmoid, all others through a softmax.
    """
    if problem_type == "regression":
        return logits
    if problem_type == "multi_label_classification" or logits.shape[-1] == 1:
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def ranking_scores(logits: NDArray[Any], problem_type: str | None, activation: str | None) -> NDArray[Any]:
    """Scores ``[N]`` of pairs from ``logits [N, 1]``, as sentence-transformers' CrossEncoder gives them.

    `activation`: the class of torch that the checkpoint names; `None`: the rule of `class_scores`.

    Raises:
        InputError: it is a class that is not computed here.
    """
    if activation is None:
        return np.asarray(class_scores(logits, problem_type)[:, 0])
    if activation not in _ACTIVATIONS:
        raise InputError(
            f"the checkpoint ranks by the activation {activation} of torch, and those computed here are "
            f"{', '.join(_ACTIVATIONS)}; take the logits (/v1/classify, or generate in Python)"
        )
    return np.asarray(class_scores(logits, _ACTIVATIONS[activation])[:, 0])


_ACTIVATIONS = {"Identity": "regression", "Sigmoid": "multi_label_classification"}
