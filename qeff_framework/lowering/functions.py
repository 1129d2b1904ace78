"""Functions of a vendor's domain, given in ONNX text form, so that other runtimes can run a lowered model as well."""

from __future__ import annotations

from functools import cache

import onnx_ir as ir

from qeff_framework.dialect.names import ONNX_OPSET

_DOMAIN_VERSION = 1


def attach_function(model: ir.Model, domain: str, text: str) -> str:
    """Adds a function to `model`, unless it is there already, and the opset import of its domain. Returns its op type.

    `text` is what `onnx.parser.parse_function` takes, without the header: ``Name <attributes> (inputs) => (outputs) { ... }``.
    """
    import onnx

    name, content = _parsed(domain, text)
    if (domain, name, "") not in model.functions:
        function = ir.serde.deserialize_function(onnx.FunctionProto.FromString(content))
        for node in function:
            # Compilers that inline a function call the copies <call>/<inner node>.
            node.name = node.outputs[0].name
        model.functions[function.identifier()] = function
        model.opset_imports[domain] = _DOMAIN_VERSION
    return name


@cache
def _parsed(domain: str, text: str) -> tuple[str, bytes]:
    """The name of the function, and its bytes."""
    import onnx.parser

    header = f'<opset_import: ["" : {ONNX_OPSET}], domain: "{domain}">'
    function = onnx.parser.parse_function(header + text)
    return function.name, function.SerializeToString()
