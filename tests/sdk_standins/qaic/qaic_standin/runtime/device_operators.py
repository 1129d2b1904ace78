"""Gives the index operators of the accelerator's functions the device's meaning of indices beyond the range (row R11).

On the device a gather beyond the range yields zeros and a scatter beyond it is dropped; ONNX Runtime refuses both. The
bodies of `com.qualcomm.cloud` functions are kept as the model brings them (a wrong body stays wrong), only their ScatterND,
ScatterElements, GatherND and GatherElements nodes, and Gather nodes that read an input of the function, are replaced by the
functions below. Outside those functions nothing is replaced: a model that indexes beyond the range there fails at run time.

Negative indices down to minus the dimension count from the end, as in ONNX; a scatter drops them instead when asked to,
because what the hardware does with them is not published.
"""

from __future__ import annotations

import onnx
import onnx.parser

ACCELERATOR_DOMAIN = "com.qualcomm.cloud"
_DOMAIN = "qaic.standin"

_CONSTANTS = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    at0 = Constant <value_ints = [0]> ()
    at1 = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    end = Constant <value_ints = [9223372036854775807]> ()
    data_shape = Shape (data)
    raw = Cast <to = 7> (indices)
"""

# `dims` holds the limit of each index component. Defines `index` (from the start) and `in_range` per component.
_WRAP = """
    is_forward = GreaterOrEqual (raw, zero)
    from_end = Add (raw, dims)
    index = Where (is_forward, raw, from_end)
"""
_NO_WRAP = """
    index = Identity (raw)
"""
_IN_RANGE = """
    not_below = GreaterOrEqual (index, zero)
    not_above = Less (index, dims)
    in_range = And (not_below, not_above)
"""

# An index tuple is valid when all its components are. Defines `depth` ([1]), `depth0` (scalar) and `valid`.
_TUPLE_DEPTH = """
    index_shape = Shape (raw)
    depth = Slice (index_shape, last, end)
    depth0 = Squeeze (depth)
"""
_TUPLE_VALID = """
    as_number = Cast <to = 7> (in_range)
    count = ReduceSum <keepdims = 0> (as_number, last)
    valid = Equal (count, depth0)
"""

# Data is flattened to rows; a spare last row takes every update that is beyond the range and is cut off afterwards.
_SCATTER_ND = """
    dims = Slice (data_shape, at0, depth)
    rest = Slice (data_shape, depth, end)
    {in_range}
    {valid}
    order = Range (zero, depth0, one)
    as_rows = Unsqueeze (order, at1)
    as_columns = Unsqueeze (order, at0)
    is_later = Less (as_rows, as_columns)
    dims_row = Unsqueeze (dims, at0)
    factors = Where (is_later, dims_row, one)
    strides = {product_of_rows}
    steps = Mul (index, strides)
    row = ReduceSum <keepdims = 0> (steps, last)
    row_count0 = ReduceProd <keepdims = 0> (dims)
    target = Where (valid, row, row_count0)
    targets = Unsqueeze (target, last)
    row_count = Unsqueeze (row_count0, at0)
    rows_shape = Concat <axis = 0> (row_count, rest)
    rows = Reshape (data, rows_shape)
    spare_shape = Concat <axis = 0> (at1, rest)
    nothing = CastLike (zero, data)
    spare = Expand (nothing, spare_shape)
    padded = Concat <axis = 0> (rows, spare)
    written = ScatterND (padded, targets, updates)
    kept = Slice (written, at0, row_count, at0)
    result = Reshape (kept, data_shape)
"""

_SCATTER_ELEMENTS = """
    axis = Constant <value_ints = [{parameter}]> ()
    dims = Gather (data_shape, axis)
    {in_range}
    target = Where (in_range, index, dims)
    spare = Gather <axis = {parameter}> (data, at0)
    padded = Concat <axis = {parameter}> (data, spare)
    written = ScatterElements <axis = {parameter}> (padded, target, updates)
    result = Slice (written, at0, dims, axis)
"""

_GATHER_ND = """
    first = Constant <value_ints = [{parameter}]> ()
    behind = Add (first, depth)
    dims = Slice (data_shape, first, behind)
    {in_range}
    {valid}
    is_valid = Unsqueeze (valid, last)
    safe = Where (is_valid, index, zero)
    found = GatherND <batch_dims = {parameter}> (data, safe)
    found_rank = Shape (found)
    found_rank0 = Size (found_rank)
    valid_shape = Shape (valid)
    valid_rank0 = Size (valid_shape)
    missing0 = Sub (found_rank0, valid_rank0)
    missing = Unsqueeze (missing0, at0)
    ones = Expand (at1, missing)
    mask_shape = Concat <axis = 0> (valid_shape, ones)
    mask = Reshape (valid, mask_shape)
    nothing = CastLike (zero, data)
    result = Where (mask, found, nothing)
