"""Small graphs within the contract, written as ONNX text: exports that need no model and no tracing.

A program of a causal LM has the inputs ``input_ids [B, S]`` and ``position_ids [B, S]``, one of an encoder ``input_ids`` and
``attention_mask``. What an op is given is looked up in tables by the token ids, so that the host feeds what it always feeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import ExportedModel, Specialization, StateSpec, Task, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Name of the graph's file, as an export names it.
MODEL_FILE = "model.onnx"
#: Rows of a step, tokens of the longer step, slots of the cache. All differ, so that a confused axis shows.
ROWS, CHUNK, CTX_LEN = 2, 4, 9
#: Rows of the cache with continuous batching.
CACHE_ROWS = 3
#: Token ids; the last ones are those of padding and of tokens that have overflowed, see the tables.
VOCAB = 16


def steps_of(*lengths: int, ctx_len: int = CTX_LEN, rows: int = ROWS, **dims: int) -> tuple[Specialization, ...]:
    """One specialization for each length of a step: ``prefill`` for the first, ``decode`` for 1."""
    return tuple(
        Specialization(
            name="decode" if length == 1 else "prefill" if length == lengths[0] else f"prefill_{length}",
            dims={"batch_size": rows, "ctx_len": ctx_len, "seq_len": length, **dims},
        )
        for length in lengths
    )


@dataclass(frozen=True, kw_only=True)
class SmallProgram:
    """A graph and what belongs to it."""

    name: str
    #: ONNX text of the graph, without its constants.
    graph: str
    #: Constants of the graph by name.
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    states: tuple[StateSpec, ...] = ()
    specializations: tuple[Specialization, ...] = field(default_factory=lambda: steps_of(CHUNK, 1))
    task: Task = "causal-lm"

    def export(self, directory: Path) -> ExportedModel:
        """Writes the portable ONNX, as an export does, and returns its description."""
        import onnx.parser
        import onnx_ir

        from qeff_framework.dialect.functions import attach_functions

        directory.mkdir(parents=True)
        model = onnx_ir.serde.deserialize_model(
            onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18, "qeff": 1]> {self._text()}')
        )
        for name, content in self.constants.items():
            value = next(item for item in model.graph.initializers.values() if item.name == name)
            value.const_value = onnx_ir.tensor(content, name=name)
            value.shape, value.dtype = onnx_ir.Shape(content.shape), value.const_value.dtype
        for value in (*model.graph.inputs, *model.graph.outputs):
            # ONNX text has no dots in names, states of an export have.
            if str(value.name).startswith("past_"):
                value.name = str(value.name).replace("_0", ".0", 1)
        attach_functions(model)
        # Small constants stay in the file, as in an export.
        onnx_ir.save(model, directory / MODEL_FILE, external_data=f"{MODEL_FILE}.data", size_threshold_bytes=256)
        exported = ExportedModel(
            directory=directory,
            task=self.task,
            model_file=MODEL_FILE,
            inputs=tuple(_spec(value) for value in model.graph.inputs),
            outputs=tuple(_spec(value) for value in model.graph.outputs),
            states=self.states,
            metadata={"architecture": "Conformance", "model_name": self.name, "vocab_size": VOCAB},
        )
        exported.save()
        return exported

    def _text(self) -> str:
        """The graph with a placeholder for each constant."""
        if not self.constants:
            return self.graph
        kinds = {"f": "float", "i": "int64", "b": "bool", "u": "uint8"}
        placeholders = ", ".join(
            f"{kinds[array.dtype.kind]}[1] {name} = {{0}}" for name, array in self.constants.items()
        )
        head, arrow, rest = self.graph.partition("=>")
        outputs, brace, body = rest.partition("{")
        return f"{head}{arrow}{outputs} <{placeholders}> {brace}{body}"


def _spec(value: Any) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(name=value.name, dtype=str(value.dtype.numpy()), shape=shape)
