"""Reading and writing graphs, shared by the passes."""

from __future__ import annotations

from functools import cache

import onnx_ir as ir

DIALECT = "qeff"
#: Domains of the functions that the compiler knows by name.
CACHE_FUNCTIONS = "com.qualcomm.cloud"
NATIVE_FUNCTIONS = "com.qti.aisw.onnx"
#: Largest finite number of the device's FP16.
FLOAT16_MAX = 65504.0
#: An index that the device drops when it writes, and for which it reads zeros: the largest int32, the type of its indices.
BEYOND_CACHE = 2**31 - 1

_OPSET = 18
_DOMAIN_VERSION = 1


def dialect_nodes(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """The nodes of the main graph with one of these dialect ops, in graph order."""
    return [node for node in model.graph if node.domain == DIALECT and node.op_type in op_types]


def inputs_of(node: ir.Node) -> list[ir.Value]:
    """The inputs of a dialect node, all of which must be there."""
    present = [value for value in node.inputs if value is not None]
    if len(present) != len(node.inputs):
        raise ValueError(f"the dialect op {node.op_type} lacks an input")
    return present


def graph_of(node: ir.Node) -> ir.Graph | ir.Function:
    """The graph that `node` is part of."""
    if node.graph is None:
        raise ValueError(f"{node.op_type} is not part of a graph")
    return node.graph


def static_dim(value: ir.Value, axis: int) -> int | None:
    """Size of a dimension, `None` when it is symbolic or unknown."""
    if value.shape is None or len(value.shape) <= axis:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def number(node: ir.Node, attribute: str, default: float = 0.0) -> float:
    """A numeric attribute."""
    found = node.attributes.get(attribute)
    return default if found is None else float(found.value)


class Writer:
    """Collects new nodes and puts them in front of a node of the graph."""

    def __init__(self) -> None:
        self._tape = ir.tape.Tape()

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: object) -> ir.Value:
        """A node with one output."""
        return self._tape.op(op_type, inputs, attributes, domain=domain)

    def ints(self, *values: int) -> ir.Value:
        """An int64 vector."""
        return self.op("Constant", value_ints=values)

    def int(self, value: int) -> ir.Value:
        """An int64 scalar."""
        return self.op("Constant", value_int=value)

    def number_like(self, number: float, value: ir.Value) -> ir.Value:
        """A scalar with the dtype of `value`, float32 where that is not known."""
        dtype = value.dtype or ir.DataType.FLOAT
        return self.op("Constant", value=ir.tensor(number, dtype=dtype))

    def insert_before(self, node: ir.Node) -> None:
        """Puts everything collected so far in front of `node`."""
        graph_of(node).insert_before(node, self._tape.nodes)

    def replace(self, node: ir.Node, new: ir.Value) -> None:
        """Lets everything that read the only output of `node` read `new`, which gets its name, and removes `node`."""
        self.insert_before(node)
        old = node.outputs[0]
        name = old.name
        new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph_of(node).remove(node, safe=True)
        new.name = name


@cache
def _parsed(domain: str, text: str) -> bytes:
    import onnx.parser

    header = f'<opset_import: ["" : {_OPSET}], domain: "{domain}">'
    content: bytes = onnx.parser.parse_function(header + text).SerializeToString()
    return content


def attach_function(model: ir.Model, domain: str, text: str) -> None:
    """Adds a function, given in ONNX text form, so that other runtimes can run the model as well."""
    import onnx

    function = ir.serde.deserialize_function(onnx.FunctionProto.FromString(_parsed(domain, text)))
    for node in function:
        # The compiler calls the copies that it inlines <call>/<inner node>; partition files refer to these names.
        node.name = node.outputs[0].name
    model.functions[function.identifier()] = function
    model.opset_imports[domain] = _DOMAIN_VERSION
