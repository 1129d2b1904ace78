"""Graphs of models that read sound or images in one pass: samples, feature frames or pixels in; scores or embeddings out.

Which of the input's axes may have several lengths is told by the request, since the model's code does not say: samples of a
waveform may, the frames of a spectrogram that positions are learned for may not, and an image's sizes never.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir
import torch

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export.frame_counts import FrameCount, frame_count
from qeff_framework.export.interface import BATCH, FRAMES, SEQ, rename_dims, rename_interface
from qeff_framework.export.portable_graph import GraphRequest, PortableGraph
from qeff_framework.export.single_pass import SinglePassGraph, probe_layers, traced_model
from qeff_framework.export.stages import stage
from qeff_framework.export.trace import finish
from qeff_framework.export.weights import graph_weights
from qeff_framework.seam.adapt import adapt
from qeff_framework.seam.norms import find_rms_norms
from qeff_framework.seam.padded_frames import PaddedFrames
from qeff_framework.seam.real_constants import ConstantsStayReal
from qeff_framework.seam.rotary import find_length_dependent_rotary
from qeff_framework.seam.scope import Scope, forward_scope
from qeff_framework.seam.weightless import weightless_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The input that says which samples or frames are no padding, ``[B, S]``.
MASK = "attention_mask"
_BATCH = 2
#: Lengths of the example: samples of a waveform (a convolution stack makes few frames of many), and feature frames.
_SAMPLES, _FRAMES, _TOKENS = 9_001, 67, 5


@dataclass(frozen=True, kw_only=True)
class Signal:
    """What such a model reads: the name of its main input, and its shape behind the batch."""

    name: str
    #: Sizes; `None` for the axis whose length a program is compiled for.
    shape: tuple[int | None, ...]
    #: Token ids instead of numbers.
    is_tokens: bool = False

    @classmethod
    def of(cls, request: GraphRequest) -> Signal:
        """What the task class has put into the request."""
        given = request.program_inputs
        return cls(name=str(given["name"]), shape=tuple(given["shape"]), is_tokens=given["name"] == "input_ids")

    @property
    def has_length(self) -> bool:
        """Programs of several lengths are possible."""
        return None in self.shape

    def example(self) -> torch.Tensor:
        """Zeros of an example's sizes."""
        length = _SAMPLES if len(self.shape) == 1 and not self.is_tokens else _TOKENS if self.is_tokens else _FRAMES
        sizes = (_BATCH, *(length if size is None else size for size in self.shape))
        return torch.zeros(sizes, dtype=torch.int64 if self.is_tokens else torch.float32)


def ctc_graph(module: PreTrainedModel, request: GraphRequest) -> PortableGraph:
    """``logits [B, T, V]`` of each frame. ``frames`` in its metadata: how many frames a length of the input makes."""
    return signal_graph(module, Signal.of(request), fields=("logits",), axes=("batch", "frames", "labels"))


def signal_classification_graph(module: PreTrainedModel, request: GraphRequest) -> PortableGraph:
    """``logits [B, labels]`` of a sound or an image."""
    return signal_graph(module, Signal.of(request), fields=("logits",), axes=("batch", "labels"))


def signal_graph(
    module: PreTrainedModel,
    signal: Signal,
    *,
    fields: tuple[str, ...],
    axes: tuple[str, ...],
    call: Callable[..., Any] | None = None,
) -> PortableGraph:
    """The graph of these `fields` of what ``call(model, **inputs)`` returns, by default the forward, with `axes` each."""
    norms, rotary = find_rms_norms(module), find_length_dependent_rotary(module)
    weightless = weightless_copy(module)
    adapt(weightless, norms, rotary)
    inputs = _input_names(weightless, signal)
    graph = _SignalGraph(weightless, inputs=inputs, fields=fields, call=call)
    example = (_example(inputs, signal),)
    with stage("probe run"):
        results, kinds = probe_layers(graph, example)
    for name, result in zip(fields, results, strict=True):
        _check_shape(name, tuple(result.shape), axes)
    batch = torch.export.Dim(BATCH, min=1)
    seq = torch.export.Dim(SEQ, min=1)
    dynamic: dict[int, Any] = {0: batch}
    if signal.has_length:
        dynamic[1 + signal.shape.index(None)] = seq
    lengths = [dynamic if name == signal.name else {0: batch, 1: seq} for name in inputs]
    program, model = traced_model(graph, example, (lengths,), graph_weights(module, norms), kinds)
    if signal.has_length:
        _require_any_length(_lengths(program))
    metadata: dict[str, Any] = {}
    if "frames" in axes and signal.has_length:
        metadata["frames"] = _frames(program).as_json()
    finish(model)
    rename_interface(model, inputs=inputs, outputs=fields)
    dims = {BATCH: (0, 0)}
    if signal.has_length:
        dims[SEQ] = (0, 1 + signal.shape.index(None))
    rename_dims(model, dims)
    if "frames" in metadata:
        _name_frames(model, axes.index("frames"))
    return PortableGraph(model=model, metadata=metadata)


