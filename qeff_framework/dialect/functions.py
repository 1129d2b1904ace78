"""ONNX bodies of the dialect ops in standard ops, so that any runtime can execute an unlowered model.

A lowering finds a dialect node by its name and replaces it; the body is what is left for everybody else. The bodies avoid
ScatterND: compilers for accelerators handle comparisons and matrix products everywhere, scatters only in special forms.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from qeff_framework.dialect.names import DOMAIN, ONNX_OPSET, VERSION

if TYPE_CHECKING:
    import onnx
    import onnx_ir

# The token of each slot is gathered. A product with a one-hot of the positions would add zero times every other token, and zero
# times infinity is NaN: padding tokens may hold anything. Slots that no position names keep their content bit for bit. Positions
# outside 0 .. C-1 equal no slot, so they write nothing.
_WRITING = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    single = Constant <value_ints = [1]> ()
    slot_axis = Constant <value_ints = [1]> ()
    outer_axes = Constant <value_ints = [1, 2]> ()
    token_axis = Constant <value_ints = [3]> ()
    slot_count = Shape <start = 2, end = 3> (cache)
    limit = Squeeze (slot_count)
    slots = Range (zero, limit, one)
    slot_column = Unsqueeze (slots, slot_axis)
    positions = Unsqueeze (position_ids, outer_axes)
    hits = Equal (positions, slot_column)
    hit_numbers = Cast <to = 7> (hits)
    token_of_slot = ArgMax <axis = 3, keepdims = 1> (hit_numbers)
    rows_and_heads = Shape <start = 0, end = 2> (updates)
    index_shape = Concat <axis = 0> (rows_and_heads, slot_count, single)
    token_index = Expand (token_of_slot, index_shape)
    candidates = GatherND <batch_dims = 2> (updates, token_index)
    count = ReduceMax (hit_numbers, token_axis)
    written = Cast <to = 9> (count)
"""

_KV_UPDATE = f"""
KVUpdate (cache, updates, position_ids) => (updated)
{{{_WRITING}
    updated = Where (written, candidates, cache)
}}
"""

# The rows of this step are read, written as above, and put back: each row of the cache takes the row of the step that names it,
# if any. The rows of a step are distinct, so there is at most one.
_KV_UPDATE_CB = f"""
KVUpdateCB (cache, updates, position_ids, batch_index) => (updated)
{{{_WRITING}
    inner_axes = Constant <value_ints = [1, 2, 3]> ()
    flat_shape = Constant <value_ints = [-1]> ()
    rows = Reshape (batch_index, flat_shape)
    held = Gather <axis = 0> (cache, rows)
    new_rows = Where (written, candidates, held)
    row_count = Shape <start = 0, end = 1> (cache)
    row_limit = Squeeze (row_count)
    row_numbers = Range (zero, row_limit, one)
    row_column = Unsqueeze (row_numbers, slot_axis)
    row_hits = Equal (row_column, rows)
    row_selection = Cast <to = 7> (row_hits)
    source = ArgMax <axis = 1, keepdims = 0> (row_selection)
    sources = Gather <axis = 0> (new_rows, source)
    row_found = ReduceMax <keepdims = 0> (row_selection, slot_axis)
    row_is_new = Cast <to = 9> (row_found)
    row_mask = Unsqueeze (row_is_new, inner_axes)
    updated = Where (row_mask, sources, cache)
}}
"""

_KV_GATHER = """
KVGather (cache, kv_positions) => (read)
{
    read = Gather <axis = 2> (cache, kv_positions)
}
"""

_KV_GATHER_CB = """
KVGatherCB (cache, batch_index, kv_positions) => (read)
{
    flat_shape = Constant <value_ints = [-1]> ()
    rows = Reshape (batch_index, flat_shape)
    row_caches = Gather <axis = 0> (cache, rows)
    read = Gather <axis = 2> (row_caches, kv_positions)
}
"""

