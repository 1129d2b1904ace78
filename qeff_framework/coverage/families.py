"""Which model types there are: read from Transformers' own tables of tasks."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from qeff_framework.errors import OptionError
from qeff_framework.tasks import task_spec, task_specs

if TYPE_CHECKING:
    from qeff_framework.coverage.task_coverage import TaskCoverage

#: Decoders that differ in structure, by what each one has: quick enough to be checked with every change and version.
KINDS: Final[Mapping[str, str]] = {
    "convolution states": "lfm2",
    "state space": "mamba",
    "linear attention": "qwen3_next",
    "latent attention": "deepseek_v3",
    "alibi": "bloom",
    "parallel blocks": "falcon",
    "one key head": "gpt_bigcode",
    "encoder as decoder": "bert",
    "windows": "gemma3_text",
    "sinks and experts": "gpt_oss",
    "partial rotation": "gptj",
    "learned positions": "opt",
    "positions by place": "bart",
    "attention of its own": "git",
}

#: Families of the fuzz command unless others are named: those of `KINDS`, widely used ones, and encoder-decoders.
FUZZED: Final = (
    *KINDS.values(),
    *("llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "mixtral", "gemma2", "phi3", "gpt2", "gpt_neox", "olmo2"),
    *("granite", "cohere2", "starcoder2"),
    *("t5", "seq2seq-lm:bart", "seq2seq-lm:marian"),
)

# Text encoders that Transformers lists under no task by which encoders could be told from decoders.
_UNLISTED_ENCODERS: Final = ("embedding_gemma2", "embedding_gemma2_text", "openai_privacy_filter", "bros")


def covered_tasks() -> list[str]:
    """The tasks whose model types are checked."""
    return [spec.name for spec in task_specs() if spec.coverage_path]


def coverage_of(task: str) -> TaskCoverage:
    """How the model types of a task are checked. Raises `OptionError` for a task without coverage."""
    coverage = task_spec(task).coverage
    if coverage is None:
        raise OptionError(f"the model types of {task} are not checked; choose one of {', '.join(covered_tasks())}")
    return coverage


def types_of(task: str) -> list[str]:
    """Every model type of one of `covered_tasks`."""
    return coverage_of(task).types()


def causal_lm_types() -> list[str]:
    """Every type of Transformers' causal-LM mapping."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def encoder_types() -> list[str]:
    """Every type that has a masked-LM, question-answering or text-encoding model, without decoders and encoder-decoders."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as tables

    masked = tables.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    others = {**tables.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, **tables.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES}
    candidates = [*masked, *(name for name in others if name not in masked and not _is_decoder(name))]
    candidates += [name for name in _UNLISTED_ENCODERS if name in CONFIG_MAPPING and name not in candidates]
    return [name for name in candidates if name in tables.MODEL_MAPPING_NAMES and not _is_encoder_decoder(name)]


def seq2seq_lm_types() -> list[str]:
    """The encoder-decoders of Transformers' mapping for text from text; it also lists decoders that read speech."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

    return [name for name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES if _is_encoder_decoder(name)]


def _is_decoder(model_type: str) -> bool:
    from transformers.models.auto import modeling_auto as tables

    return model_type in tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _is_encoder_decoder(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    fields = dataclasses.fields(CONFIG_MAPPING[model_type])
    return any(field.name == "is_encoder_decoder" and field.default is True for field in fields)


def chosen_types(task: str, names: Sequence[str]) -> list[str]:
    """The named types, each once, or all of the task if none is named.

    Raises:
        OptionError: the installed Transformers has no such type for this task; lists all of them, with near matches.
    """
    known = types_of(task)
    unknown = [name for name in names if name not in known]
    if unknown:
        import importlib_metadata

        library = coverage_of(task).library
        told = "; ".join(_unknown(name, task, known) for name in unknown)
        version = importlib_metadata.version(library)
        raise OptionError(f"{library.capitalize()} {version} has no {task} model of these types: {told}")
    is_built = coverage_of(task).is_built
    if not_built := [name for name in names if not is_built(name)]:
        raise OptionError(
            f"there is no tiny {task} model of {', '.join(not_built)} to check; choose among "
            f"{', '.join(name for name in known if is_built(name))}"
        )
    return list(dict.fromkeys(names)) or [name for name in known if is_built(name)]


def _unknown(name: str, task: str, known: Sequence[str]) -> str:
    other = next((other for other in covered_tasks() if other != task and name in types_of(other)), None)
    if other is not None:
        return f"{name!r} (use --task {other})"
    near = difflib.get_close_matches(name, known, n=3)
    return f"{name!r} (did you mean {', '.join(near)}?)" if near else f"{name!r}"
