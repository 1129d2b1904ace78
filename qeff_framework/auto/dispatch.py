"""Which task of the table a checkpoint is for, read from its config, Transformers' own mappings and what its classes say about
themselves; no list of model names of ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qeff_framework.artifacts import store_root
from qeff_framework.auto.embedding_checkpoints import is_embedding_checkpoint
from qeff_framework.contracts import Task
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.rare_collections import rare_collections
from qeff_framework.sources import ModelSource
from qeff_framework.sources.code_digests import core_digest
from qeff_framework.sources.files import PIPELINE_INDEX
from qeff_framework.sources.remote_code import references, refuse_untrusted
from qeff_framework.tasks import task_names, task_spec, task_specs

#: Mappings of Transformers whose models work on text. A model of several inputs that is in another one is no text encoder.
_TEXT_MAPPINGS = frozenset(
    {
        *("CAUSAL_LM", "MASKED_LM", "PRETRAINING", "SEQ_TO_SEQ_CAUSAL_LM", "TEXT_ENCODING"),
        *("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "TABLE_QUESTION_ANSWERING"),
        *("MULTIPLE_CHOICE", "NEXT_SENTENCE_PREDICTION"),
    }
)


#: The task of a folder that diffusers has saved.
PIPELINES = "text-to-image"


def is_pipeline(place: str | os.PathLike[str]) -> bool:
    """Whether `place` is a folder of a pipeline. One on the hub is found with its task's own class."""
    return os.path.isfile(os.path.join(place, PIPELINE_INDEX))  # noqa: PTH113, PTH118 - it may be the id of a hub


@dataclass(frozen=True, kw_only=True)
class _Decision:
    """What a config was found to be."""

    #: The tasks that its head is for, the first of them by default.
    tasks: tuple[Task, ...]
    #: The installed Transformers lacks a class that the checkpoint brings along.
    needs_own_code: bool


def task_of(source: ModelSource, config: Mapping[str, Any] | None = None) -> Task:
    """The task of a checkpoint or a module, the first of `tasks_of`; `config` in place of its own."""
    return tasks_of(source, config)[0]


def tasks_of(source: ModelSource, config: Mapping[str, Any] | None = None) -> tuple[Task, ...]:
    """The tasks of a checkpoint or a module, the first by default; `config` in place of its own.

    The head that the checkpoint was saved with decides (``architectures``). A config without it is taken for a causal
    LM if Transformers has a causal-LM class, and no masked-LM class, for its model type (encoders such as BERT have
    both), then for a vision-language model if it has such a class. An encoder-decoder is one in its config
    (``is_encoder_decoder``). A class that Transformers lists for text and for images (Gemma 3) is for both, images first.

    Raises:
        UnsupportedModelError: its head is that of no task, or it reads something else than text.
        CheckpointError: it needs code of its own, which was not trusted.
    """
    config = source.config() if config is None else config
    decision = _remembered(config) or _remember(config, _decide(config))
    if decision.needs_own_code and not source.trusted:
        refuse_untrusted(source.name, config)
    return decision.tasks


def task_of_checkpoint(source: ModelSource, prefer: Task | None = None) -> Task:
    """`task_of`, but what sentence-transformers has made an embedding model of is an encoder: a decoder, or half a model.

    Of several tasks it is `prefer` if that is one of them.
    """
    tasks = tasks_of(source)
    if "causal-lm" in tasks and is_embedding_checkpoint(source):
        return "encoder"
    # Last, since it imports Transformers.
    if "seq2seq-lm" in tasks and is_embedding_checkpoint(source) and has_encoder_alone(source.config()):
        return "encoder"
    return prefer if prefer in tasks else tasks[0]


def check_task(source: ModelSource, task: Task) -> None:
    """Raises what `task_of` raises, and `UnsupportedModelError` when a checkpoint is for another task.

    A language model that is an embedding model can be opened as either.
    """
    tasks = tasks_of(source)
    if task not in tasks and task_of_checkpoint(source) != task:
        raise UnsupportedModelError(
            f"{source.name} ({_told(source.config())}) is not a model for {task} but for {' and '.join(tasks)}; use "
            f"{task_spec(tasks[0]).model_class.__name__}, or QEFFAutoModel, which picks the class by itself"
        )


def has_encoder_alone(config: Mapping[str, Any]) -> bool:
    """Whether Transformers has a class for the encoder of an encoder-decoder of this type (``T5EncoderModel``)."""
    from transformers.models.auto import modeling_auto as auto

    model_type = str(config.get("model_type", ""))
    encoder, whole = (
        _names({"": mapping.get(model_type, ())})
        for mapping in (auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES, auto.MODEL_MAPPING_NAMES)
    )
    return bool(encoder - whole) and model_type in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES


# Transformers takes seconds to import; `_remembered` spares that for a checkpoint that was seen before.
@rare_collections()
def _decide(config: Mapping[str, Any]) -> _Decision:
    import transformers
    from transformers.models.auto import modeling_auto as auto

    model_type = str(config.get("model_type", ""))
    own = {auto_class: reference.rpartition(".")[2] for auto_class, reference in references(config)}
    if model_type not in transformers.CONFIG_MAPPING and "AutoConfig" not in own:
        raise UnsupportedModelError(
            f"the installed Transformers {transformers.__version__} does not know model_type '{model_type}', and the checkpoint "
            "brings no code of its own; upgrade Transformers, or check config.json"
        )
    spec = task_spec(_task(config, own))
    mapping = _mappings()[spec.transformers_mapping] if spec.transformers_mapping else auto.MODEL_MAPPING_NAMES
    needs_own_code = model_type not in transformers.CONFIG_MAPPING or (
        spec.model_class.transformers_class in own and model_type not in mapping
    )
    tasks: tuple[Task, ...] = (spec.name,)
    if spec.name == "causal-lm" and _is_for_images(config):
        tasks = ("image-text-to-text", spec.name)
    return _Decision(tasks=tasks, needs_own_code=needs_own_code)


def _is_of_both_halves(model_type: str) -> bool:
    """Whether a config of this type is that of an encoder-decoder where it does not state the opposite."""
    import transformers

    # Its get would not import the class.
    kind = transformers.CONFIG_MAPPING[model_type] if model_type in transformers.CONFIG_MAPPING else None  # noqa: SIM401
    return getattr(kind, "is_encoder_decoder", None) is True


def _is_for_images(config: Mapping[str, Any]) -> bool:
    """Whether a class for text is one for images as well, which it encodes behind Transformers' interface for that."""
    listed = _names(_mappings()["IMAGE_TEXT_TO_TEXT"])
    return any(
        name in listed and hasattr(_class(name), "get_image_features") for name in config.get("architectures") or ()
    )


