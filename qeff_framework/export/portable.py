"""Writes a Transformers model as portable ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir
from transformers import PreTrainedConfig, PreTrainedModel

from qeff_framework.contracts import ExportedModel, Task, TensorSpec
from qeff_framework.errors import ExportError, QEFFError, UnsupportedModelError
from qeff_framework.export.pooling import resolve_pooling
from qeff_framework.export.portable_graph import GraphRequest
from qeff_framework.export.position_limits import position_limits
from qeff_framework.export.unloaded import refuse_unloaded, tracking_unloaded
from qeff_framework.seam.isolation import exporting
from qeff_framework.tasks import task_spec

if TYPE_CHECKING:
    import torch

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
#: Smaller initializers stay inside the model file.
_INLINE_BYTES = 1024

Progress = Callable[[str], None]


def export_portable(
    module: torch.nn.Module,
    *,
    task: Task,
    output_dir: Path,
    pooling: str | Callable[..., Any] | None = None,
    extra_inputs: Sequence[str] = (),
    unloaded: AbstractSet[str] = frozenset(),
    progress: Progress = lambda message: None,
) -> ExportedModel:
    """Exports `module` to ``model.onnx`` and ``model.onnx.data`` in `output_dir`; the module is left as it is.

    `pooling` applies to encoders: ``"mean"``, ``"cls"``, ``"max"``, ``"lasttoken"``, or a function of the last hidden state
    ``[B, S, H]`` and the attention mask ``[B, S]``. `extra_inputs` applies to causal LMs, see `contracts.EXTRA_INPUTS`.
    `unloaded` names parameters and buffers whose values the checkpoint did not hold.

    Raises:
        OptionError: `pooling` or the task is unknown.
        UnsupportedModelError: the architecture does not fit the task, or needs what the seam cannot carry.
        ExportError: tracing or translating failed. The cause is chained.
        CheckpointError: the graph reads a weight that is `unloaded`.
    """
    request = GraphRequest(pooling=resolve_pooling(pooling), extra_inputs=tuple(extra_inputs))
    build = task_spec(task).build_graph
    progress("tracing the model")
    with exporting(), _naming_architecture(module, task), tracking_unloaded(unloaded):
        if not isinstance(module, PreTrainedModel):
            raise UnsupportedModelError("it is not a Transformers model (transformers.PreTrainedModel)")
        graph = build(module, request)
    refuse_unloaded(graph.model, module, unloaded)
    progress("writing the ONNX model")
    output_dir.mkdir(parents=True, exist_ok=True)
    onnx_ir.save(graph.model, output_dir / MODEL_FILE, external_data=WEIGHTS_FILE, size_threshold_bytes=_INLINE_BYTES)
    return ExportedModel(
        directory=output_dir,
        task=task,
        model_file=MODEL_FILE,
        inputs=tuple(_spec(value) for value in graph.model.graph.inputs),
        outputs=tuple(_spec(value) for value in graph.model.graph.outputs),
        states=graph.states,
        metadata={
            **_metadata(module),
            "position_limits": position_limits(graph.model, has_cache=bool(graph.states)),
            **graph.metadata,
        },
    )


def _spec(value: onnx_ir.Value) -> TensorSpec:
    if value.shape is None or value.dtype is None:
        raise ExportError(f"the translation left '{value.name}' without a shape or a type")
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(name=str(value.name), dtype=str(value.dtype.numpy()), shape=shape)


def _metadata(module: torch.nn.Module) -> dict[str, Any]:
    config = getattr(module, "config", None)
    facts = {"architecture": type(module).__name__}
    # A model of several parts keeps what is about text in a config of its own.
    text = config.get_text_config() if isinstance(config, PreTrainedConfig) else None
    for name in ("model_type", "vocab_size", "max_position_embeddings", "pad_token_id"):
        value = getattr(config, name, None)
        value = getattr(text, name, None) if value is None else value
        if value is not None:
            facts[name] = value
    return facts


@contextmanager
def _naming_architecture(module: torch.nn.Module, task: Task) -> Iterator[None]:
    """Says in every error which architecture and task it is about."""
    asked = f"{type(module).__name__} cannot be exported as {task}"
    try:
        yield
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{asked}: {error}") from error
    except QEFFError as error:
        raise ExportError(f"{asked}: {error}") from error