# A padding token (position -1) is treated as position 0: it sees slot 0 and nothing else, so that no softmax row is empty.
_CAUSAL_MASK = """
CausalMask <window: int = 0, chunk: int = 0> (position_ids, kv_positions) => (mask)
{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    window_size = Constant <value_int: int = @window> ()
    chunk_size = Constant <value_int: int = @chunk> ()
    query_axes = Constant <value_ints = [1, 3]> ()
    positions = Max (position_ids, zero)
    query = Unsqueeze (positions, query_axes)
    causal = LessOrEqual (kv_positions, query)
    oldest = Sub (query, window_size)
    recent = Greater (kv_positions, oldest)
    unlimited = Equal (window_size, zero)
    in_window = Or (recent, unlimited)
    divisor = Max (chunk_size, one)
    query_chunk = Div (query, divisor)
    kv_chunk = Div (kv_positions, divisor)
    same_chunk = Equal (query_chunk, kv_chunk)
    unchunked = Equal (chunk_size, zero)
    in_chunk = Or (same_chunk, unchunked)
    local = And (in_window, in_chunk)
    mask = And (causal, local)
}
"""

# Query heads that share a key head are stacked along the token axis: grouped attention is then one plain batched product and
# neither keys nor values are repeated. In the target shapes of Reshape, 0 keeps a dimension and -1 takes what is left.
_SCORES = """
    zero = Constant <value_ints = [0]> ()
    rest = Constant <value_ints = [-1]> ()
    key_heads = Shape <start = 1, end = 2> (key)
    token_count = Shape <start = 2, end = 3> (query)
    stacked_shape = Concat <axis = 0> (zero, key_heads, rest, zero)
    unstacked_shape = Concat <axis = 0> (zero, rest, token_count, zero)
    scale_value = Constant <value_float: float = @scale> ()
    softcap_value = Constant <value_float: float = @softcap> ()
    scale_factor = CastLike (scale_value, query)
    scaled_query = Mul (query, scale_factor)
    stacked_query = Reshape (scaled_query, stacked_shape)
    key_transposed = Transpose <perm = [0, 1, 3, 2]> (key)
    stacked_scores = MatMul (stacked_query, key_transposed)
    raw_scores = Reshape (stacked_scores, unstacked_shape)
    no_softcap = Constant <value_float = 0.0> ()
    capping = Greater (softcap_value, no_softcap)
    scores = If (capping) <
        then_branch = capped_scores () => (capped) {
            cap = CastLike (softcap_value, raw_scores)
            relative = Div (raw_scores, cap)
            bounded = Tanh (relative)
            capped = Mul (bounded, cap)
        },
        else_branch = plain_scores () => (plain) {
            plain = Identity (raw_scores)
        }
    >
"""

# Masked scores become the lowest finite number, not -inf: a row without a single true entry is then an average, never NaN.
_MASKING = """
    lowest_value = Constant <value_float = -3.4028234663852886e38> ()
    lowest = CastLike (lowest_value, scores)
    visible_scores = Where (mask, scores, lowest)
"""

# What a float bias says: half of the lowest float32 and what is below it hide a slot. Lower precisions have no such number; their
# lowest ones do.
_BIASING = """
    lowest_value = Constant <value_float = -3.4028234663852886e38> ()
    lowest = CastLike (lowest_value, scores)
    hiding_value = Constant <value_float = -1.7014117331926443e38> ()
    hiding = CastLike (hiding_value, bias)
    mask = Greater (bias, hiding)
    biased_scores = Add (scores, bias)
    visible_scores = Where (mask, biased_scores, lowest)
"""

_SOFTMAX = """
    weights = Softmax <axis = -1> (visible_scores)
"""

_SINK_SOFTMAX = """
    last_axis = Constant <value_ints = [3]> ()
    sink_shape = Constant <value_ints = [1, -1, 1, 1]> ()
    sink = Reshape (sinks, sink_shape)
    row_maximum = ReduceMax (visible_scores, last_axis)
    maximum = Max (row_maximum, sink)
    shifted = Sub (visible_scores, maximum)
    exponentials = Exp (shifted)
    shifted_sink = Sub (sink, maximum)
    sink_exponential = Exp (shifted_sink)
    visible_total = ReduceSum (exponentials, last_axis)
    total = Add (visible_total, sink_exponential)
    weights = Div (exponentials, total)
"""

