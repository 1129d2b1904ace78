"""The graphs of a speech model with encoder and decoder: one program each.

The encoder runs once for a clip and has one shape or a few; the decoder runs once for each token. As one graph, every token would
pay for the encoder on a device that cannot branch.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import ExportError, UnsupportedModelError
from qeff_framework.export.portable_graph import GraphRequest, PortableGraph
from qeff_framework.export.seq2seq_lm import speech_decoder_graph
from qeff_framework.export.signals import Signal, signal_graph

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def speech_seq2seq_graph(module: PreTrainedModel, request: GraphRequest) -> PortableGraph:
    """The program that is asked for: ``"encoder"``, with ``last_hidden_state [B, T, D]``, or ``"decoder"``."""
    if request.program == "encoder":
        return signal_graph(
            module,
            Signal.of(request),
            fields=("last_hidden_state",),
            axes=("batch", "frames", "features"),
            call=_encoder,
        )
    if request.program != "decoder":
        raise ExportError(
            "a speech model with encoder and decoder is exported as the programs 'encoder' and 'decoder'; compile() asks for them"
        )
    return speech_decoder_graph(module, int(request.program_inputs["hidden_size"]))


def _encoder(model: PreTrainedModel, **inputs: Any) -> Any:
    encoder: Any = model.get_encoder()
    unknown = [name for name in inputs if name not in inspect.signature(encoder.forward).parameters]
    if unknown:
        raise UnsupportedModelError(f"its encoder takes no {' and no '.join(unknown)}")
    return encoder(**inputs)
