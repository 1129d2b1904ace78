"""Lowerings that break the meaning of one op each."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir

from qeff_framework.lowering import (
    DialectPass,
    GraphEditor,
    GraphPass,
    KVUpdateNode,
    RMSNormNode,
)
from qeff_framework.testing import Settings
from tests.testing.mutants import cases, mutant
from tests.testing.toy_hooks import ToySession

PADDING = ("large", "infinite", "nan")
BIASED = "limit, alpha and offset"
ALL_ATTENTION = (
    "grouped heads",
    "one head each",
    "one key head",
    "wider values",
    "scale",
    "softcap",
    "window",
    "chunk",
    "bias",
    "bias with softcap",
    "sinks",
    "sinks with window",
)
PADDED = [f"{form}, {value}" for form in ("mask", "bias", "sinks") for value in ("infinite", "nan")]


class Attributes(GraphPass):
    """Gives ops other attributes."""

    version = "1"
    ops: ClassVar[tuple[str, ...]]
    changes: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:  # type: ignore[override]
        return type(self).__name__

    def run(self, model: onnx_ir.Model) -> bool:
        found = [node for node in model.graph.all_nodes() if node.domain == "qeff" and node.op_type in self.ops]
        for node in found:
            for name, change in self.changes.items():
                if name in node.attributes:
                    old = node.attributes[name]
                    value = change(old.value)
                    node.attributes[name] = onnx_ir.Attr(name, old.type, value)
        return bool(found)


ATTENTION = ("Attention", "AttentionBias", "AttentionSinks")


@mutant(
    "dialect", *cases("causal_mask", ("window", "window of one")), *cases("attention", ("window", "sinks with window"))
)
class WindowIgnored(Attributes):
    """Every token sees the whole context."""

    ops, changes = ("CausalMask",), {"window": lambda value: 0}


@mutant(
    "dialect", *cases("causal_mask", ("window", "window of one")), *cases("attention", ("window", "sinks with window"))
)
class WindowTooWide(Attributes):
    """The window does not count the token itself."""

    ops, changes = ("CausalMask",), {"window": lambda value: value + 1 if value else 0}


@mutant("dialect", *cases("causal_mask", ("chunk",)), *cases("attention", ("chunk",)))
class ChunkTakenForAWindow(Attributes):
    """Chunks are ignored."""

    ops, changes = ("CausalMask",), {"chunk": lambda value: 0}


@mutant("dialect", *cases("attention", ("scale",)))
class ScaleOfTheHeadSize(Attributes):
    """The scale is computed from the size of a head instead of read."""

    ops, changes = ATTENTION, {"scale": lambda value: 0.5}


@mutant("dialect", *cases("attention", ("softcap", "bias with softcap")))
class SoftcapIgnored(Attributes):
    """Scores are not bounded."""

    ops, changes = ATTENTION, {"softcap": lambda value: 0.0}


@mutant("dialect", *cases("rms_norm", ("small",)))
class EpsilonOfAnotherNorm(Attributes):
    """The usual epsilon instead of the model's."""

    ops, changes = ("RMSNorm",), {"epsilon": lambda value: 1e-5}


@mutant("dialect", *cases("moe", (BIASED, "biased")))
class AlphaIgnored(Attributes):
    """Every gate is SiLU."""

    ops, changes = ("MoE", "MoEBias"), {"alpha": lambda value: 1.0}


@mutant("dialect", *cases("moe", (BIASED, "biased")))
class LimitIgnored(Attributes):
    """Gates are not bounded."""

    ops, changes = ("MoE", "MoEBias"), {"limit": lambda value: 0.0}


@mutant("dialect", *cases("moe", (BIASED, "biased")))
class OffsetIgnored(Attributes):
    """The linear half is not shifted."""

    ops, changes = ("MoE", "MoEBias"), {"offset": lambda value: 0.0}


@mutant("dialect", *cases("moe", ("interleaved", BIASED, "biased")))
class HalvesInsteadOfColumns(Attributes):
    """Gate and linear part are always the two halves."""

    ops, changes = ("MoE", "MoEBias"), {"interleaved": lambda value: 0}


@mutant("dialect", *cases("moe", ("gelu",)))
class GeluByItsTanhForm(Attributes):
    """One GELU is taken for the other."""

    ops, changes = ("MoE",), {"activation": lambda value: 2 if value == 1 else value}


@mutant("dialect", *cases("moe", ("relu squared",)))
class SquareForgotten(Attributes):
    """ReLU squared is computed as ReLU."""

    ops, changes = ("MoE",), {"activation": lambda value: 3 if value == 4 else value}


@mutant(
    "dialect",
    *cases("kv_update", PADDING),
    *cases("kv_update_cb", PADDING),
    "kv_gather_cb",
    "kv_gather",
    *cases("attention", [case for case in ALL_ATTENTION if "window" not in case]),
    *cases("attention_padding", PADDED),
)
class PaddingWrittenAtZero(GraphPass):
    """Padding is written into slot 0."""

    name, version = "PaddingWrittenAtZero", "1"

    def run(self, model: onnx_ir.Model) -> bool:
        for node in list(model.graph.all_nodes()):
            if node.op_type in ("KVUpdate", "KVUpdateCB"):
                edit = GraphEditor(model, node)
                zero = edit.op("Constant", value_int=0)
                node.replace_input_with(2, edit.op("Max", node.inputs[2], zero))
        return True


