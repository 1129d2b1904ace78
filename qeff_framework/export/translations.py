"""The exporter of torch, without the work that it repeats at every export.

Four things take half of the time of a small export and change nothing. The table of translations lists some 700 functions of
torchlib, and the signature of each is read from its annotations: here it is built once, of signatures that torchlib has read.
The signature of ONNX's operator is read for each node: here once for an operator. The
table of decompositions asks torch for each of its operators how it is decomposed: here once for as many operators as there are,
and only where something may be decomposed. And the pass that makes promotions of types explicit runs every node of the program
again on fake tensors: here only the nodes whose arguments are promoted. Where another version of torch keeps these things
elsewhere, `torch.onnx.export` does all of it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils import _pytree as pytree


def to_onnx(program: torch.export.ExportedProgram, opset: int) -> torch.onnx.ONNXProgram:
    """Translates a traced program as `torch.onnx.export` does, without optimising it."""
    registry = translations(opset)
    if registry is None:
        converted = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False, opset_version=opset)
    else:
        from torch.onnx._internal.exporter import _core

        with _known_decompositions(), _promotion_of_changed_nodes(), _operators_read_once():
            converted = _core.export(program, registry=registry, optimize=False, verbose=False, opset_version=opset)
    if converted is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return converted


@functools.cache
def translations(opset: int) -> Any:
    """The exporter's registry for `opset`, to be read only. ``None`` where this version of torch keeps it elsewhere."""
    try:
        from torch.onnx._internal.exporter import _core
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        with _signatures_read_once():
            return ONNXRegistry.from_torchlib(opset_version=opset) if callable(_core.export) else None
    except (ImportError, AttributeError, TypeError):
        return None


@contextlib.contextmanager
def _signatures_read_once() -> Iterator[None]:
    """Gives the exporter the signatures that torchlib has read of its functions, which it would read twice again.

    Once more from the annotations, and once from the source of each function, of which it takes the name of the domain.
    """
    schemas: Any
    traced: Any
    try:
        from onnxscript import values
        from torch.onnx._internal.exporter import _schemas as schemas

        traced = values.TracedOnnxFunction
        read, from_source = schemas.op_signature_from_function, traced.function_ir
    except (ImportError, AttributeError):
        yield
        return

    def known(function: Any, *args: Any, **kwargs: Any) -> Any:
        found = getattr(function, "_signature", None) if isinstance(function, traced) else None
        return read(function, *args, **kwargs) if found is None else found

    schemas.op_signature_from_function = known
    traced.function_ir = property(lambda function: SimpleNamespace(domain=function.opset.domain))
    try:
        yield
    finally:
        schemas.op_signature_from_function, traced.function_ir = read, from_source


@contextlib.contextmanager
def _operators_read_once() -> Iterator[None]:
    """Gives onnxscript the signature of an operator of ONNX that it has read before: it reads that of each node."""
    signature: Any
    try:
        from onnx_ir.schemas import OpSignature as signature  # noqa: N813

        read = vars(signature)["from_op_schema"]
    except (ImportError, KeyError):
        yield
        return

    def known(schema: Any) -> Any:
        key = (schema.domain, schema.name, schema.since_version)
        if key not in _OPERATORS:
            _OPERATORS[key] = read.__get__(None, signature)(schema)
        return _OPERATORS[key]

    signature.from_op_schema = staticmethod(known)
    try:
        yield
    finally:
        signature.from_op_schema = read


#: Signatures by domain, name and version of an operator.
_OPERATORS: dict[tuple[str, str, int], Any] = {}


@contextlib.contextmanager
def _known_decompositions() -> Iterator[None]:
    """Lets the exporter find the table of decompositions of its last export, unless operators came since."""
    decompositions: Any
    try:
        from torch.onnx._internal.exporter import _decomp as decompositions

        original = decompositions.create_onnx_friendly_decomposition_table
        operators = len(torch._C._dispatch_get_all_op_names())  # noqa: SLF001
    except (ImportError, AttributeError):
        yield
        return

    def table(translated: set[Any]) -> Any:
        return _Decompositions((operators, frozenset(translated)), original)

    decompositions.create_onnx_friendly_decomposition_table = table
    try:
        yield
    finally:
        decompositions.create_onnx_friendly_decomposition_table = original