# Values of slots that no token of the step sees become zeros: their probability is zero, and zero times infinity is NaN.
_WEIGHTED_SUM = """
    seen_axes = Constant <value_ints = [1, 2]> ()
    value_axes = Constant <value_ints = [1, 3]> ()
    nothing_value = Constant <value_float = 0.0> ()
    nothing = CastLike (nothing_value, value)
    mask_numbers = Cast <to = 7> (mask)
    seen_count = ReduceMax <keepdims = 0> (mask_numbers, seen_axes)
    seen_numbers = Unsqueeze (seen_count, value_axes)
    seen = Cast <to = 9> (seen_numbers)
    seen_value = Where (seen, value, nothing)
    stacked_weights = Reshape (weights, stacked_shape)
    stacked_result = MatMul (stacked_weights, seen_value)
    result = Reshape (stacked_result, unstacked_shape)
"""

_ATTENTION = f"""
Attention <scale: float, softcap: float = 0.0> (query, key, value, mask) => (result)
{{{_SCORES}{_MASKING}{_SOFTMAX}{_WEIGHTED_SUM}}}
"""

_ATTENTION_BIAS = f"""
AttentionBias <scale: float, softcap: float = 0.0> (query, key, value, bias) => (result)
{{{_SCORES}{_BIASING}{_SOFTMAX}{_WEIGHTED_SUM}}}
"""

_ATTENTION_SINKS = f"""
AttentionSinks <scale: float, softcap: float = 0.0> (query, key, value, mask, sinks) => (result)
{{{_SCORES}{_MASKING}{_SINK_SOFTMAX}{_WEIGHTED_SUM}}}
"""

_RMS_NORM = """
RMSNorm <epsilon: float> (hidden, weight) => (normed)
{
    last_axis = Constant <value_ints = [-1]> ()
    epsilon_value = Constant <value_float: float = @epsilon> ()
    hidden_float = Cast <to = 1> (hidden)
    weight_float = Cast <to = 1> (weight)
    squares = Mul (hidden_float, hidden_float)
    mean_square = ReduceMean (squares, last_axis)
    shifted = Add (mean_square, epsilon_value)
    root = Sqrt (shifted)
    unit = Div (hidden_float, root)
    scaled = Mul (unit, weight_float)
    normed = CastLike (scaled, hidden)
}
"""

