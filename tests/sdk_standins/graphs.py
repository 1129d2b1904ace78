"""Small ONNX graphs for the tests of the stand-ins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

INT32_MAX = 2**31 - 1
IR_VERSION = 9
ACCELERATOR = "com.qualcomm.cloud"

_SCATTER_BODY = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_int = 2> ()
    first = Constant <value_ints = [0]> ()
    third = Constant <value_ints = [3]> ()
    last = Constant <value_ints = [-1]> ()
    axis1 = Constant <value_ints = [1]> ()
    to_batch = Constant <value_ints = [-1, 1, 1]> ()
    to_heads = Constant <value_ints = [1, -1, 1]> ()
    shape = Shape (updates)
    index_shape = Slice (shape, first, third)
    batch = Gather (shape, zero)
    heads = Gather (shape, one)
    batch_range = Range (zero, batch, one)
    batch_column = Reshape (batch_range, to_batch)
    head_range = Range (zero, heads, one)
    head_column = Reshape (head_range, to_heads)
    position_column = Unsqueeze (position_ids, axis1)
    b3 = Expand (batch_column, index_shape)
    h3 = Expand (head_column, index_shape)
    p3 = Expand (position_column, index_shape)
    b4 = Unsqueeze (b3, last)
    h4 = Unsqueeze (h3, last)
    p4 = Unsqueeze (p3, last)
    indices = Concat <axis = -1> (b4, h4, p4)
    result = ScatterND (data, indices, updates)
"""

# `comp_ctx_len` decides the shape of Expand, which is legal as long as the caller derives it from a shape.
_GATHER_BODY = """
    first = Constant <value_ints = [0]> ()
    third = Constant <value_ints = [2]> ()
    last = Constant <value_ints = [-1]> ()
    one_dim = Constant <value_ints = [1]> ()
    shape = Shape (data)
    head_shape = Slice (shape, first, third)
    length = Reshape (comp_ctx_len, one_dim)
    index_shape = Concat <axis = 0> (head_shape, length)
    expanded = Expand (ctx_indices, index_shape)
    indices = Unsqueeze (expanded, last)
    result = GatherND <batch_dims = 2> (data, indices)
"""


