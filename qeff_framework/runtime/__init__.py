"""Running a compiled artifact. Neither torch nor transformers is imported, and the checkpoint is not needed.

>>> from qeff_framework import load_compiled
>>> with load_compiled(artifact_directory) as model:
...     print(model.generate(prompts=["My name is"]).generated_texts)
"""

from __future__ import annotations

from qeff_framework.runtime.answers import CompiledQuestionAnswering
from qeff_framework.runtime.classifiers import CompiledClassifier, CompiledTokenClassifier
from qeff_framework.runtime.embeddings import CompiledEncoder
from qeff_framework.runtime.loading import load_compiled
from qeff_framework.runtime.runner import CompiledRunner
from qeff_framework.runtime.text_generation import CompiledCausalLM, CompiledSeq2SeqLM, generation_defaults

__all__ = [
    "CompiledCausalLM",
    "CompiledClassifier",
    "CompiledEncoder",
    "CompiledQuestionAnswering",
    "CompiledRunner",
    "CompiledSeq2SeqLM",
    "CompiledTokenClassifier",
    "generation_defaults",
    "load_compiled",
]