# The two halves of the first product, limited; then the activation. Where there is no gate, `linear` is one.
_GATE = """
    gate_one = Constant <value_float = 1.0> ()
    gate_half = Constant <value_float = 0.5> ()
    gate_nothing = Constant <value_float = 0.0> ()
    gated_value = Constant <value_int: int = @gated> ()
    is_gated = Cast <to = 9> (gated_value)
    interleaved_value = Constant <value_int: int = @interleaved> ()
    is_interleaved = Cast <to = 9> (interleaved_value)
    alpha_value = Constant <value_float: float = @alpha> ()
    alpha_factor = CastLike (alpha_value, projected)
    limit_value = Constant <value_float: float = @limit> ()
    limit_bound = CastLike (limit_value, projected)
    is_limited = Greater (limit_value, gate_nothing)
    offset_value = Constant <value_float: float = @offset> ()
    offset_term = CastLike (offset_value, projected)
    kind = Constant <value_int: int = @activation> ()
    pair_shape = Constant <value_ints = [0, 0, 0, -1, 2]> ()
    pair_axis = Constant <value_ints = [-1]> ()
    whole_gate, whole_linear = If (is_gated) <
        then_branch = gated_halves () => (some_gate, some_linear) {
            some_gate, some_linear = If (is_interleaved) <
                then_branch = even_and_odd () => (even, odd) {
                    pairs = Reshape (projected, pair_shape)
                    even_column, odd_column = Split <axis = -1, num_outputs = 2> (pairs)
                    even = Squeeze (even_column, pair_axis)
                    odd = Squeeze (odd_column, pair_axis)
                },
                else_branch = first_and_second () => (first, second) {
                    first, second = Split <axis = -1, num_outputs = 2> (projected)
                }
            >
        },
        else_branch = ungated () => (only_gate, no_linear) {
            only_gate = Identity (projected)
            no_linear = CastLike (gate_one, projected)
        }
    >
    gate, linear = If (is_limited) <
        then_branch = limited_halves () => (limited_gate, limited_linear) {
            lowest_linear = Neg (limit_bound)
            limited_gate = Min (whole_gate, limit_bound)
            limited_linear = Clip (whole_linear, lowest_linear, limit_bound)
        },
        else_branch = unlimited_halves () => (same_gate, same_linear) {
            same_gate = Identity (whole_gate)
            same_linear = Identity (whole_linear)
        }
    >
    swish_kind = Constant <value_int = 0> ()
    gelu_kind = Constant <value_int = 1> ()
    gelu_tanh_kind = Constant <value_int = 2> ()
    relu_kind = Constant <value_int = 3> ()
    is_swish = Equal (kind, swish_kind)
    is_gelu = Equal (kind, gelu_kind)
    is_gelu_tanh = Equal (kind, gelu_tanh_kind)
    is_relu = Equal (kind, relu_kind)
    one = CastLike (gate_one, projected)
    half = CastLike (gate_half, projected)
    activated = If (is_swish) <
        then_branch = swish () => (swished) {
            steep = Mul (gate, alpha_factor)
            opening = Sigmoid (steep)
            swished = Mul (gate, opening)
        },
        else_branch = not_swish () => (by_gelu) {
            by_gelu = If (is_gelu) <
                then_branch = gelu () => (gelu_gate) {
                    root_value = Constant <value_float = 0.7071067811865476> ()
                    root = CastLike (root_value, gate)
                    gelu_scaled = Mul (gate, root)
                    gelu_erf = Erf (gelu_scaled)
                    gelu_sum = Add (gelu_erf, one)
                    gelu_half = Mul (gate, half)
                    gelu_gate = Mul (gelu_half, gelu_sum)
                },
                else_branch = not_gelu () => (by_tanh) {
                    by_tanh = If (is_gelu_tanh) <
                        then_branch = gelu_tanh () => (tanh_gate) {
                            cube_value = Constant <value_float = 0.044715> ()
                            cube_factor = CastLike (cube_value, gate)
                            slope_value = Constant <value_float = 0.7978845608028654> ()
                            slope = CastLike (slope_value, gate)
                            square = Mul (gate, gate)
                            cube = Mul (square, gate)
                            cubic = Mul (cube, cube_factor)
                            inner = Add (gate, cubic)
                            tanh_scaled = Mul (inner, slope)
                            tanh = Tanh (tanh_scaled)
                            tanh_sum = Add (tanh, one)
                            tanh_half = Mul (gate, half)
                            tanh_gate = Mul (tanh_half, tanh_sum)
                        },
                        else_branch = not_tanh () => (by_relu) {
                            positive = Relu (gate)
                            by_relu = If (is_relu) <
                                then_branch = relu () => (relu_gate) {
                                    relu_gate = Identity (positive)
                                },
                                else_branch = relu_squared () => (squared_gate) {
                                    squared_gate = Mul (positive, positive)
                                }
                            >
                        }
                    >
                }
            >
        }
    >
    lifted = If (is_gated) <
        then_branch = with_gate () => (product) {
            multiplier = Add (linear, offset_term)
            product = Mul (activated, multiplier)
        },
        else_branch = without_gate () => (activated_only) {
            activated_only = Identity (activated)
        }
    >
"""

# Two ways to compute the same. Few tokens: the weights of the chosen experts are gathered for each token. Many tokens: every
# expert sees every token, and results of experts that a token did not choose are left out; each weight is then read once. The
# products have the shapes [T, K, 1, *] and [1, E, T, *], so that one sum over axis 1 serves both.
_MOE_CHOICE = """
    choices = Size (expert_ids)
    expert_axis = Shape <start = 0, end = 1> (up)
    expert_count = Squeeze (expert_axis)
    is_few = LessOrEqual (choices, expert_count)
    token_axis = Constant <value_ints = [2]> ()
    first_axis = Constant <value_ints = [0]> ()
    chosen_axis = Constant <value_ints = [1]> ()
    inner_axes = Constant <value_ints = [1, 2]> ()
    last_axes = Constant <value_ints = [2, 3]> ()
"""

