"""The graph of an image encoder inside a vision-language model: the pixels of one image in, one vector per image token out.

Such encoders compute with the sizes of the image on the host: they split tokens by them, and make positions and windows of them.
So the sizes are constants of the graph, and each size of image has a graph of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export.interface import rename_interface
from qeff_framework.export.portable_graph import GraphRequest, PortableGraph
from qeff_framework.export.single_pass import SinglePassGraph, probe_layers, traced_model
from qeff_framework.export.stages import stage
from qeff_framework.export.trace import finish, probe
from qeff_framework.export.weights import graph_weights
from qeff_framework.images.units import TIMES, pixel_names
from qeff_framework.seam.adapt import adapt
from qeff_framework.seam.image_features import DerivedTensors, FeatureForm, OneUnit, encoder_arguments, image_encoder
from qeff_framework.seam.image_inputs import has_rope_axes, image_token_id
from qeff_framework.seam.norms import find_rms_norms
from qeff_framework.seam.real_constants import ConstantsStayReal
from qeff_framework.seam.rope_positions import rope_layout
from qeff_framework.seam.scope import Scope, forward_scope
from qeff_framework.seam.weightless import weightless_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from qeff_framework.images.rope_positions import RopeLayout

#: Fields of an encoder's output that its language model has features of already.
_OF_LAYERS = ("pooler_output", "last_hidden_state")
_VIDEO_GRID = "video_grid_thw"
#: Output ``[N, F]``.
EMBEDS = "vision_embeds"


def vision_graph(module: PreTrainedModel, request: GraphRequest) -> PortableGraph:
    """``vision_embeds [N, F]`` of one image: N tokens; F holds all features of a token side by side, see `FeatureForm`."""
    modality = "video" if request.program.startswith("video") else "image"
    norms = find_rms_norms(module)
    weightless = weightless_copy(module)
    # Frequencies may depend on the size of the image, which is a constant.
    adapt(weightless, norms)
    given = request.program_inputs
    pixels = pixel_names({name: value.numpy() for name, value in given.items()})
    graph = _VisionGraph(
        weightless,
        pixels,
        {name: value for name, value in given.items() if name not in pixels},
        modality,
    )
    example = tuple(given[name] for name in pixels)
    with stage("probe run"):
        embeds, kinds = probe_layers(graph, example)
    if embeds.dim() != 2:
        raise UnsupportedModelError(f"its image features have the shape {list(embeds.shape)}")
    sizes = {name: value for name, value in given.items() if name not in pixels}
    groups, layout = _layout(module, sizes, embeds.shape[0], modality)
    _, model = traced_model(graph, example, (tuple({} for _ in example),), graph_weights(module, norms), kinds)
    finish(model)
    rename_interface(model, inputs=list(pixels), outputs=[EMBEDS])
    form = {} if graph.form is None else _with_constants(graph, graph.form, given, example).as_json()
    metadata: dict[str, Any] = {
        "image_tokens": int(embeds.shape[0]),
        "image_features": form,
        "image": {
            name: {"shape": list(tensor.shape), "values": None}
            if name in TIMES
            else _described(tensor, constant=name not in pixels)
            for name, tensor in given.items()
        },
    }
    if modality != "image":
        metadata["modality"] = modality
    if groups > 1:
        metadata["groups"] = groups
    if layout is not None:
        metadata["rope_layout"] = layout.as_json()
    return PortableGraph(model=model, metadata=metadata)


def _with_constants(
    graph: _VisionGraph, form: FeatureForm, given: Mapping[str, torch.Tensor], example: tuple[torch.Tensor, ...]
) -> FeatureForm:
    """The form with further fields of the encoder's output that the pixels have no part in."""
    if not graph.further:
        return form
    graph.follows = True
    with stage("probe run"):
        probe(graph, example)
    graph.follows = False
    constants = [name for name, is_derived in graph.further.items() if not is_derived]
    return form.with_constants(constants, given) if constants else form


def _layout(
    module: PreTrainedModel, given: Mapping[str, torch.Tensor], tokens: int, modality: str
) -> tuple[int, RopeLayout | None]:
    """Where the tokens of this image stand, of a model whose positions have several axes.

    Those of a video may stand in groups, one for each of its times.
    """
    if not has_rope_axes(type(module)):
        return 1, None
    token_id = image_token_id(module, modality)
    times = int(given[_VIDEO_GRID][0, 0]) if _VIDEO_GRID in given else 1
    try:
        return 1, rope_layout(module, token_id, given, tokens, modality)
    except UnsupportedModelError:
        if times < 2 or tokens % times:
            raise
        return times, rope_layout(module, token_id, given, tokens, modality, groups=times)


def _described(tensor: torch.Tensor, *, constant: bool) -> dict[str, Any]:
    """Shape and, of a constant, values: one number where all are equal."""
    described: dict[str, Any] = {"shape": list(tensor.shape)}
    if not constant:
        return described
    first = tensor.flatten()[0].item()
    return {**described, "values": first if bool((tensor == first).all()) else tensor.tolist()}


class _VisionGraph(SinglePassGraph):
    """Wraps a weightless copy: its forward has the signature of the portable graph."""

    def __init__(
        self, model: PreTrainedModel, pixels: Sequence[str], constants: Mapping[str, torch.Tensor], modality: str
    ) -> None:
        super().__init__(model)
        self.pixels = tuple(pixels)
        self.constants = dict(constants)
        self.modality = modality
        self.form: FeatureForm | None = None
        #: Further tensors of the encoder's output, and whether they are computed from the pixels, if that was followed.
        self.further: dict[str, bool] = {}
        self.follows = False

    def forward(self, *pixels: torch.Tensor) -> torch.Tensor:
        """Returns ``vision_embeds``."""
        given = dict(zip(self.pixels, pixels, strict=True))
        derived = DerivedTensors(pixels)
        scope = Scope(masks=self.masks)
        with forward_scope(scope), ConstantsStayReal(), OneUnit(pixels), self.around_layers(), ExitStack() as following:
            if self.follows:
                following.enter_context(derived)
            arguments = encoder_arguments(self.model, {**given, **self.constants}, self.modality)
            outputs = image_encoder(self.model, self.modality)(**arguments, return_dict=True)
        form, embeds = FeatureForm.of(outputs)
        self.further = {
            name: value in derived
            for name, value in vars(outputs).items()
            if isinstance(value, torch.Tensor) and name not in _OF_LAYERS
        }
        self.form = form
        return embeds
