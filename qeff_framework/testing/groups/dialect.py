"""Each op of the dialect alone, against its reference semantics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.contracts import Specialization
from qeff_framework.dialect.names import Activation, Gate
from qeff_framework.testing.checks import check, require
from qeff_framework.testing.comparing import require_close
from qeff_framework.testing.groups.execute import output_of
from qeff_framework.testing.layers import (
    PLAIN_IDS,
    POISON,
    QUERIES,
    SLOTS,
    STEPS,
    Layer,
    LayerReference,
    Sizes,
    cached_layer,
    feeds,
    heads,
    plain_layer,
    step_inputs,
    tables,
    valid_part,
)
from qeff_framework.testing.programs import CACHE_ROWS, CHUNK, CTX_LEN, VOCAB, SmallProgram, steps_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qeff_framework.testing.layers import Arrays
    from qeff_framework.testing.subject import Subject

PADDING: Final = (*POISON,)
#: Half the context, and all of it, for compute contexts.
SHORT: Final = 5


def follow(subject: Subject, layer: Layer, *, padding: str = "large", sizes: Sizes | None = None) -> None:
    """Compiles the layer, runs its steps and compares each with the reference."""
    subject.need("causal-lm" in subject.capabilities.tasks, "task 'causal-lm'")
    session, reference = subject.session(layer.program), LayerReference(layer, sizes)
    for number, inputs in enumerate(step_inputs(layer, padding=padding)):
        got, expected = output_of(session, inputs), reference.step(inputs)
        told = f"step {number}, position_ids {inputs['position_ids'].tolist()}"
        require_close(subject, valid_part(layer, inputs, got), valid_part(layer, inputs, expected), told)


# --- caches -----------------------------------------------------------------------------------------------------------

_BOTH_CACHES = "logits = Concat <axis = 3> (past_key_0_RetainedState, past_value_0_RetainedState)"


def _caches(_inputs: Arrays, states: Arrays) -> NDArray[Any]:
    import numpy as np

    return np.concatenate([states["past_key.0"], states["past_value.0"]], axis=3)


@functools.cache
def _update() -> Layer:
    return cached_layer("kv_update", _BOTH_CACHES, _caches, output="batch_size, 2, ctx_len, 8", token_axis=None)


@functools.cache
def _update_cb() -> Layer:
    return cached_layer(
        "kv_update_cb",
        _BOTH_CACHES,
        _caches,
        output="full_batch_size, 2, ctx_len, 8",
        token_axis=None,
        continuous=True,
        specializations=steps_of(CHUNK, 1, full_batch_size=CACHE_ROWS),
    )


@check("dialect", cases=PADDING)
def check_kv_update(subject: Subject, padding: str) -> None:
    """`KVUpdate` writes each token into its slot and leaves every other slot as it is; padding writes nothing."""
    follow(subject, _update(), padding=padding)


@check("dialect", cases=PADDING)
def check_kv_update_cb(subject: Subject, padding: str) -> None:
    """`KVUpdateCB` does so in the rows that `batch_index` names, and leaves other rows as they are."""
    subject.need(subject.capabilities.continuous_batching, "continuous_batching")
    follow(subject, _update_cb(), padding=padding)


@check("dialect")
def check_kv_gather_cb(subject: Subject) -> None:
    """`KVGatherCB` reads the rows that `batch_index` names, in their order."""
    import numpy as np

    subject.need(subject.capabilities.continuous_batching, "continuous_batching")
    layer = cached_layer(
        "kv_gather_cb",
        SLOTS
        + """
        keys_read = qeff.KVGatherCB (past_key_0_RetainedState, batch_index, slots)
        values_read = qeff.KVGatherCB (past_value_0_RetainedState, batch_index, slots)
        logits = Concat <axis = 3> (keys_read, values_read)
        """,
        lambda inputs, states: np.concatenate(
            [states[name][inputs["batch_index"][:, 0]] for name in ("past_key.0", "past_value.0")], axis=3
        ),
        output="batch_size, 2, ctx_len, 8",
        token_axis=None,
        continuous=True,
        specializations=steps_of(CHUNK, 1, full_batch_size=CACHE_ROWS),
    )
    follow(subject, layer)


@check("dialect")
def check_kv_gather(subject: Subject) -> None:
    """`KVGather` reads the first slots, as many as the compute context of the step."""
    import numpy as np

    subject.need(subject.capabilities.compute_contexts, "compute_contexts")
    read_slots = """
        read_count = Shape <start = 0, end = 1> (comp_ctx_lengths)
        read_limit = Squeeze (read_count)
        read = Range (zero, read_limit, one)
        keys_read = qeff.KVGather (past_key_0_RetainedState, read)
        values_read = qeff.KVGather (past_value_0_RetainedState, read)
        mask = qeff.CausalMask <window = 0, chunk = 0> (position_ids, read)
        logits = qeff.Attention <scale: float = 0.5, softcap: float = 0.0> (queries, keys_read, values_read, mask)
    """

    def expected(inputs: Arrays, states: Arrays) -> NDArray[Any]:
        from qeff_framework.dialect import reference

        read = np.arange(len(inputs["comp_ctx_lengths"]))
        caches = [reference.kv_gather(states[name], read) for name in ("past_key.0", "past_value.0")]
        mask = reference.causal_mask(inputs["position_ids"], read)
        queries = heads(layer.constants["query_table"], inputs["input_ids"], 4)
        return reference.attention(queries, caches[0], caches[1], mask, scale=0.5)

    layer = cached_layer(
        "kv_gather",
        QUERIES + read_slots,
        expected,
        output="batch_size, 4, seq_len, 4",
        more_inputs=", int64[comp_ctx_lengths] comp_ctx_lengths",
        specializations=(
            *steps_of(CHUNK, comp_ctx_lengths=SHORT),
            *steps_of(1, comp_ctx_lengths=CTX_LEN),
        ),
    )
    session, reference_layer = subject.session(layer.program), LayerReference(layer)
    for positions, length in (
        (STEPS[0], SHORT),
        (STEPS[1], CTX_LEN),
        (((5,), (-1,)), CTX_LEN),
        (((8,), (3,)), CTX_LEN),
    ):
        inputs = feeds(positions, comp_ctx_lengths=np.zeros(length, np.int64))
        got, wanted = output_of(session, inputs), reference_layer.step(inputs)
        told = f"positions {positions} with {length} slots"
        require_close(subject, valid_part(layer, inputs, got), valid_part(layer, inputs, wanted), told)


# --- masks ------------------------------------------------------------------------------------------------------------

_MASKS: Final[Mapping[str, tuple[int, int]]] = {
    "causal": (0, 0),
    "window": (3, 0),
    "window of one": (1, 0),
    "chunk": (0, 4),
}


@check("dialect", cases=(*_MASKS,))
def check_causal_mask(subject: Subject, case: str) -> None:
    """`CausalMask` shows a token the slots up to its own, within the window and the chunk."""
    import numpy as np

    from qeff_framework.dialect import reference

    window, chunk = _MASKS[case]
    layer = cached_layer(
        f"causal_mask_{window}_{chunk}",
        SLOTS
        + f"""
        mask = qeff.CausalMask <window = {window}, chunk = {chunk}> (position_ids, slots)
        logits = Cast <to = 1> (mask)
        """,
        lambda inputs, states: reference.causal_mask(inputs["position_ids"], np.arange(CTX_LEN), window, chunk).astype(
            np.float32
        ),
        output="batch_size, 1, seq_len, ctx_len",
    )
    follow(subject, layer)


# --- attention --------------------------------------------------------------------------------------------------------


def _attention(
    name: str,
    *,
    window: int = 0,
    chunk: int = 0,
    scale: float = 0.5,
    softcap: float = 0.0,
    sizes: Sizes | None = None,
    form: str = "mask",
) -> Layer:
    """Attention over a cache. `form`: with a mask, with a ``bias`` in its place, or with ``sinks``."""
    import numpy as np

    from qeff_framework.dialect import reference

    found = sizes or Sizes()
    operands = "queries, past_key_0_RetainedState, past_value_0_RetainedState"
    attributes = f"<scale: float = {scale}, softcap: float = {softcap}>"
    body = {
        "mask": f"logits = qeff.Attention {attributes} ({operands}, mask)",
        "bias": f"""
            slopes = Cast <to = 1> (slots)
            sloped = Mul (slopes, slope)
            hidden = CastLike (lowest, sloped)
            bias = Where (mask, sloped, hidden)
            logits = qeff.AttentionBias {attributes} ({operands}, bias)""",
        "sinks": f"logits = qeff.AttentionSinks {attributes} ({operands}, mask, sinks)",
    }[form]
    lowest, slope = np.finfo(np.float32).min, np.float32(-0.25)
    sinks = np.linspace(-1, 2, found.query_heads).astype(np.float32)

    def expected(inputs: Arrays, states: Arrays) -> NDArray[Any]:
        mask = reference.causal_mask(inputs["position_ids"], np.arange(CTX_LEN), window, chunk)
        queries = heads(layer.constants["query_table"], inputs["input_ids"], found.query_heads)
        keys, values = states["past_key.0"], states["past_value.0"]
        settings = {"scale": scale, "softcap": softcap}
        if form == "sinks":
            return reference.attention_sinks(queries, keys, values, mask, sinks, **settings)
        if form == "bias":
            bias = np.where(mask, (np.arange(CTX_LEN) * slope).astype(np.float32), lowest)
            return reference.attention_bias(queries, keys, values, bias, **settings)
        return reference.attention(queries, keys, values, mask, **settings)

    layer = cached_layer(
        name,
        SLOTS + QUERIES + f"mask = qeff.CausalMask <window = {window}, chunk = {chunk}> (position_ids, slots)\n{body}",
        expected,
        output=f"batch_size, {found.query_heads}, seq_len, {found.value_dim}",
        sizes=found,
        constants={"lowest": np.array(lowest), "slope": np.array(slope), "sinks": sinks},
    )
    return layer


_ATTENTION: Final[Mapping[str, Callable[[], tuple[Layer, Sizes | None]]]] = {
    "grouped heads": lambda: (_attention("attention_grouped"), None),
    "one head each": lambda: _sized("attention_plain", Sizes(query_heads=2)),
    "one key head": lambda: _sized("attention_multi_query", Sizes(key_heads=1)),
    "wider values": lambda: _sized("attention_wide", Sizes(value_dim=6)),
    "scale": lambda: (_attention("attention_scale", scale=0.125), None),
    "softcap": lambda: (_attention("attention_softcap", softcap=1.5), None),
    "window": lambda: (_attention("attention_window", window=3), None),
    "chunk": lambda: (_attention("attention_chunk", chunk=4), None),
    "bias": lambda: (_attention("attention_bias", form="bias"), None),
    "bias with softcap": lambda: (_attention("attention_bias_softcap", form="bias", softcap=1.5), None),
    "sinks": lambda: (_attention("attention_sinks", form="sinks"), None),
    "sinks with window": lambda: (_attention("attention_sinks_window", form="sinks", window=3), None),
}


def _sized(name: str, sizes: Sizes) -> tuple[Layer, Sizes]:
    return _attention(name, sizes=sizes), sizes


@check("dialect", cases=(*_ATTENTION,))
def check_attention(subject: Subject, case: str) -> None:
    """`Attention`, `AttentionBias` and `AttentionSinks` compute what the reference computes, over a cache."""
    layer, sizes = _ATTENTION[case]()
    follow(subject, layer, sizes=sizes)


_FORMS: Final = {"mask": "grouped heads", "bias": "bias", "sinks": "sinks"}


@check("dialect", cases=[f"{form}, {padding}" for form in _FORMS for padding in ("infinite", "nan")])
def check_attention_padding(subject: Subject, case: str) -> None:
    """Padding takes no part in attention, infinities and NaN included."""
    form, _, padding = case.partition(", ")
    layer, sizes = _ATTENTION[_FORMS[form]]()
    follow(subject, layer, padding=padding, sizes=sizes)


@check("dialect", cases=[f"{form}, {poison}" for form in _FORMS for poison in ("infinite", "nan")])
def check_unused_slots(subject: Subject, case: str) -> None:
    """Slots that no token sees take no part, even if a text before has left infinities or NaN there."""
    import numpy as np

    form, _, poison = case.partition(", ")
    layer, _ = _ATTENTION[_FORMS[form]]()
    subject.need("causal-lm" in subject.capabilities.tasks, "task 'causal-lm'")
    session, reference = subject.session(layer.program), LayerReference(layer)
    overflown = feeds([[0, 1, 2, 3], [0, 1, -1, -1]])
    overflown["input_ids"] = np.where(overflown["position_ids"] >= 2, POISON[poison], overflown["input_ids"])
    session.run(overflown)
    reference.step(overflown)
    # The row begins anew: the slots 2 and 3 are not seen before they are written again.
    for positions in ([[0], [-1]], [[1], [-1]], [[2, 3, 4, 5], [-1] * 4]):
        inputs = feeds(positions, text=1)
        got, expected = output_of(session, inputs), reference.step(inputs)
        told = f"positions {positions[0]} after a text that had overflowed"
        require_close(subject, valid_part(layer, inputs, got), valid_part(layer, inputs, expected), told)


# --- norms ------------------------------------------------------------------------------------------------------------

_MAGNITUDES: Final[Mapping[str, float]] = {"small": 1e-3, "ordinary": 1.0, "large": 300.0, "zero": 0.0}
_WIDTH: Final = 16


@check("dialect", cases=[*_MAGNITUDES, "nan padding"])
def check_rms_norm(subject: Subject, case: str) -> None:
    """`RMSNorm` is computed in float32: neither the squares of large numbers overflow, nor do those of small ones vanish."""
    import numpy as np

    from qeff_framework.dialect import reference

    magnitude = _MAGNITUDES.get(case, 1.0)
    table = tables(3, table=_WIDTH)["table"]
    table[:PLAIN_IDS] *= np.float32(magnitude)
    weight = np.linspace(0.5, 1.5, _WIDTH).astype(np.float32)
    layer = plain_layer(
        f"rms_norm_{case.replace(' ', '_')}",
        "hidden = Gather (table, input_ids)\nlogits = qeff.RMSNorm <epsilon: float = 1e-6> (hidden, weight)",
        lambda inputs, _: reference.rms_norm(table[inputs["input_ids"]], weight, epsilon=1e-6),
        output=f"batch_size, seq_len, {_WIDTH}",
        constants={"table": table, "weight": weight},
    )
    follow(subject, layer, padding="nan" if case == "nan padding" else "large")


# --- experts ----------------------------------------------------------------------------------------------------------

_GATES: Final[Mapping[str, Gate]] = {
    "swish": Gate(),
    "gelu": Gate(activation=Activation.GELU),
    "gelu tanh": Gate(activation=Activation.GELU_TANH),
    "relu": Gate(activation=Activation.RELU),
    "relu squared": Gate(activation=Activation.RELU_SQUARED),
    "without a gate": Gate(activation=Activation.RELU, gated=0),
    "interleaved": Gate(interleaved=1),
    "limit, alpha and offset": Gate(interleaved=1, alpha=1.702, limit=0.7, offset=1.0),
}
_EXPERTS, _CHOSEN, _HIDDEN, _INNER = 5, 2, 8, 6
#: Inputs with one scale, where weights are quantised.
_BLOCK: Final = 16


def _experts(name: str, gate: Gate, *, biased: bool, poison: float = 0.0) -> Layer:
    """A mixture of experts; the last expert is chosen by no token and holds `poison`."""
    import numpy as np

    from qeff_framework.dialect import reference

    random = np.random.default_rng(5)

    def draw(*shape: int) -> NDArray[np.float32]:
        return (random.standard_normal(shape) * 0.6).astype(np.float32)

    outer = _INNER * (2 if gate.gated else 1)
    up, down = draw(_EXPERTS, _HIDDEN, outer), draw(_EXPERTS, _INNER, _HIDDEN)
    up[-1], down[-1] = up[-1] + poison, down[-1] + poison
    biases = (draw(_EXPERTS, outer), draw(_EXPERTS, _HIDDEN)) if biased else None
    constants: Arrays = {"up": up, "down": down}
    if biases is not None:
        constants |= {"up_bias": biases[0], "down_bias": biases[1]}
    return _mixture_layer(
        name,
        "MoEBias" if biased else "MoE",
        asdict(gate),
        constants,
        functools.partial(reference.moe, up=up, down=down, biases=biases, gate=gate),
    )


def _quantized_experts(
    name: str, gate: Gate, *, bits: int, sizes: tuple[int, int], biased: bool, poison: float = 0.0
) -> Layer:
    """As `_experts`, in blocks of 16 inputs. `sizes`: hidden and inner one; the scales of the last expert hold `poison`."""
    import numpy as np

    from qeff_framework.dialect import reference

    random = np.random.default_rng(7)
    hidden, inner = sizes
    outer, inputs = inner * (2 if gate.gated else 1), {"up": hidden, "down": inner}
    constants: Arrays = {}
    for weight, outputs in (("up", outer), ("down", hidden)):
        shape = (_EXPERTS, outputs, -(-inputs[weight] // _BLOCK))
        constants[f"{weight}_levels"] = random.integers(0, 256, (*shape, _BLOCK * bits // 8)).astype(np.uint8)
        constants[f"{weight}_scales"] = ((random.random(shape) + 0.5) / 2 / 2**bits).astype(np.float32)
        constants[f"{weight}_scales"][-1] += poison
        constants[f"{weight}_zero_points"] = random.integers(0, 2**bits, shape).astype(np.uint8)
    first, second, third, *others = constants.values()
    drawn = [random.standard_normal((_EXPERTS, size)).astype(np.float32) for size in (outer, hidden)]
    biases = (drawn[0], drawn[1]) if biased else None
    if biased:
        constants |= {"up_bias": drawn[0], "down_bias": drawn[1]}
    return _mixture_layer(
        name,
        "QuantizedMoEBias" if biased else "QuantizedMoE",
        {"bits": bits, **asdict(gate)},
        constants,
        functools.partial(
            reference.quantized_moe,
            up=(first, second, third),
            down=(others[0], others[1], others[2]),
            biases=biases,
            bits=bits,
            gate=gate,
        ),
        width=hidden,
    )


def _mixture_layer(
    name: str,
    op: str,
    attributes_of_op: Mapping[str, int | float],
    weights: Arrays,
    meaning: Callable[..., NDArray[Any]],
    *,
    width: int = _HIDDEN,
) -> Layer:
    """One mixture with these inputs behind the chosen experts; `meaning` computes it of hidden states, ids and their weights."""
    import numpy as np

    random = np.random.default_rng(6)
    constants: Arrays = {
        "table": tables(6, table=width)["table"],
        # Tokens of padding have chosen as well.
        "id_table": np.stack([random.permutation(_EXPERTS - 1)[:_CHOSEN] for _ in range(VOCAB)]),
        "weight_table": (random.random((VOCAB, _CHOSEN)) + 0.1).astype(np.float32),
        **weights,
        "flat_hidden": np.array([-1, width]),
        "flat_ids": np.array([-1, _CHOSEN]),
    }
    attributes = ", ".join(
        f"{key}: {'float' if isinstance(value, float) else 'int'} = {value if isinstance(value, float) else int(value)}"
        for key, value in attributes_of_op.items()
    )
    body = f"""
        embedded = Gather (table, input_ids)
        hidden = Reshape (embedded, flat_hidden)
        chosen = Gather (id_table, input_ids)
        expert_ids = Reshape (chosen, flat_ids)
        weighted = Gather (weight_table, input_ids)
        expert_weights = Reshape (weighted, flat_ids)
        mixed = qeff.{op} <{attributes}> (hidden, expert_ids, expert_weights, {", ".join(weights)})
        full_shape = Shape (embedded)
        logits = Reshape (mixed, full_shape)
    """

    def expected(inputs: Arrays, _states: Arrays) -> NDArray[Any]:
        ids = inputs["input_ids"]
        result = meaning(
            constants["table"][ids].reshape(-1, width),
            constants["id_table"][ids].reshape(-1, _CHOSEN),
            constants["weight_table"][ids].reshape(-1, _CHOSEN),
        )
        return result.reshape(*ids.shape, width)

    return plain_layer(name, body, expected, output=f"batch_size, seq_len, {width}", constants=constants)


@check("dialect", cases=(*_GATES, "biased"))
def check_moe(subject: Subject, case: str) -> None:
    """`MoE` and `MoEBias` add what the chosen experts of a token compute, for every kind of gate."""
    gate = _GATES.get(case, Gate(interleaved=1, alpha=1.702, limit=0.7, offset=1.0))
    follow(subject, _experts(f"moe_{case.replace(' ', '_').replace(',', '')}", gate, biased=case == "biased"))


@check("dialect", cases=("infinite", "nan"))
def check_moe_padding(subject: Subject, padding: str) -> None:
    """Tokens of padding change nothing for the others, whatever they hold."""
    follow(subject, _experts("moe_swish", Gate(), biased=False), padding=padding)


@check("dialect", cases=("infinite", "nan"))
def check_moe_unused_expert(subject: Subject, poison: str) -> None:
    """An expert that a token has not chosen takes no part, whatever its weights are."""
    import numpy as np

    value = {"infinite": np.inf, "nan": np.nan}[poison]
    follow(subject, _experts(f"moe_poisoned_{poison}", Gate(), biased=False, poison=value))


# --- quantised weights ------------------------------------------------------------------------------------------------

#: Inputs and outputs of a product; the last block of inputs is half filled.
_INPUTS, _OUTPUTS = 40, 12


@check("dialect", cases=("4 bits", "8 bits", "nan padding"))
def check_quantized_matmul(subject: Subject, case: str) -> None:
    """`QuantizedMatMul` multiplies with the levels of 4 or 8 bits, with a scale and a zero point for each block."""
    import numpy as np

    from qeff_framework.dialect import reference

    bits = 8 if case == "8 bits" else 4
    random, blocks = np.random.default_rng(13), -(-_INPUTS // _BLOCK)
    table = tables(14, table=_INPUTS)["table"]
    constants: Arrays = {
        "table": table,
        "levels": random.integers(0, 256, (_OUTPUTS, blocks, _BLOCK * bits // 8)).astype(np.uint8),
        "scales": ((random.random((_OUTPUTS, blocks)) + 0.5) / 2**bits).astype(np.float32),
        "zero_points": random.integers(0, 2**bits, (_OUTPUTS, blocks)).astype(np.uint8),
    }
    weights = [constants[name] for name in ("levels", "scales", "zero_points")]
    layer = plain_layer(
        f"quantized_matmul_{bits}",
        f"""
        hidden = Gather (table, input_ids)
        logits = qeff.QuantizedMatMul <bits = {bits}, input_size = {_INPUTS}> (hidden, levels, scales, zero_points)
        """,
        lambda inputs, _: reference.quantized_matmul(
            table[inputs["input_ids"]], *weights, bits=bits, input_size=_INPUTS
        ),
        output=f"batch_size, seq_len, {_OUTPUTS}",
        constants=constants,
    )
    follow(subject, layer, padding="nan" if case == "nan padding" else "large")


@check("dialect", cases=("4 bits", "8 bits", "biased", "partly filled block", "infinite padding", "nan unused expert"))
def check_quantized_moe(subject: Subject, case: str) -> None:
    """`QuantizedMoE` and `QuantizedMoEBias` are `MoE` and `MoEBias` with weights in blocks of 4 or 8 bits."""
    import numpy as np

    gate = Gate(interleaved=1, alpha=1.702, limit=0.7, offset=1.0) if case == "biased" else Gate()
    layer = _quantized_experts(
        f"quantized_moe_{case.replace(' ', '_')}",
        gate,
        bits=8 if case == "8 bits" else 4,
        sizes=(_HIDDEN, _INNER) if case == "partly filled block" else (32, 16),
        biased=case == "biased",
        poison=np.nan if case == "nan unused expert" else 0.0,
    )
    follow(subject, layer, padding="infinite" if case == "infinite padding" else "large")


# --- encoders ---------------------------------------------------------------------------------------------------------

_ENCODER: Final = """
layer (int64[batch_size, seq_len] input_ids, int64[batch_size, seq_len] attention_mask)
=> (float[batch_size, 2, seq_len, 4] last_hidden_state)
{
    flat = Gather (table, input_ids)
    split = Reshape (flat, shape)
    states = Transpose <perm = [0, 2, 1, 3]> (split)
    is_token = Cast <to = 9> (attention_mask)
    columns = Unsqueeze (is_token, middle)
    widths = Shape (attention_mask)
    length = Gather (widths, last)
    square = Concat <axis = 0> (first, single, length, length)
    mask = Expand (columns, square)
    last_hidden_state = qeff.Attention <scale: float = 0.5, softcap: float = 0.0> (states, states, states, mask)
}
"""


@check("dialect", cases=("full", "partly filled", "all padding"))
def check_encoder_attention(subject: Subject, case: str) -> None:
    """Attention of an encoder sees every token and no padding; a row without tokens is an average, not NaN."""
    import numpy as np

    from qeff_framework.dialect import reference

    subject.need("encoder" in subject.capabilities.tasks, "task 'encoder'")
    table = tables(9, table=8)["table"]
    constants = {
        "table": table,
        "shape": np.array([0, 0, 2, 4]),
        "middle": np.array([1, 2]),
        "last": np.array([1]),
        "first": np.array([2]),
        "single": np.array([1]),
    }
    lengths = tuple(
        Specialization(name=f"encode_{length}", dims={"batch_size": 2, "seq_len": length}) for length in (6, 4)
    )
    program = SmallProgram(
        name="encoder_attention", graph=_ENCODER, constants=constants, task="encoder", specializations=lengths
    )
    session = subject.session(program)
    for item in lengths:
        length = item.dims["seq_len"]
        counts = {"full": [length, length], "partly filled": [length, 2], "all padding": [3, 0]}[case]
        mask = (np.arange(length) < np.array(counts)[:, None]).astype(np.int64)
        ids = np.where(mask, (5 * np.arange(length) + np.array([[1], [4]])) % PLAIN_IDS, POISON["large"])
        if case == "all padding":
            ids = np.where(mask, ids, 0)
        got = session.run({"input_ids": ids, "attention_mask": mask})["last_hidden_state"].copy()
        states = heads(table, ids, 2)
        seen = np.broadcast_to(mask.astype(bool)[:, None, None, :], (2, 1, length, length))
        expected = reference.attention(states, states, states, seen, scale=0.5)
        is_token = mask.astype(bool)
        found, wanted = got.swapaxes(1, 2)[is_token], expected.swapaxes(1, 2)[is_token]
        require_close(subject, found, wanted, f"{length} tokens, of which {counts} are no padding")
        require(case != "all padding" or not np.isnan(got).any(), f"a row of padding gives NaN, with {length} tokens")