def _frames(program: torch.export.ExportedProgram) -> FrameCount:
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    return frame_count(output.args[0][0].meta["val"].shape[1], _lengths(program))


def _require_any_length(lengths: Sequence[int | torch.SymInt]) -> None:
    """A comparison of sizes in the model's code may have fixed the length of the example."""
    if any(isinstance(length, int) for length in lengths):
        raise UnsupportedModelError(
            "its code decides by the length of its input what it computes, so the graph of one length is wrong for every other"
        )


def _lengths(program: torch.export.ExportedProgram) -> list[int | torch.SymInt]:
    """The length of each input."""
    inputs = {*program.graph_signature.user_inputs}
    return [
        node.meta["val"].shape[1] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs
    ]


def _name_frames(model: onnx_ir.Model, axis: int) -> None:
    """A name instead of the formula: a program is compiled for a number."""
    output = model.graph.outputs[0]
    assert output.shape is not None  # noqa: S101 - renamed before
    output.shape = onnx_ir.Shape([FRAMES if number == axis else dim for number, dim in enumerate(output.shape)])


def _check_shape(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> None:
    if len(shape) != len(axes) or shape[0] != _BATCH:
        raise UnsupportedModelError(
            f"for {_BATCH} inputs its {name} has the shape {list(shape)} instead of [{', '.join(axes)}]"
        )


def _input_names(weightless: PreTrainedModel, signal: Signal) -> tuple[str, ...]:
    """The main input, and the mask where lengths differ. Raises `UnsupportedModelError` where padding could not be told."""
    parameters = inspect.signature(weightless.forward).parameters
    if signal.name not in parameters:
        raise UnsupportedModelError(f"its forward takes no {signal.name}")
    if not signal.has_length:
        return (signal.name,)
    if MASK not in parameters:
        raise UnsupportedModelError(f"its forward takes no {MASK}, so that padding would change its result")
    return (signal.name, MASK)


def _example(inputs: tuple[str, ...], signal: Signal) -> list[torch.Tensor]:
    main = signal.example()
    return [main, *(torch.ones((_BATCH, main.shape[1]), dtype=torch.int64) for _ in inputs[1:])]


class _SignalGraph(SinglePassGraph):
    """Wraps a weightless copy: its forward has the signature of the portable graph."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        inputs: tuple[str, ...],
        fields: tuple[str, ...],
        call: Callable[..., Any] | None,
    ) -> None:
        super().__init__(model)
        self.inputs = inputs
        self.fields = fields
        self.call = call

    def forward(self, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns the output fields."""
        arguments: dict[str, Any] = dict(zip(self.inputs, tensors, strict=True))
        if (mask := arguments.get(MASK)) is not None:
            # Each input has symbols of its own for its sizes; from here on they are known to be the same.
            require: Any = torch._check  # noqa: SLF001  (documented for exports, and untyped)
            require(tensors[0].shape[0] == mask.shape[0])
            require(tensors[0].shape[1] == mask.shape[1])
        frames = PaddedFrames(tensors[0].shape[1], mask)
        scope = Scope(masks=self.masks, real_frames=frames.real)
        with forward_scope(scope), ConstantsStayReal(), frames, self.around_layers():
            outputs = (self.call or _forward)(self.model, **arguments)
        return tuple(_tensor(outputs, name) for name in self.fields)


def _forward(model: PreTrainedModel, **arguments: Any) -> Any:
    return model(**arguments, return_dict=True)


def _tensor(outputs: Any, name: str) -> torch.Tensor:
    result = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
    if not isinstance(result, torch.Tensor):
        raise UnsupportedModelError(f"its forward returns no {name}")
    return result