def accelerator_functions(opset: int) -> list[onnx.FunctionProto]:
    """`CtxScatter` and `CtxGather` as local functions in standard operators."""
    header = f'<opset_import: ["" : {opset}], domain: "{ACCELERATOR}">'
    return [
        onnx.parser.parse_function(
            f"{header} CtxScatter (data, position_ids, updates) => (result) {{ {_SCATTER_BODY} }}"
        ),
        onnx.parser.parse_function(
            f"{header} CtxGather (data, ctx_indices, comp_ctx_len) => (result) {{ {_GATHER_BODY} }}"
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A one-layer decoder without attention weights: logits = (sum of the embeddings of all tokens so far) @ head.

    Inputs `input_ids`, `position_ids` [batch_size, seq_len] int64 and `past_key.0` [batch_size, heads, ctx_len, head_dim];
    outputs `logits` [batch_size, 1, vocab] and `past_key.0_RetainedState`. Slots beyond the last position are gathered with
    the sentinel index, so wrong device semantics give wrong logits.
    """

    heads: int = 2
    head_dim: int = 4
    vocab: int = 11
    opset: int = 18
    seed: int = 0
    element_type: int = TensorProto.FLOAT

    def weights(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        width = self.heads * self.head_dim
        dtype = helper.tensor_dtype_to_np_dtype(self.element_type)
        return {
            "embed": rng.standard_normal((self.vocab, width)).astype(np.float32).astype(dtype),
            "head": rng.standard_normal((width, self.vocab)).astype(np.float32).astype(dtype),
        }

    def logits(self, tokens: Sequence[int], *, weights: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Logits [vocab] after `tokens`, computed without the graph."""
        weights = weights or self.weights()
        return np.asarray(weights["embed"][list(tokens)].sum(axis=0) @ weights["head"])

    def model(self) -> onnx.ModelProto:
        """The graph with symbolic `batch_size`, `seq_len` and `ctx_len`."""
        past = ["batch_size", self.heads, "ctx_len", self.head_dim]
        state = "past_key.0_RetainedState"
        last_position = (
            helper.make_node("ReduceMax", ["position_ids", "one_dim"], ["last_position"], name="last")
            if self.opset >= 18
            else helper.make_node("ReduceMax", ["position_ids"], ["last_position"], name="last", axes=[1])
        )
        nodes = [
            helper.make_node("Gather", ["embed", "input_ids"], ["hidden"], name="embedding"),
            helper.make_node("Reshape", ["hidden", "split"], ["heads_last"], name="split_heads"),
            helper.make_node("Transpose", ["heads_last"], ["keys"], name="heads_first", perm=[0, 2, 1, 3]),
            helper.make_node(
                "CtxScatter", ["past_key.0", "position_ids", "keys"], [state], name="scatter", domain=ACCELERATOR
            ),
            helper.make_node("Shape", ["past_key.0"], ["past_shape"], name="past_shape"),
            helper.make_node("Gather", ["past_shape", "two"], ["context"], name="context"),
            helper.make_node("Range", ["zero", "context", "one"], ["slots"], name="slots"),
            helper.make_node("Unsqueeze", ["slots", "two_dims"], ["slots3"], name="slots3"),
            last_position,
            helper.make_node("Unsqueeze", ["last_position", "one_dim"], ["last3"], name="last3"),
            helper.make_node("Greater", ["slots3", "last3"], ["unwritten"], name="unwritten"),
            helper.make_node("Where", ["unwritten", "sentinel", "slots3"], ["indices"], name="indices"),
            helper.make_node("CtxGather", [state, "indices", "context"], ["seen"], name="gather", domain=ACCELERATOR),
            helper.make_node("ReduceSum", ["seen", "axis2"], ["total"], name="total", keepdims=0),
            helper.make_node("Reshape", ["total", "merge"], ["merged"], name="merge_heads"),
            helper.make_node("MatMul", ["merged", "head"], ["logits"], name="lm_head"),
        ]
        width = self.heads * self.head_dim
        constants = {
            **self.weights(),
            "split": np.array([0, 0, self.heads, self.head_dim]),
            "merge": np.array([0, 1, width]),
            "zero": np.array(0),
            "one": np.array(1),
            "two": np.array(2),
            "one_dim": np.array([1]),
            "two_dims": np.array([0, 1]),
            "axis2": np.array([2]),
            "sentinel": np.array(INT32_MAX),
        }
        # total is [batch, heads, head_dim]: a zero copies the batch, the rest is fixed.
        graph = helper.make_graph(
            nodes,
            "decoder",
            [
                helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "seq_len"]),
                helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch_size", "seq_len"]),
                helper.make_tensor_value_info("past_key.0", self.element_type, past),
            ],
            [
                helper.make_tensor_value_info("logits", self.element_type, ["batch_size", 1, self.vocab]),
                helper.make_tensor_value_info(state, self.element_type, past),
            ],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        return make_model(graph, opset=self.opset, functions=accelerator_functions(self.opset))

    def save(self, path: Path, *, external: bool = False) -> Path:
        """Write the model, with its weights in a file of their own if asked."""
        model = self.model()
        if external:
            onnx.save_model(
                model,
                str(path),
                save_as_external_data=True,
                location=f"{path.name}.data",
                size_threshold=0,
                convert_attribute=False,
            )
        else:
            onnx.save_model(model, str(path))
        return path


def make_model(
    graph: onnx.GraphProto,
    *,
    opset: int = 18,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (ACCELERATOR,),
) -> onnx.ModelProto:
    """A model with the given opset and the accelerator's domain."""
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=IR_VERSION)


def parse_graph(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    """A model from the ONNX text form of a graph, plus initializers."""
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return make_model(graph)