_MOE_UP = """
    projected = If (is_few) <
        then_branch = up_chosen () => (chosen_up) {
            few_hidden = Unsqueeze (hidden, inner_axes)
            few_up = Gather <axis = 0> (up, expert_ids)
            chosen_up = MatMul (few_hidden, few_up)
        },
        else_branch = up_every () => (every_up) {
            all_up = MatMul (hidden, up)
            every_up = Unsqueeze (all_up, first_axis)
        }
    >
"""

_MOE_UP_BIAS = """
    projected = If (is_few) <
        then_branch = up_chosen () => (chosen_up) {
            few_hidden = Unsqueeze (hidden, inner_axes)
            few_up = Gather <axis = 0> (up, expert_ids)
            few_product = MatMul (few_hidden, few_up)
            few_bias = Gather <axis = 0> (up_bias, expert_ids)
            few_bias_row = Unsqueeze (few_bias, token_axis)
            chosen_up = Add (few_product, few_bias_row)
        },
        else_branch = up_every () => (every_up) {
            all_product = MatMul (hidden, up)
            all_bias = Unsqueeze (up_bias, chosen_axis)
            all_up = Add (all_product, all_bias)
            every_up = Unsqueeze (all_up, first_axis)
        }
    >
"""

_MOE_DOWN = """
    results = If (is_few) <
        then_branch = down_chosen () => (chosen_down) {
            few_down = Gather <axis = 0> (down, expert_ids)
            chosen_down = MatMul (lifted, few_down)
        },
        else_branch = down_every () => (every_down) {
            every_down = MatMul (lifted, down)
        }
    >
"""

_MOE_DOWN_BIAS = """
    results = If (is_few) <
        then_branch = down_chosen () => (chosen_down) {
            few_down = Gather <axis = 0> (down, expert_ids)
            few_result = MatMul (lifted, few_down)
            few_down_bias = Gather <axis = 0> (down_bias, expert_ids)
            few_down_row = Unsqueeze (few_down_bias, token_axis)
            chosen_down = Add (few_result, few_down_row)
        },
        else_branch = down_every () => (every_down) {
            all_result = MatMul (lifted, down)
            all_down_bias = Unsqueeze (down_bias, chosen_axis)
            every_down = Add (all_result, all_down_bias)
        }
    >
"""

# A selection leaves out the experts that a token has not chosen: one may have overflowed, and zero times infinity is NaN.
_MOE_MIX = """
    shared = If (is_few) <
        then_branch = chosen_shares () => (few_shared) {
            few_shares = Unsqueeze (expert_weights, last_axes)
            few_typed = CastLike (few_shares, results)
            few_shared = Mul (results, few_typed)
        },
        else_branch = every_share () => (all_shared) {
            zero = Constant <value_int = 0> ()
            one_expert = Constant <value_int = 1> ()
            nothing_value = Constant <value_float = 0.0> ()
            no_weight = CastLike (nothing_value, expert_weights)
            no_result = CastLike (nothing_value, results)
            outer_axes = Constant <value_ints = [0, 3]> ()
            numbers = Range (zero, expert_count, one_expert)
            id_column = Unsqueeze (expert_ids, token_axis)
            hits = Equal (id_column, numbers)
            weight_column = Unsqueeze (expert_weights, token_axis)
            spread = Where (hits, weight_column, no_weight)
            table = ReduceSum <keepdims = 0> (spread, chosen_axis)
            by_expert = Transpose <perm = [1, 0]> (table)
            all_shares = Unsqueeze (by_expert, outer_axes)
            all_typed = CastLike (all_shares, results)
            hit_numbers = Cast <to = 7> (hits)
            hit_count = ReduceMax <keepdims = 0> (hit_numbers, chosen_axis)
            is_chosen = Cast <to = 9> (hit_count)
            chosen_by_expert = Transpose <perm = [1, 0]> (is_chosen)
            all_chosen = Unsqueeze (chosen_by_expert, outer_axes)
            weighted = Mul (results, all_typed)
            all_shared = Where (all_chosen, weighted, no_result)
        }
    >
    summed = ReduceSum <keepdims = 0> (shared, chosen_axis)
    hidden_shape = Shape (hidden)
    mixed = Reshape (summed, hidden_shape)
"""

