"""Where a model comes from: a checkpoint (local folder, hub id, GGUF file) or a torch module in memory.

A source knows its identity, which goes into cache keys, without loading the weights. Weights are loaded when an export
needs them, so that a second run with a finished artifact imports neither torch nor transformers.
"""

from qeff_framework.sources.base import ModelSource
from qeff_framework.sources.checkpoint import CheckpointSource
from qeff_framework.sources.module import ModuleSource
from qeff_framework.sources.pooling import pooling_identity

__all__ = ["CheckpointSource", "ModelSource", "ModuleSource", "pooling_identity"]