@mutant("dialect", *cases("rms_norm", ("small", "large")), settings=Settings(precision="float16"))
class NormInHalfPrecision(DialectPass[RMSNormNode]):
    """Squares of large numbers overflow, those of small ones vanish."""

    name, version, node_type = "NormInHalfPrecision", "1", RMSNormNode

    def lower(self, node: RMSNormNode, edit: GraphEditor) -> onnx_ir.Value | None:
        # ONNX Runtime has no product of float16 on the CPU, so its range is put on a product of float32.
        squares = edit.op("Mul", node.hidden, node.hidden)
        overflown = edit.op("Greater", squares, edit.scalar_like(65504.0, squares))
        vanished = edit.op("Less", squares, edit.scalar_like(6.1e-5, squares))
        bounded = edit.op("Where", overflown, edit.scalar_like(np.inf, squares), squares)
        half = edit.op("Where", vanished, edit.scalar_like(0.0, squares), bounded)
        mean = edit.op("ReduceMean", half, edit.int64s(-1))
        root = edit.op("Sqrt", edit.op("Add", mean, edit.scalar_like(node.epsilon, mean)))
        return edit.op("Mul", edit.op("Div", node.hidden, root), node.weight)


@mutant(
    "dialect",
    *cases("kv_update", ("infinite", "nan")),
    *cases("attention_padding", PADDED),
    *cases("unused_slots", PADDED),
)
class OneHotProduct(DialectPass[KVUpdateNode]):
    """Tokens are written by a product with a one-hot of their positions: zero times infinity is NaN."""

    name, version, node_type = "OneHotProduct", "1", KVUpdateNode

    def lower(self, node: KVUpdateNode, edit: GraphEditor) -> onnx_ir.Value | None:
        if node.batch_index is not None:
            return None
        zero, one = edit.op("Constant", value_int=0), edit.op("Constant", value_int=1)
        slots = edit.op("Range", zero, edit.op("Squeeze", edit.op("Shape", node.cache, start=2, end=3)), one)
        columns = edit.op("Unsqueeze", slots, edit.int64s(1))
        hits = edit.op("Equal", edit.op("Unsqueeze", node.position_ids, edit.int64s(1)), columns)
        one_hot = edit.op("Unsqueeze", edit.op("Cast", hits, to=1), edit.int64s(1))
        is_new = edit.op("ReduceMax", one_hot, edit.int64s(3))
        kept = edit.op("Mul", node.cache, edit.op("Sub", edit.scalar_like(1.0, is_new), is_new))
        return edit.op("Add", kept, edit.op("MatMul", one_hot, node.updates))


class Initializers(GraphPass):
    """Changes one constant of a graph."""

    version = "1"
    constant: ClassVar[str]

    @property
    def name(self) -> str:  # type: ignore[override]
        return type(self).__name__

    def run(self, model: onnx_ir.Model) -> bool:
        value = model.graph.initializers.get(self.constant)
        if value is None or value.const_value is None:
            return False
        value.const_value = onnx_ir.tensor(self.change(value.const_value.numpy()), name=value.name)
        return True

    def change(self, content: Any) -> Any:
        raise NotImplementedError


@mutant("dialect", *cases("quantized_matmul", ("4 bits", "8 bits", "nan padding")))
class ZeroPointsIgnored(Initializers):
    """Levels are taken for signed numbers around nothing."""

    constant = "zero_points"

    def change(self, content: Any) -> Any:
        return np.zeros_like(content)


@mutant("dialect", *cases("quantized_matmul", ("4 bits", "nan padding")))
class HalvesOfAByteSwapped(Initializers):
    """The first of two levels is read from the upper half of its byte."""

    constant = "levels"

    def change(self, content: Any) -> Any:
        is_packed = content.shape[-1] == 8
        return ((content << 4) | (content >> 4)).astype(np.uint8) if is_packed else content


class Fed(ToySession):
    """Changes what the program is fed, or what it returns."""


@mutant("dialect", *cases("kv_update_cb", PADDING), "kv_gather_cb")
class CacheRowsIgnored(Fed):
    """Row r of a step is row r of the cache."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        rows = feeds.get("batch_index")
        return super().compute(feeds if rows is None else {**feeds, "batch_index": np.arange(len(rows))[:, None]})


@mutant(
    "dialect",
    "kv_gather",
    *cases("attention", [case for case in ALL_ATTENTION if case != "one head each"]),
    *cases("attention_padding", PADDED),
    *cases("unused_slots", PADDED),
)
class TransposedOutput(Fed):
    """Heads and tokens of a square result change places."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        outputs = super().compute(feeds)
        found = outputs.get("logits")
        if found is not None and found.shape[1:3] == (4, 4):
            outputs["logits"] = np.ascontiguousarray(found.swapaxes(1, 2))
        return outputs


@mutant("dialect", "kv_gather")
class ComputeContextIgnored(Fed):
    """Reads one slot less than asked for."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        lengths = feeds.get("comp_ctx_lengths")
        return super().compute(feeds if lengths is None else {**feeds, "comp_ctx_lengths": lengths[1:]})


@mutant("dialect", *cases("encoder_attention", ("partly filled", "all padding")))
class EncoderSeesPadding(Fed):
    """The attention mask of an encoder is not read."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        mask = feeds.get("attention_mask")
        return super().compute(feeds if mask is None else {**feeds, "attention_mask": np.ones_like(mask)})


@mutant("dialect", "encoder_attention[all padding]")
class EmptyRowsAreNaN(Fed):
    """The softmax of a row without tokens divides by zero."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        outputs = super().compute(feeds)
        mask = feeds.get("attention_mask")
        if mask is not None:
            outputs["last_hidden_state"][~mask.astype(bool).any(axis=1)] = np.nan
        return outputs