_GATE_ATTRIBUTES = (
    "activation: int = 0, gated: int = 1, interleaved: int = 0, "
    "alpha: float = 1.0, limit: float = 0.0, offset: float = 0.0"
)

_MOE = f"""
MoE <{_GATE_ATTRIBUTES}> (hidden, expert_ids, expert_weights, up, down) => (mixed)
{{{_MOE_CHOICE}{_MOE_UP}{_GATE}{_MOE_DOWN}{_MOE_MIX}}}
"""

_MOE_BIAS = f"""
MoEBias <{_GATE_ATTRIBUTES}> (hidden, expert_ids, expert_weights, up, down, up_bias, down_bias) => (mixed)
{{{_MOE_CHOICE}{_MOE_UP_BIAS}{_GATE}{_MOE_DOWN_BIAS}{_MOE_MIX}}}
"""

# Levels in the order of the inputs, two in a byte of 4-bit ones. The last block of a row may reach beyond the inputs.
_QUANTIZED_MATMUL = """
QuantizedMatMul <bits: int, input_size: int> (hidden, levels, scales, zero_points) => (product)
{
    bits_value = Constant <value_int: int = @bits> ()
    inputs_value = Constant <value_int: int = @input_size> ()
    four = Constant <value_int = 4> ()
    first = Constant <value_ints = [0]> ()
    last_axis = Constant <value_ints = [-1]> ()
    column_axis = Constant <value_ints = [1]> ()
    block_shape = Constant <value_ints = [0, 0, -1]> ()
    row_shape = Constant <value_ints = [0, -1]> ()
    two_in_a_byte = Equal (bits_value, four)
    numbers = If (two_in_a_byte) <
        then_branch = halves () => (unpacked) {
            fifteen = Constant <value_int = 15> ()
            four_bits = Constant <value_int = 4> ()
            low_mask = CastLike (fifteen, levels)
            shift = CastLike (four_bits, levels)
            low = BitwiseAnd (levels, low_mask)
            high = BitShift <direction = "RIGHT"> (levels, shift)
            low_column = Unsqueeze (low, last_axis)
            high_column = Unsqueeze (high, last_axis)
            pairs = Concat <axis = -1> (low_column, high_column)
            unpacked = Reshape (pairs, block_shape)
        },
        else_branch = bytes () => (whole) {
            whole = Identity (levels)
        }
    >
    typed = CastLike (numbers, scales)
    typed_zeros = CastLike (zero_points, scales)
    zero_column = Unsqueeze (typed_zeros, last_axis)
    scale_column = Unsqueeze (scales, last_axis)
    centred = Sub (typed, zero_column)
    blocks = Mul (centred, scale_column)
    padded_rows = Reshape (blocks, row_shape)
    end = Reshape (inputs_value, last_axis)
    rows = Slice (padded_rows, first, end, column_axis)
    weight = Transpose <perm = [1, 0]> (rows)
    weight_typed = CastLike (weight, hidden)
    product = MatMul (hidden, weight_typed)
}
"""


def _dequantised_experts(name: str) -> str:
    """Makes `name`, ``[E, in, out]`` as `MoE` takes it, of the inputs for it; ``{name}_size`` is in."""
    return f"""
    {name}_numbers = If (two_in_a_byte) <
        then_branch = {name}_halves () => ({name}_unpacked) {{
            {name}_fifteen = Constant <value_int = 15> ()
            {name}_four_bits = Constant <value_int = 4> ()
            {name}_low_mask = CastLike ({name}_fifteen, {name}_levels)
            {name}_shift = CastLike ({name}_four_bits, {name}_levels)
            {name}_low = BitwiseAnd ({name}_levels, {name}_low_mask)
            {name}_high = BitShift <direction = "RIGHT"> ({name}_levels, {name}_shift)
            {name}_low_column = Unsqueeze ({name}_low, within_block)
            {name}_high_column = Unsqueeze ({name}_high, within_block)
            {name}_pairs = Concat <axis = -1> ({name}_low_column, {name}_high_column)
            {name}_unpacked = Reshape ({name}_pairs, levels_shape)
        }},
        else_branch = {name}_bytes () => ({name}_same) {{
            {name}_same = Identity ({name}_levels)
        }}
    >
    {name}_typed = CastLike ({name}_numbers, {name}_scales)
    {name}_zeros = CastLike ({name}_zero_points, {name}_scales)
    {name}_zero_column = Unsqueeze ({name}_zeros, within_block)
    {name}_scale_column = Unsqueeze ({name}_scales, within_block)
    {name}_centred = Sub ({name}_typed, {name}_zero_column)
    {name}_blocks = Mul ({name}_centred, {name}_scale_column)
    {name}_padded = Reshape ({name}_blocks, rows_shape)
    {name}_rows = Slice ({name}_padded, from_the_first, {name}_size, row_axis)
    {name}_matrices = Transpose <perm = [0, 2, 1]> ({name}_rows)
    {name} = CastLike ({name}_matrices, hidden)
"""


