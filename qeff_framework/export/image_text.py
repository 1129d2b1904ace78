"""The graphs of a vision-language model: its image encoder, and the language model beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qeff_framework.errors import ExportError
from qeff_framework.export.causal_lm import causal_lm_graph
from qeff_framework.export.images_in_one import images_in_one
from qeff_framework.export.portable_graph import GraphRequest, PortableGraph
from qeff_framework.export.seq2seq_lm import speech_decoder_graph
from qeff_framework.export.vision import vision_graph
from qeff_framework.seam.image_features import FeatureForm, decoder_attends
from qeff_framework.seam.image_inputs import ImageInputs, image_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def image_text_graph(module: PreTrainedModel, request: GraphRequest) -> PortableGraph:
    """The program that is asked for: ``"vision"``, see `vision_graph`, or ``"language"``, with the inputs of `images.rows`.

    Where the decoder attends to images, ``"language"`` is that decoder, with ``encoder_hidden_states [B, T, D]``.

    Without a name it is both in one, for the tensors of an image, see `images_in_one`.
    """
    if request.program.startswith(("vision", "video")):
        return vision_graph(module, request)
    if request.program == "language" and decoder_attends(type(module)):
        form = FeatureForm.from_json(request.program_inputs)
        return speech_decoder_graph(module, sum(form.widths))
    if request.program == "language":
        forms = dict(request.program_inputs)
        video = forms.pop("video", None)
        return _language_graph(
            module, request, FeatureForm.from_json(forms), None if video is None else FeatureForm.from_json(video)
        )
    if request.program or not request.program_inputs:
        raise ExportError(
            "a vision-language model is exported as the programs 'vision' and 'language'; compile() asks for them"
        )
    vision = vision_graph(module, request)
    language = _language_graph(module, request, FeatureForm.from_json(vision.metadata["image_features"]))
    return images_in_one(vision, language)


def _language_graph(
    module: PreTrainedModel, request: GraphRequest, form: FeatureForm, video: FeatureForm | None = None
) -> PortableGraph:
    images = ImageInputs.of(module, form, video)
    graph = causal_lm_graph(module, request, images=images)
    metadata = {**graph.metadata, "image_token_id": images.token_id}
    if video is not None:
        metadata["video_token_id"] = image_token_id(module, "video")
    if form.tile_tokens:
        metadata["tile_tokens"] = form.tile_tokens
    return PortableGraph(model=graph.model, states=graph.states, metadata=metadata)
