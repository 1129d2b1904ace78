"""What the graph of a language model takes of images, beside tokens and positions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.images.rows import (
    BESIDE,
    IMAGE_POSITIONS,
    ROPE_POSITIONS,
    TILES_SEEN,
    TOKEN_TYPES,
    VISION_EMBEDS,
    VISION_INDEX,
)
from qeff_framework.seam.attended_images import attending_layers, seeing_tiles
from qeff_framework.seam.image_features import ENCODER_OUTPUTS, FeatureForm, RowForEveryToken, class_without_head
from qeff_framework.seam.rope_positions import rope_axes
from qeff_framework.seam.scope import Memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


#: Sizes of examples, each another one than those of the example step.
_EXAMPLE_FEATURES, _EXAMPLE_TOKENS, _EXAMPLE_TILES = 7, 9, 10
#: Slots of the states of cross-attention in an example.
EXAMPLE_SLOTS = 11


@dataclass(frozen=True, kw_only=True)
class ImagesOfStep:
    """What one forward pass gets of images."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    mode: AbstractContextManager[object] = field(default_factory=nullcontext)
    #: What layers that attend to images read.
    memory: Memory | None = None


NO_IMAGES_IN_STEP = ImagesOfStep()


@dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """The inputs of one model's graph."""

    names: tuple[str, ...] = ()
    form: FeatureForm | None = None
    #: That of videos, where the model is to read some.
    video: FeatureForm | None = None
    #: Name under which the forward takes the kinds of tokens.
    token_types: str = ""
    #: Id that stands in a text for an image token. Examples consist of it: Transformers compares its count with the features.
    token_id: int = 0
    #: Axes of a token's position.
    rope_axes: int = 1
    #: The kind of a token that sees those in front of it alone; the other kind sees its block.
    plain_type: int = 0
    #: Layers that attend to images.
    attending: frozenset[int] = frozenset()

    @classmethod
    def of(cls, model: PreTrainedModel, form: FeatureForm, video: FeatureForm | None = None) -> ImageInputs:
        """The inputs that a model needs, read from what its parts are called and take."""
        if form.tile_tokens:
            names = [VISION_EMBEDS, IMAGE_POSITIONS, TILES_SEEN]
            return cls(names=tuple(names), form=form, token_id=image_token_id(model), attending=attending_layers(model))
        names = [VISION_EMBEDS, VISION_INDEX]
        token_id, axes = image_token_id(model), 1
        if has_rope_axes(type(model)):
            names.append(ROPE_POSITIONS)
            axes = rope_axes(model, token_id)
        token_types = sees_image_tokens_ahead(type(model))
        if token_types:
            names.append(TOKEN_TYPES)
        if video is not None and token_types:
            raise UnsupportedModelError(
                "the tokens of its images see each other, and how those of videos do is not known"
            )
        if video is not None and sum(video.widths) != sum(form.widths):
            raise UnsupportedModelError("the features of its videos are of another width than those of its images")
        return cls(
            names=tuple(names), form=form, video=video, token_types=token_types, token_id=token_id, rope_axes=axes
        )

    def axes(self, name: str) -> Mapping[int, str]:
        """The symbolic dimensions of an input."""
        if self.attending:
            axes = {0: "batch_size", 1: "encoder_seq_len"}
            return {0: "batch_size", 1: "seq_len", 2: "image_tiles"} if name == TILES_SEEN else axes
        return {
            VISION_EMBEDS: {0: "batch_size", 1: "vision_size"},
            VISION_INDEX: {0: "batch_size", 1: "seq_len"},
            ROPE_POSITIONS: {1: "batch_size", 2: "seq_len"},
            TOKEN_TYPES: {0: "batch_size", 1: "ctx_len"},
        }[name]

    def example(self, name: str, batch: int, tokens: int, context: int) -> torch.Tensor:
        """A value of the right shape."""
        form = self._form()
        if name == TILES_SEEN:
            return torch.ones((batch, tokens, _EXAMPLE_TILES), dtype=torch.int64)
        if name == IMAGE_POSITIONS:
            return torch.arange(_EXAMPLE_TOKENS).expand(batch, -1).contiguous()
        if name == VISION_EMBEDS and self.attending:
            return torch.zeros(batch, _EXAMPLE_TOKENS, sum(form.widths))
        if name == VISION_EMBEDS:
            return torch.zeros(batch, _EXAMPLE_FEATURES, sum(form.widths))
        if name == VISION_INDEX:
            return torch.zeros((batch, tokens), dtype=torch.int64)
        if name == ROPE_POSITIONS:
            return torch.arange(tokens).expand(self.rope_axes, batch, -1).contiguous()
        return torch.full((batch, context), self.plain_type)

    def of_step(
        self,
        given: Mapping[str, torch.Tensor],
        input_ids: torch.Tensor,
        model: PreTrainedModel,
        slots: int = EXAMPLE_SLOTS,
    ) -> ImagesOfStep:
        """What the forward of one step of `model` gets; `slots` of the states of layers that attend to images."""
        if not self.names:
            return NO_IMAGES_IN_STEP
        if self.attending:
            return self._attended(given, input_ids, model, slots)
        embeds, index = given[VISION_EMBEDS], given[VISION_INDEX]
        require: Any = torch._check  # noqa: SLF001  (documented for exports, and untyped)
        require(embeds.shape[0] == input_ids.shape[0])
        require(index.shape[0] == input_ids.shape[0])
        require(index.shape[1] == input_ids.shape[1])
        rows = embeds.gather(1, index.clamp(min=0).unsqueeze(2).expand(-1, -1, embeds.shape[2]))
        form = self._form()
        outputs = form.output(rows.flatten(0, 1), form.constant_fields(model))
        of_modality = {"image": outputs}
        if self.video is not None:
            of_modality["video"] = self.video.output(rows.flatten(0, 1))
        arguments: dict[str, Any] = {ENCODER_OUTPUTS: of_modality}
        if ROPE_POSITIONS in self.names:
            positions = given[ROPE_POSITIONS]
            require(positions.shape[1] == input_ids.shape[0])
            require(positions.shape[2] == input_ids.shape[1])
            arguments["position_ids"] = positions
        if self.token_types:
            arguments[self.token_types] = given[TOKEN_TYPES]
        return ImagesOfStep(
            arguments=arguments, mode=RowForEveryToken(index >= 0, index == BESIDE, modalities=len(of_modality))
        )

    def _attended(
        self,
        given: Mapping[str, torch.Tensor],
        input_ids: torch.Tensor,
        model: PreTrainedModel,
        slots: int,
    ) -> ImagesOfStep:
        embeds, positions, kinds = given[VISION_EMBEDS], given[IMAGE_POSITIONS], given[TILES_SEEN]
        require: Any = torch._check  # noqa: SLF001  (documented for exports, and untyped)
        for tensor in (embeds, positions, kinds):
            require(tensor.shape[0] == input_ids.shape[0])
        require(embeds.shape[1] == positions.shape[1])
        require(kinds.shape[1] == input_ids.shape[1])
        kv_positions = torch.arange(slots)
        # Which slots hold something is told by what a token sees.
        memory = Memory(position_ids=positions, lengths=positions[:, :1], kv_positions=kv_positions)
        return ImagesOfStep(
            arguments={"cross_attention_states": embeds},
            mode=seeing_tiles(model, kinds, kv_positions, self._form().tile_tokens),
            memory=memory,
        )

    def _form(self) -> FeatureForm:
        if self.form is None:
            raise RuntimeError("a model without images has no image inputs")
        return self.form


NO_IMAGES = ImageInputs()


def image_token_id(model: PreTrainedModel, modality: str = "image") -> int:
    """The id that stands in a text for an image token. Raises `UnsupportedModelError` where the config names none."""
    for name in (f"{modality}_token_id", f"{modality}_token_index"):
        found = getattr(model.config, name, None)
        if isinstance(found, int):
            return found
    raise UnsupportedModelError(
        f"its config names no {modality}_token_id, the token that features are put in the place of"
    )


def sees_image_tokens_ahead(model_class: Any) -> str:
    """Name under which a forward takes the kinds of tokens, by which it lets the tokens of an image see each other; "" for none.

    Models whose positions have several axes take them to make these positions, and mask by nothing but the order of the tokens.
    """
    if has_rope_axes(model_class):
        return ""
    parameters = inspect.signature(model_class.forward).parameters
    return next((name for name in ("token_type_ids", "mm_token_type_ids") if name in parameters), "")


def has_rope_axes(model_class: Any) -> bool:
    """Whether positions have several axes: the class makes them of the sizes of images.

    It, or the model without its head, ``XModel`` beside ``XForConditionalGeneration``.
    """
    return any(hasattr(owner, "get_rope_index") for owner in (model_class, class_without_head(model_class)))
