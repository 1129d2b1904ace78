"""Writes a Transformers model as portable ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import onnx_ir
from transformers import PreTrainedConfig, PreTrainedModel

from qeff_framework.artifacts.digests import DigestingFile
from qeff_framework.artifacts.disk import require_space, told_bytes
from qeff_framework.contracts import AdapterRoom, ExportedModel, LowRankDelta, PackedMatrix, Task, TensorSpec
from qeff_framework.errors import CheckpointError, ExportError, QEFFError, UnsupportedModelError
from qeff_framework.export.adapter_products import add_adapter_room, add_adapters
from qeff_framework.export.packed_products import keep_packed_products
from qeff_framework.export.pooling import resolve_pooling
from qeff_framework.export.portable_graph import GraphRequest
from qeff_framework.export.position_limits import position_limits
from qeff_framework.export.references import INLINE_BYTES, refer_to_files
from qeff_framework.export.scaled_adapters import add_scaled_adapters, add_scaled_room
from qeff_framework.export.unloaded import refuse_unloaded, tracking_unloaded
from qeff_framework.export.weights import ModuleTensor
from qeff_framework.lowering.layer_functions import LayerFunctions
from qeff_framework.progress import reported_parts
from qeff_framework.seam.isolation import exporting
from qeff_framework.tasks import task_spec

if TYPE_CHECKING:
    import torch

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"

_MATRIX_AXES = 2

Progress = Callable[[str], None]


def export_portable(
    module: torch.nn.Module,
    *,
    task: Task,
    output_dir: Path,
    pooling: str | Callable[..., Any] | None = None,
    extra_inputs: Sequence[str] = (),
    extra_outputs: Sequence[str] = (),
    unloaded: AbstractSet[str] = frozenset(),
    program: str = "",
    program_inputs: Mapping[str, Any] = MappingProxyType({}),
    packed_matrices: Mapping[str, PackedMatrix] = MappingProxyType({}),
    adapters: Mapping[str, Mapping[str, LowRankDelta]] = MappingProxyType({}),
    adapter_room: AdapterRoom | None = None,
    use_onnx_subfunctions: bool = False,
    progress: Progress = lambda message: None,
) -> ExportedModel:
    """Exports `module` to ``model.onnx`` in `output_dir`; the module is left as it is.

    Parameters that are deferred (`seam.deferred`) and lie in files of `output_dir` are referred to; all other weights are written
    to ``model.onnx.data``. ``weight_files`` in the metadata names the files that are referred to.

    `pooling` applies to encoders: ``"mean"``, ``"cls"``, ``"max"``, ``"lasttoken"``, or a function of the last hidden state
    ``[B, S, H]`` and the attention mask ``[B, S]``. `extra_inputs` applies to causal LMs, see `contracts.EXTRA_INPUTS`.
    `extra_outputs` are those of a sampler at its end, see `contracts.ExportRequest`.
    `program` and `program_inputs` are for models of several programs, see `contracts.ExportRequest`.
    `unloaded` names parameters and buffers whose values the checkpoint did not hold. `packed_matrices` are parameters that stay
    in the blocks of their checkpoint. `adapters` are those that the rows of a step choose among, see `contracts.ExportRequest`;
    `adapter_room` makes places for such that come later; for `use_onnx_subfunctions` see there.

    Raises:
        OptionError: `pooling` or the task is unknown.
        UnsupportedModelError: the architecture does not fit the task, or needs what the seam cannot carry.
        ExportError: tracing or translating failed. The cause is chained.
        CheckpointError: the graph reads a weight that is `unloaded`.
        ArtifactError: the disk has too little space for the weights that are written.
    """
    request = GraphRequest(
        pooling=resolve_pooling(pooling),
        extra_inputs=tuple(extra_inputs),
        extra_outputs=tuple(extra_outputs),
        program=program,
        program_inputs=program_inputs,
    )
    build = task_spec(task).build_graph
    progress("tracing the model")
    with exporting(), _naming_architecture(module, task), tracking_unloaded(unloaded):
        if not isinstance(module, PreTrainedModel) and not program_inputs.get("call"):
            raise UnsupportedModelError(
                f"it is not a Transformers model (transformers.PreTrainedModel){_inner_model(module)}"
            )
        graph = build(module, request)
        refuse_unloaded(graph.model, module, unloaded)
    states = graph.states
    first_state = states[0].input if states else ""
    with _naming_architecture(module, task):
        call = program_inputs.get("call")
        is_part = bool(call and call.get("part"))
        if call and adapter_room is not None:
            states = (*states, *add_scaled_room(graph.model, adapter_room, is_part=is_part))
        elif call and adapters:
            add_scaled_adapters(graph.model, adapters, is_part=is_part)
        elif adapter_room is not None:
            states = (*states, *add_adapter_room(graph.model, adapter_room, first_state=first_state))
        elif adapters:
            add_adapters(graph.model, adapters, first_state=first_state)
    kept = keep_packed_products(graph.model, packed_matrices)
    limits = position_limits(graph.model, has_cache=bool(graph.states))
    output_dir.mkdir(parents=True, exist_ok=True)
    weight_files = refer_to_files(graph.model, output_dir)
    _write_weights(graph.model, output_dir, progress)
    if use_onnx_subfunctions and not LayerFunctions().run(graph.model):
        progress("no two layers are alike: the graph has no functions of layers")
    progress("writing the ONNX model")
    onnx_ir.save(graph.model, output_dir / MODEL_FILE)
    return ExportedModel(
        directory=output_dir,
        task=task,
        model_file=MODEL_FILE,
        inputs=tuple(_spec(value) for value in graph.model.graph.inputs),
        outputs=tuple(_spec(value) for value in graph.model.graph.outputs),
        states=states,
        metadata={
            **_metadata(module),
            "position_limits": limits,
            **({"weight_files": weight_files} if weight_files else {}),
            **graph.metadata,
            **({"adapters": {name: number for number, name in enumerate(adapters, start=1)}} if adapters else {}),
            **({"packed_weights": _described(kept, packed_matrices)} if kept else {}),
        },
    )


def _write_weights(model: onnx_ir.Model, directory: Path, progress: Progress) -> None:
    """Writes all weights that are not in a file yet to one, one after the other; small ones stay in the graph."""
    graphs = (model.graph, *model.graph.subgraphs())
    values = [
        value
        for graph in graphs
        for value in graph.initializers.values()
        if value.const_value is not None
        and value.const_value.nbytes > INLINE_BYTES
        and not isinstance(value.const_value, onnx_ir.ExternalTensor)
    ]
    tensors = [value.const_value for value in values if value.const_value is not None]
    if not tensors:
        return
    size = sum(tensor.nbytes for tensor in tensors)
    require_space(directory, int(size), "writing the weights of the model")
    done = reported_parts(f"writing {len(tensors)} weights, {told_bytes(size)}", len(tensors), announce=progress)
    position = 0
    with DigestingFile(directory / WEIGHTS_FILE) as file:
        for number, (value, tensor) in enumerate(zip(values, tensors, strict=True)):
            done(number)
            if isinstance(tensor, ModuleTensor):
                tensor.tofile(file)
            else:
                file.write(tensor.tobytes())
            value.const_value = onnx_ir.ExternalTensor(
                WEIGHTS_FILE,
                position,
                int(tensor.nbytes),
                tensor.dtype,
                shape=onnx_ir.Shape(tensor.shape.numpy()),
                name=str(tensor.name),
                base_dir=directory,
            )
            position += int(tensor.nbytes)


def _described(names: Sequence[str], matrices: Mapping[str, PackedMatrix]) -> dict[str, dict[str, int]]:
    """Bits and size of blocks by the name of the weight, and the number of experts of one that is for several."""
    return {
        name: {
            "bits": matrices[name].bits,
            "block_size": matrices[name].block_size,
            **({"experts": matrices[name].shape[0]} if len(matrices[name].shape) > _MATRIX_AXES else {}),
        }
        for name in names
    }


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
    for name in ("model_type", "vocab_size", "type_vocab_size", "max_position_embeddings", "pad_token_id"):
        value = getattr(config, name, None)
        value = getattr(text, name, None) if value is None else value
        if value is not None:
            facts[name] = value
    return facts


def _inner_model(module: torch.nn.Module) -> str:
    """What to pass in place of a module around a model."""
    if hasattr(module, "merge_and_unload"):
        return "; pass the model that its merge_and_unload() returns"
    inner = [name for name, part in module.named_children() if isinstance(part, PreTrainedModel)]
    return f"; pass its {inner[0]}, which is one" if inner else ""


@contextmanager
def _naming_architecture(module: torch.nn.Module, task: Task) -> Iterator[None]:
    """Says in every error which architecture and task it is about. One about the checkpoint's files is left as it is."""
    asked = f"{type(module).__name__} cannot be exported as {task}"
    try:
        yield
    except CheckpointError:
        raise
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{asked}: {error}") from error
    except QEFFError as error:
        raise ExportError(f"{asked}: {error}") from error
