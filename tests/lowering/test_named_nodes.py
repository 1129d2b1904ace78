"""Names in options: those that the lowered graph has not are refused, with those that are close."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from qeff_framework.errors import CompileError
from qeff_framework.lowering import check_operator_types, nodes_named
from tests.lowering.graphs import attention_layer


def test_names_that_a_graph_has_not_are_refused_with_those_that_are_close():
    model = attention_layer()
    (node,) = nodes_named(model, ["attended"], option="wide")
    assert isinstance(node, ir.Node)
    assert node.op_type == "Attention"
    with pytest.raises(CompileError, match=r"^wide: .*first output is atended, masc; did you mean attended or mask\?$"):
        nodes_named(model, ["mask", "masc", "atended"], option="wide")
    check_operator_types(model, ["CausalMask", "Softmax"], option="types")
    with pytest.raises(CompileError, match=r"^types: there is no operator CausalMasc; did you mean CausalMask\?$"):
        check_operator_types(model, ["CausalMasc"], option="types")