def _task(config: Mapping[str, Any], own: Mapping[str, str]) -> Task:
    """`own`: classes of the checkpoint's own code, by the auto class that they stand for."""
    from transformers.models.auto import modeling_auto as auto

    model_type = str(config.get("model_type", ""))
    architectures = tuple(config.get("architectures") or ())
    for spec in task_specs():
        if own.get(spec.model_class.transformers_class) in architectures:
            return spec.name
    if has_encoder_alone(config) and not _names(
        {"": auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES[model_type]}
    ).isdisjoint(architectures):
        return "encoder"
    heads = [(spec, _mappings()[spec.transformers_mapping]) for spec in task_specs() if spec.transformers_mapping]
    both_halves = _is_of_both_halves(model_type)
    is_decoder = not _names(_mappings()["CAUSAL_LM"]).isdisjoint(architectures)
    if config.get("is_encoder_decoder", both_halves and not is_decoder):
        for spec, mapping in heads:
            listed = any(name in _names(mapping) for name in architectures)
            if spec.is_encoder_decoder and (listed or (not architectures and model_type in mapping)):
                return spec.name
            # The encoder alone, with another head.
            if spec.reads_audio and listed:
                return spec.name
        raise UnsupportedModelError(
            f"{_told(config)} is an encoder-decoder model without a text head, or one that reads neither text nor speech; of the "
            "encoder-decoder models the tasks of this version carry those of Transformers' mappings for text and for speech"
        )
    if both_halves and not _names(_mappings()["SEQ_TO_SEQ_CAUSAL_LM"]).isdisjoint(architectures):
        raise UnsupportedModelError(
            f"{_told(config)} is an encoder-decoder model, and its config.json states is_encoder_decoder=false; write true there"
        )
    if not architectures:
        if (
            model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
            and model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        ):
            return "causal-lm"
        if model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            return "image-text-to-text"
        _refuse_other_inputs(config, architectures)
        return "encoder"
    for spec, mapping in heads:
        if not spec.is_encoder_decoder and any(name in _names(mapping) for name in architectures):
            return spec.name
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return "causal-lm"
    _refuse_other_inputs(config, architectures)
    without_head = _names(auto.MODEL_MAPPING_NAMES) | _names(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    if any(name in without_head | _names(auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES) for name in architectures):
        return "encoder"
    raise UnsupportedModelError(
        f"{_told(config)}{_loaded_by(architectures)} is for none of the tasks: {_tasks_in_words()}"
    )


# --- what a model without a text head reads ---------------------------------------------------------------------------


def _refuse_other_inputs(config: Mapping[str, Any], architectures: Iterable[str]) -> None:
    """Raises `UnsupportedModelError` for what AutoModel loads and cannot embed text alone, such as models of images or sound."""
    from transformers.models.auto import modeling_auto as auto

    model_type = str(config.get("model_type", ""))
    name = next(iter(_names({model_type: auto.MODEL_MAPPING_NAMES.get(model_type, ())})), None)
    base = _class(name)
    if base is None:
        return
    told = f"{_told(config)}{_loaded_by(architectures)}"
    inputs = _inputs(base)
    if "text" not in inputs or "input_ids" not in inspect.signature(base.forward).parameters:
        raise UnsupportedModelError(f"{told} takes {_listed(inputs)} as input; {_tasks_in_words()}")
    generates = any(_generates(_class(architecture)) for architecture in architectures)
    if inputs != {"text"} and (generates or not _is_among_encoders(model_type, base)):
        raise UnsupportedModelError(f"{told} takes {_listed(inputs)} as input; {_tasks_in_words()}")
    if _generates(base) or not _returns_hidden_states(base):
        raise UnsupportedModelError(f"{told} returns no hidden states of a text; {_tasks_in_words()}")


def _inputs(model_class: Any) -> set[str]:
    """What a class of Transformers reads: ``text``, ``image``, ``audio``, ... in its own words."""
    stated = model_class.input_modalities
    inputs = {stated} if isinstance(stated, str) else set(stated)
    # "text" is the default, which some classes that read something else leave as it is.
    main = model_class.main_input_name
    return inputs if main == "input_ids" or inputs != {"text"} else {str(main)}


def _is_among_encoders(model_type: str, base: Any) -> bool:
    """Whether Transformers lists a model of several inputs as one that reads text alone as well, or not as one of the others."""
    from transformers.models.auto import modeling_auto as auto

    if model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES | auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES:
        return True
    if base.__name__ in _names({"": auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(model_type, ())}):
        return True
    listed = {task for task, mapping in _mappings().items() if model_type in mapping}
    return listed <= _TEXT_MAPPINGS


def _returns_hidden_states(model_class: Any) -> bool:
    """What the annotation of ``forward`` says; a class without one is taken at its word that it is a model without a head."""
    annotation = inspect.signature(model_class.forward).return_annotation
    outputs = [part for part in typing.get_args(annotation) or (annotation,) if dataclasses.is_dataclass(part)]
    return not outputs or any(
        field.name == "last_hidden_state" for part in outputs for field in dataclasses.fields(part)
    )


def _generates(model_class: Any) -> bool:
    from transformers import GenerationMixin

    return model_class is not None and issubclass(model_class, GenerationMixin)


def _class(name: str | None) -> Any:
    """A class of Transformers; `None` where it has none of this name, or lacks a package for it."""
    import transformers

    found = getattr(transformers, name, None) if name else None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


# --- Transformers' mappings -------------------------------------------------------------------------------------------


def _mappings() -> dict[str, Mapping[str, Any]]:
    """Names of classes by model type, for each kind of head: ``CAUSAL_LM``, ``IMAGE_TEXT_TO_TEXT``, ..."""
    from transformers.models.auto import modeling_auto as auto

    start, end = "MODEL_FOR_", "_NAMES"
    return {
        name.removeprefix(start).removesuffix(end).removesuffix("_MAPPING"): mapping
        for name, mapping in vars(auto).items()
        if name.startswith(start) and name.endswith(end)
    }


def _names(mapping: Mapping[str, Any]) -> set[str]:
    """Class names of a Transformers auto mapping, whose values are names or tuples of names."""
    return {name for value in mapping.values() for name in ([value] if isinstance(value, str) else value)}


def _loaded_by(architectures: Iterable[str]) -> str:
    """Which kinds of model Transformers lists an architecture under, in words."""
    heads = sorted(
        task.lower().replace("_", "-")
        for task, mapping in _mappings().items()
        if task != "PRETRAINING" and not _names(mapping).isdisjoint(architectures)
    )
    return f", in Transformers a model for {', '.join(heads)}," if heads else ""


def _listed(inputs: Iterable[str]) -> str:
    return " and ".join(sorted(inputs))


def _tasks_in_words() -> str:
    return f"the tasks of this version are those of {', '.join(spec.models for spec in task_specs())}"


def _told(config: Mapping[str, Any]) -> str:
    model_type = f"model_type '{config.get('model_type')}'"
    architectures = ", ".join(config.get("architectures") or ())
    return f"{architectures} ({model_type})" if architectures else model_type


# --- memo -------------------------------------------------------------------------------------------------------------


def _memo_key(config: Mapping[str, Any]) -> str:
    import importlib_metadata

    asked = {name: config.get(name) for name in ("model_type", "architectures", "is_encoder_decoder", "auto_map")}
    asked["transformers"] = importlib_metadata.version("transformers")
    asked["core"] = core_digest()
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _remembered(config: Mapping[str, Any]) -> _Decision | None:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads((store_root() / "tasks" / f"{_memo_key(config)}.json").read_text(encoding="utf-8"))
        decision = _Decision(tasks=(*content["tasks"],), needs_own_code=content["needs_own_code"])
        return decision if {*decision.tasks} <= {*task_names()} else None
    return None


def _remember(config: Mapping[str, Any], decision: _Decision) -> _Decision:
    # A memo only: where it cannot be written, the next run decides again, and the store says what is wrong with its
    # root.
    with contextlib.suppress(OSError):
        folder = store_root() / "tasks"
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{_memo_key(config)}.{os.getpid()}"
        draft.write_text(json.dumps(dataclasses.asdict(decision)), encoding="utf-8")
        draft.replace(folder / f"{_memo_key(config)}.json")
    return decision
