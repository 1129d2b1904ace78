"""The graphs of a model that embeds images and texts in one space: a program for each."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import ExportError, UnsupportedModelError
from qeff_framework.export.portable_graph import GraphRequest, PortableGraph
from qeff_framework.export.signals import Signal, signal_graph
from qeff_framework.export.unloaded import require_loaded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def image_and_text_graph(module: PreTrainedModel, request: GraphRequest) -> PortableGraph:
    """``"image"``: ``image_embeds [B, E]`` of pixels, ``"text"``: ``text_embeds [B, E]`` of tokens; both of length 1.

    The metadata of ``"image"`` have what turns products of the two into logits: ``logit_scale`` and ``logit_bias``.
    """
    calls = {"image": ("image_embeds", _image), "text": ("text_embeds", _text)}
    if request.program not in calls:
        raise ExportError("it is exported as the programs 'image' and 'text'; compile() asks for them")
    for name in ("get_image_features", "get_text_features", "logit_scale"):
        if not hasattr(module, name):
            raise UnsupportedModelError(f"it has no {name}, by which models of images and texts are told")
    # They become numbers in the metadata.
    require_loaded(module, "logit_scale", "logit_bias")
    field, call = calls[request.program]
    graph = signal_graph(module, Signal.of(request), fields=(field,), axes=("batch", "features"), call=call)
    if request.program == "text":
        return graph
    bias = getattr(module, "logit_bias", None)
    facts = {
        "logit_scale": math.exp(_number(module.logit_scale)),
        "logit_bias": 0.0 if bias is None else _number(bias),
    }
    return dataclasses.replace(graph, metadata={**graph.metadata, **facts})


def _number(parameter: Any) -> float:
    return float(parameter.detach().float().reshape(-1)[0])


def _image(model: Any, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"image_embeds": _normalised(model.get_image_features(**inputs))}


def _text(model: Any, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"text_embeds": _normalised(model.get_text_features(**inputs))}


def _normalised(features: Any) -> torch.Tensor:
    embeds: torch.Tensor = features if hasattr(features, "norm") else features.pooler_output
    length: torch.Tensor = embeds.norm(p=2, dim=-1, keepdim=True)
    return embeds / length
