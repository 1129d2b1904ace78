"""Which operators, domains and opsets the importer takes (row C15)."""

from __future__ import annotations

import onnx

from .errors import compile_failed, operator_failed
from .graph_walk import FunctionKey, functions_by_key, key_of, name_of, nodes_with_bodies

STANDARD_DOMAINS = ("", "ai.onnx")
FUNCTION_DOMAINS = ("com.qualcomm.cloud", "com.qti.aisw.onnx")
CONTRIB_DOMAIN = "com.microsoft"
_CONTRIB_OPERATORS = ("MatMulNBits", "QMoE")
_OPSETS = (17, 18)


def check_operators(model: onnx.ModelProto, *, sub_functions: bool) -> None:
    """Refuse what the importer is not known to take.

    Local functions may be in the two accelerator domains. Other domains are accepted for local functions only with
    `-sub-functions`, where exporters put whole layers into functions named after their module.

    Raises:
        CompileError: naming the node.
    """
    functions = functions_by_key(model)
    scopes = [("model", model.graph.node, model.opset_import)]
    scopes += [(f"function {function.name}", function.node, function.opset_import) for function in model.functions]
    for where, nodes, imports in scopes:
        opset = _standard_opset(imports, where)
        for node in nodes_with_bodies(nodes):
            reason = _objection(node, functions, sub_functions=sub_functions)
            if reason:
                raise operator_failed(name_of(node), opset, model.ir_version, reason)


def _standard_opset(imports: object, where: str) -> int:
    versions = [entry.version for entry in imports if entry.domain in STANDARD_DOMAINS]  # type: ignore[attr-defined]
    if not versions:
        # A function made only of calls to other functions needs no standard opset.
        return 0
    if versions[0] not in _OPSETS:
        raise compile_failed(f"Opset {versions[0]} of the {where} is not supported; supported: 17, 18")
    return int(versions[0])


def _objection(node: onnx.NodeProto, functions: dict[FunctionKey, onnx.FunctionProto], *, sub_functions: bool) -> str:
    if node.domain in STANDARD_DOMAINS:
        # The checker has already looked the operator up in the opset.
        return ""
    if node.domain == CONTRIB_DOMAIN:
        return "" if node.op_type in _CONTRIB_OPERATORS else f"{node.op_type} of {node.domain} is not supported"
    if key_of(node) not in functions:
        return f"function {node.op_type} of domain '{node.domain}' is not defined in the model"
    if node.domain not in FUNCTION_DOMAINS and not sub_functions:
        return f"domain '{node.domain}' of function {node.op_type} is not supported without -sub-functions"
    return ""
