"""Refuses run-time shapes inside local functions that become sub-functions (row C17).

A value is *constant* when it follows from constants and from shapes only; a specialization fixes all of those. Whether an
input of a function is constant depends on the caller, so calls are followed from the main graph downwards. Graph inputs are
run-time values, initializers are constants.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from .errors import compile_failed
from .graph_walk import FunctionKey, functions_by_key, key_of, name_of, names_used, subgraphs

# Inputs that decide a shape, by operator.
_SHAPE_INPUTS = {"Expand": (1,), "Range": (0, 1, 2)}
_SHAPE_SOURCES = ("Shape", "Size")


def check_subfunction_shapes(model: onnx.ModelProto) -> None:
    """Check every function in every combination of constant and run-time inputs that it is called with.

    Raises:
        CompileError: an Expand or Range in a function has a run-time shape (`Non-constant ...`).
    """
    _Analysis(functions_by_key(model)).scope(model.graph.node, {v.name for v in model.graph.input}, "")


class _Analysis:
    def __init__(self, functions: dict[FunctionKey, onnx.FunctionProto]) -> None:
        self._functions = functions
        self._results: dict[tuple[FunctionKey, tuple[bool, ...]], tuple[bool, ...]] = {}

    def scope(self, nodes: Iterable[onnx.NodeProto], runtime: set[str], function: str) -> set[str]:
        """Names of run-time values after the nodes have run, given those known before."""
        runtime = set(runtime)
        for node in nodes:
            if key_of(node) in self._functions:
                flags = self._call(key_of(node), tuple(name in runtime for name in node.input))
                runtime |= {name for name, is_runtime in zip(node.output, flags, strict=False) if is_runtime}
                continue
            if function:
                _refuse_runtime_shape(node, runtime, function)
            for graph in subgraphs(node):
                self.scope(graph.node, runtime | {value.name for value in graph.input}, function)
            if node.op_type not in _SHAPE_SOURCES and names_used(node) & runtime:
                runtime |= set(node.output)
        return runtime

    def _call(self, key: FunctionKey, inputs: tuple[bool, ...]) -> tuple[bool, ...]:
        if (key, inputs) not in self._results:
            function = self._functions[key]
            given = {name for name, is_runtime in zip(function.input, inputs, strict=False) if is_runtime}
            runtime = self.scope(function.node, given, function.name)
            self._results[key, inputs] = tuple(name in runtime for name in function.output)
        return self._results[key, inputs]


def _refuse_runtime_shape(node: onnx.NodeProto, runtime: set[str], function: str) -> None:
    for index in _SHAPE_INPUTS.get(node.op_type, ()):
        if index < len(node.input) and node.input[index] in runtime:
            raise compile_failed(
                f"Non-constant shape input '{node.input[index]}' of {node.op_type} '{name_of(node)}' "
                f"in sub-function {function}: non-constant repeats are not supported"
            )