# The inputs of the second product are as many as the first one has outputs, or half of them with a gate.
_EXPERT_BLOCKS = f"""
    bits_value = Constant <value_int: int = @bits> ()
    four = Constant <value_int = 4> ()
    two_in_a_byte = Equal (bits_value, four)
    from_the_first = Constant <value_ints = [0]> ()
    within_block = Constant <value_ints = [-1]> ()
    row_axis = Constant <value_ints = [2]> ()
    levels_shape = Constant <value_ints = [0, 0, 0, -1]> ()
    rows_shape = Constant <value_ints = [0, 0, -1]> ()
    up_size = Shape <start = 1, end = 2> (hidden)
    up_outputs = Shape <start = 1, end = 2> (up_levels)
    extra_halves = Constant <value_int: int = @gated> ()
    one_half = Constant <value_int = 1> ()
    half_count = Add (extra_halves, one_half)
    down_size = Div (up_outputs, half_count)
{_dequantised_experts("up")}{_dequantised_experts("down")}"""

_BLOCK_INPUTS = "up_levels, up_scales, up_zero_points, down_levels, down_scales, down_zero_points"

_QUANTIZED_MOE = f"""
QuantizedMoE <bits: int, {_GATE_ATTRIBUTES}> (hidden, expert_ids, expert_weights, {_BLOCK_INPUTS}) => (mixed)
{{{_EXPERT_BLOCKS}{_MOE_CHOICE}{_MOE_UP}{_GATE}{_MOE_DOWN}{_MOE_MIX}}}
"""

_QUANTIZED_MOE_BIAS = f"""
QuantizedMoEBias <bits: int, {_GATE_ATTRIBUTES}>
(hidden, expert_ids, expert_weights, {_BLOCK_INPUTS}, up_bias, down_bias) => (mixed)
{{{_EXPERT_BLOCKS}{_MOE_CHOICE}{_MOE_UP_BIAS}{_GATE}{_MOE_DOWN_BIAS}{_MOE_MIX}}}
"""

_BODIES = (
    _KV_UPDATE,
    _KV_UPDATE_CB,
    _KV_GATHER,
    _KV_GATHER_CB,
    _CAUSAL_MASK,
    _ATTENTION,
    _ATTENTION_BIAS,
    _ATTENTION_SINKS,
    _RMS_NORM,
    _MOE,
    _MOE_BIAS,
    _QUANTIZED_MATMUL,
    _QUANTIZED_MOE,
    _QUANTIZED_MOE_BIAS,
)


def texts() -> tuple[str, ...]:
    """The bodies as they are written here, in ONNX's text format."""
    return _BODIES


@cache
def functions() -> dict[str, onnx.FunctionProto]:
    """The body of every dialect op by op name."""
    import onnx.parser

    header = f'<opset_import: ["" : {ONNX_OPSET}], domain: "{DOMAIN}">'
    protos = [onnx.parser.parse_function(header + body) for body in _BODIES]
    return {proto.name: proto for proto in protos}


def attach_functions(model: onnx_ir.Model) -> None:
    """Adds to `model` the body of each dialect op that its graph uses, and the opset import of the domain."""
    import onnx_ir

    used = {node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN}
    for op_type in sorted(used):
        function = onnx_ir.serde.deserialize_function(functions()[op_type])
        model.functions[function.identifier()] = function
    if used:
        model.opset_imports[DOMAIN] = VERSION