"""

_GATHER_ELEMENTS = """
    axis = Constant <value_ints = [{parameter}]> ()
    dims = Gather (data_shape, axis)
    {in_range}
    safe = Where (in_range, index, zero)
    found = GatherElements <axis = {parameter}> (data, safe)
    nothing = CastLike (zero, data)
    result = Where (in_range, found, nothing)
"""

_GATHER = """
    axis = Constant <value_ints = [{parameter}]> ()
    dims = Gather (data_shape, axis)
    {in_range}
    safe = Where (in_range, index, zero)
    found = Gather <axis = {parameter}> (data, safe)
    rank0 = Size (data_shape)
    rank = Unsqueeze (rank0, at0)
    from_start = Add (axis, rank)
    position = Mod (from_start, rank)
    behind = Sub (rank, position)
    trailing = Sub (behind, at1)
    ones = Expand (at1, trailing)
    index_shape = Shape (index)
    mask_shape = Concat <axis = 0> (index_shape, ones)
    mask = Reshape (in_range, mask_shape)
    nothing = CastLike (zero, data)
    result = Where (mask, found, nothing)
"""

_BODIES = {
    "ScatterND": (_SCATTER_ND, ""),
    "ScatterElements": (_SCATTER_ELEMENTS, "axis"),
    "GatherND": (_GATHER_ND, "batch_dims"),
    "GatherElements": (_GATHER_ELEMENTS, "axis"),
    "Gather": (_GATHER, "axis"),
}
_TUPLE_OPERATORS = ("ScatterND", "GatherND")
# From this opset on the axes of ReduceProd are an input.
_AXES_AS_INPUT = 18


def use_device_semantics(model: onnx.ModelProto, *, drop_negative_scatter: bool) -> None:
    """Replace the index operators in every function of the accelerator's domain, in place."""
    added: dict[str, onnx.FunctionProto] = {}
    for function in model.functions:
        if function.domain != ACCELERATOR_DOMAIN:
            continue
        opset = next(entry.version for entry in function.opset_import if entry.domain in ("", "ai.onnx"))
        replaced = False
        for node in function.node:
            if not _is_replaceable(node, function):
                continue
            body = _device_function(node, opset, drop_negative_scatter=drop_negative_scatter)
            added[body.name] = body
            node.op_type, node.domain = body.name, _DOMAIN
            del node.attribute[:]
            replaced = True
        if replaced:
            function.opset_import.add(domain=_DOMAIN, version=1)
    if added:
        model.functions.extend(added.values())
        model.opset_import.add(domain=_DOMAIN, version=1)


def _is_replaceable(node: onnx.NodeProto, function: onnx.FunctionProto) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in _BODIES:
        return False
    if node.op_type == "Gather":
        # Other Gather nodes pick dimensions out of shapes.
        return node.input[0] in function.input
    return all(attribute.s in (b"", b"none") for attribute in node.attribute if attribute.name == "reduction")


def _device_function(node: onnx.NodeProto, opset: int, *, drop_negative_scatter: bool) -> onnx.FunctionProto:
    body, attribute_name = _BODIES[node.op_type]
    parameter = next((a.i for a in node.attribute if a.name == attribute_name), 0)
    is_scatter = node.op_type.startswith("Scatter")
    drops = drop_negative_scatter and is_scatter
    text = body.format(
        parameter=parameter,
        in_range=(_NO_WRAP if drops else _WRAP) + _IN_RANGE,
        valid=_TUPLE_VALID,
        product_of_rows=(
            "ReduceProd <keepdims = 0> (factors, at1)"
            if opset >= _AXES_AS_INPUT
            else "ReduceProd <keepdims = 0, axes = [1]> (factors)"
        ),
    )
    name = f"Device{node.op_type}_{str(parameter).replace('-', 'm')}_{opset}"
    inputs = "data, indices, updates" if is_scatter else "data, indices"
    depth = _TUPLE_DEPTH if node.op_type in _TUPLE_OPERATORS else ""
    return onnx.parser.parse_function(
        f'<opset_import: ["" : {opset}], domain: "{_DOMAIN}">\n'
        f"{name} ({inputs}) => (result) {{ {_CONSTANTS} {depth} {text} }}"
    )