#: The number of operators of this process, and those that have a translation.
_Key = tuple[int, frozenset[Any]]
#: The last table.
_DECOMPOSITIONS: dict[_Key, dict[Any, Any]] = {}


class _Decompositions(Mapping[Any, Any]):
    """The exporter's table of decompositions, which is made where something is looked up that may be in it."""

    def __init__(self, key: _Key, make: Callable[[set[Any]], dict[Any, Any]]) -> None:
        self._key, self._make = key, make

    @property
    def _made(self) -> dict[Any, Any]:
        if self._key not in _DECOMPOSITIONS:
            made = self._make(set(self._key[1]))
            _DECOMPOSITIONS.clear()
            _DECOMPOSITIONS[self._key] = made
        return _DECOMPOSITIONS[self._key]

    def __contains__(self, operator: object) -> bool:
        return operator not in self._key[1] and operator in self._made

    def __getitem__(self, operator: Any) -> Any:
        return self._made[operator]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


@contextlib.contextmanager
def _promotion_of_changed_nodes() -> Iterator[None]:
    """Makes the exporter's promotion of types run the nodes only that it changes.

    An export in another thread meets one pass or the other; both give the same graph.
    """
    parts = _promotion()
    if parts is None:
        yield
        return
    passes, original, insert = parts
    passes.insert_type_promotion_nodes = insert
    try:
        yield
    finally:
        passes.insert_type_promotion_nodes = original


@functools.cache
def _promotion() -> tuple[Any, Any, Any] | None:
    """The module of torch's passes, its promotion of types and a function that does the same."""
    try:
        from torch.onnx._internal.exporter import _fx_passes
        from torch.onnx._internal.fx.passes import type_promotion

        table = type_promotion.TypePromotionTable()
        base: Any = type_promotion._TypePromotionInterpreter  # noqa: SLF001
        promotion, rule_of = type_promotion.InsertTypePromotion, type_promotion.get_type_promotion_rule
        original = _fx_passes.insert_type_promotion_nodes
        if not all(hasattr(base, name) for name in ("run_node", "_maybe_promote_node")):
            return None
    except (ImportError, AttributeError, TypeError):
        return None

    class ChangedNodes(base):  # type: ignore[misc]
        """Takes the result of a node that stays as it is from the trace."""

        def run_node(self, n: torch.fx.Node) -> Any:
            if n.op != "call_function" or "val" not in n.meta:
                return super().run_node(n)
            rule = rule_of(n, table)
            if rule is not None and self._is_promoted(n, rule):
                return super().run_node(n)
            return n.meta["val"]

        def _is_promoted(self, n: torch.fx.Node, rule: Any) -> bool:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            promoted = rule.preview_type_promotion(args, kwargs)
            return any(
                _changes(value, dtype)
                for values, dtypes in ((dict(enumerate(args)), promoted.args_dtypes), (kwargs, promoted.kwargs_dtypes))
                for name, value in values.items()
                if (dtype := dtypes.get(name)) is not None
            )

    def insert_type_promotion_nodes(graph_module: torch.fx.GraphModule) -> None:
        module: Any
        for module in graph_module.modules():
            inserting = promotion(module, table)
            inserting.interpreter = ChangedNodes(module, table)
            inserting.run()

    return _fx_passes, original, insert_type_promotion_nodes


def _changes(value: Any, dtype: torch.dtype) -> bool:
    """Tells whether `value`, an argument that is promoted to `dtype`, is of another type. Numbers always may be."""
    return any(not isinstance(leaf, torch.Tensor) or leaf.dtype != dtype for leaf in pytree.tree_leaves(value))
