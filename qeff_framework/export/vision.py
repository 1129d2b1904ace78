"""The graph of an image encoder inside a vision-language model: the pixels of one image in, one vector per image token out.

Such encoders compute with the sizes of the image on the host: they split tokens by them, and make positions and windows of them.
So the sizes are constants of the graph, and each size of image has a graph of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export.interface import rename_interface
from qeff_framework.export.portable_graph import GraphRequest, PortableGraph
from qeff_framework.export.stages import stage
from qeff_framework.export.trace import finish, probe, trace, translate
from qeff_framework.export.weights import graph_weights
from qeff_framework.seam.adapt import adapt, fall_back_to_eager
from qeff_framework.seam.image_features import FeatureForm, OneUnit, image_encoder
from qeff_framework.seam.mask_plan import MaskPlan
from qeff_framework.seam.norms import find_rms_norms
from qeff_framework.seam.real_constants import ConstantsStayReal
from qeff_framework.seam.rotary import find_length_dependent_rotary
from qeff_framework.seam.scope import Scope, forward_scope
from qeff_framework.seam.weightless import weightless_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The input that is computed with; every other one is a constant.
PIXELS = "pixel_values"
#: Output ``[N, F]``.
EMBEDS = "vision_embeds"


def vision_graph(module: PreTrainedModel, request: GraphRequest) -> PortableGraph:
    """``vision_embeds [N, F]`` of one image: N tokens; F holds all features of a token side by side, see `FeatureForm`."""
    norms = find_rms_norms(module)
    weightless = weightless_copy(module)
    adapt(weightless, norms, find_length_dependent_rotary(module))
    constants = {name: value for name, value in request.program_inputs.items() if name != PIXELS}
    graph = _VisionGraph(weightless, constants)
    example = (request.program_inputs[PIXELS],)
    with stage("probe run"):
        embeds = probe(graph, example)
        if graph.masks.forms and graph.masks.attention_calls == 0 and fall_back_to_eager(weightless):
            graph.masks = MaskPlan()
            embeds = probe(graph, example)
    graph.masks.finish_recording()
    if embeds.dim() != 2:
        raise UnsupportedModelError(f"its image features have the shape {list(embeds.shape)}")
    with stage("trace"):
        program = trace(graph, example, ({},))
    with stage("translation to ONNX"):
        model = translate(program, graph_weights(module, norms))
        finish(model)
    rename_interface(model, inputs=[PIXELS], outputs=[EMBEDS])
    form = graph.form.as_json() if graph.form is not None else {}
    metadata = {
        "image_tokens": int(embeds.shape[0]),
        "image_features": form,
        "image": {name: _described(name, tensor) for name, tensor in request.program_inputs.items()},
    }
    return PortableGraph(model=model, metadata=metadata)


def _described(name: str, tensor: torch.Tensor) -> dict[str, Any]:
    """Shape and, of a constant, values: one number where all are equal."""
    described: dict[str, Any] = {"shape": list(tensor.shape)}
    if name == PIXELS:
        return described
    first = tensor.flatten()[0].item()
    return {**described, "values": first if bool((tensor == first).all()) else tensor.tolist()}


class _VisionGraph(torch.nn.Module):
    """Wraps a weightless copy: its forward has the signature of the portable graph."""

    def __init__(self, model: PreTrainedModel, constants: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.model = model
        self.constants = dict(constants)
        self.masks = MaskPlan()
        self.form: FeatureForm | None = None

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns ``vision_embeds``."""
        with forward_scope(Scope(masks=self.masks)), ConstantsStayReal(), OneUnit(pixel_values):
            outputs = image_encoder(self.model)(pixel_values, **self.constants, return_dict=True)
        form, embeds = FeatureForm.of(outputs)
        self.form = form
        return embeds
