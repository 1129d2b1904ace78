"""Names that lowerings look for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

#: Domain of every dialect op.
DOMAIN = "qeff"
#: Opset version of the domain.
VERSION = 1
#: Opset of the standard ops around and inside the dialect: the one that torch's translation library is written for.
#: Another one would run the version converter, which inlines every function first.
ONNX_OPSET = 18


class Op(StrEnum):
    """The ops of the dialect by their names in a graph; `docs/architecture.md` lists their inputs."""

    KV_UPDATE = "KVUpdate"
    KV_UPDATE_CB = "KVUpdateCB"
    KV_GATHER = "KVGather"
    KV_GATHER_CB = "KVGatherCB"
    CAUSAL_MASK = "CausalMask"
    ATTENTION = "Attention"
    ATTENTION_BIAS = "AttentionBias"
    ATTENTION_SINKS = "AttentionSinks"
    RMS_NORM = "RMSNorm"
    MOE = "MoE"
    MOE_BIAS = "MoEBias"
    QUANTIZED_MATMUL = "QuantizedMatMul"
    QUANTIZED_MOE = "QuantizedMoE"
    QUANTIZED_MOE_BIAS = "QuantizedMoEBias"


class Activation(IntEnum):
    """What `MoE` does with the gate ``g`` of an expert (``alpha`` is an attribute of the op)."""

    #: ``g * sigmoid(alpha * g)``; SiLU with alpha 1.
    SWISH = 0
    #: ``g * (1 + erf(g / sqrt(2))) / 2``.
    GELU = 1
    #: ``g * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 * g ** 3))) / 2``.
    GELU_TANH = 2
    RELU = 3
    #: ``relu(g) ** 2``.
    RELU_SQUARED = 4


@dataclass(frozen=True, kw_only=True)
class Gate:
    """How an expert of `MoE` goes from its first product ``[..., U]`` to what its second one takes, ``[..., I]``.

    The fields are the attributes of the op. With a gate (U = 2 I) the result is ``activation(g) * (u + offset)``, where g and u
    are the halves of the product; without one (U = I) it is ``activation(g)``.
    """

    activation: int = Activation.SWISH
    gated: int = 1
    #: g and u are the even and the odd columns instead of the first and the second half.
    interleaved: int = 0
    #: Steepness of `Activation.SWISH`.
    alpha: float = 1.0
    #: Unless 0, g is at most this large and u lies between this and its negative before anything else is done with them.
    limit: float = 0.0
    offset: float = 0.0
