"""Decoders that are embedding models: a sentence-transformers folder around a causal language model."""

from __future__ import annotations

import contextlib

from qeff_framework.errors import CheckpointError
from qeff_framework.sources import ModelSource


def is_embedding_checkpoint(source: ModelSource) -> bool:
    """Whether sentence-transformers has written the checkpoint.

    Where the hub cannot be asked, a checkpoint with a head for text is taken for what its head says.
    """
    with contextlib.suppress(CheckpointError):
        return source.sentence_transformers() is not None
    return False
