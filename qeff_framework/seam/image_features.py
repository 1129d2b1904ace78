"""The interface between the image encoder and the language model of a vision-language model of Transformers.

``get_image_features`` returns an output object whose ``pooler_output`` holds the vectors of the image tokens, packed: those of
all images one after the other. The language model's forward takes that object as ``mm_encoder_outputs["image"]`` and scatters the
vectors over the places of the image tokens. Some models add further vectors to the hidden states of their first layers
(``deepstack_features``).

A graph of fixed sizes cannot pack: how many image tokens a step has is not known. Here every token of the step has a row, image
token or not, and what Transformers does to packed tensors by a mask is done to whole tensors by a selection.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.images.units import TIMES, VIDEO_PIXELS
from qeff_framework.seam.attended_images import (
    TILE_TOKENS,
    attended_encoder,
    attended_inputs,
    attends_beside_text,
)
from qeff_framework.seam.mask_plan import MaskPlan
from qeff_framework.seam.real_constants import ConstantsStayReal
from qeff_framework.seam.scope import Scope, forward_scope

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Keyword of the forward that takes the output of the encoders, by modality.
ENCODER_OUTPUTS = "mm_encoder_outputs"
#: Method that encodes what is seen, by modality.
_ENCODE = {"image": "get_image_features", "video": "get_video_features"}
#: Fields of the output object that hold a row for each image token; the first one there is the features themselves.
_FIELDS = ("pooler_output", "last_hidden_state")
_DEEPSTACK = "deepstack_features"


def decoder_attends(model_class: Any) -> bool:
    """Whether images are the source of an encoder-decoder: the encoder reads an image and no text, the decoder attends to it."""
    takes = inspect.signature(model_class.forward).parameters
    return (
        "encoder_outputs" in takes
        and model_class.main_input_name in takes
        and model_class.main_input_name != "input_ids"
    )


def _encoder_alone(model: PreTrainedModel) -> Callable[..., Any]:
    encoder: Any = model.get_encoder()

    @functools.wraps(encoder.forward)
    def encode(**inputs: Any) -> BaseModelOutput:
        outputs = encoder(**inputs)
        pooled = getattr(outputs, "pooler_output", None)
        # What the encoder was made for stands there, unless that is a single vector.
        return BaseModelOutput(last_hidden_state=pooled if pooled is not None and pooled.dim() == 3 else outputs[0])

    return encode


def image_encoder(model: PreTrainedModel, modality: str = "image") -> Callable[..., Any]:
    """The method that encodes images, or videos.

    Raises:
        UnsupportedModelError: the language model cannot run apart from it.
    """
    if modality != "image" and (decoder_attends(type(model)) or attends_beside_text(type(model))):
        raise UnsupportedModelError(f"its decoder attends to images, and reads no {modality}s")
    if decoder_attends(type(model)):
        return _encoder_alone(model)
    if attends_beside_text(type(model)):
        return attended_encoder(model)
    parts = (getattr(model, "model", None), model)
    name = _ENCODE[modality]
    method = next((found for part in parts if (found := getattr(part, name, None)) is not None), None)
    if method is None:
        raise UnsupportedModelError(
            f"its {modality}s do not go through {name}, the interface of Transformers between encoder and language model"
        )
    if ENCODER_OUTPUTS not in inspect.signature(_merging_forward(model)).parameters:
        raise UnsupportedModelError(
            f"its forward takes no {ENCODER_OUTPUTS}, so it cannot run apart from its image encoder"
        )
    if any(name.endswith("input_ids") for name in inspect.signature(method).parameters):
        raise UnsupportedModelError(
            "its image encoder reads the text of the prompt too, and so cannot run apart from it"
        )
    encoder: Callable[..., Any] = method
    return encoder


def encoder_arguments(
    model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], modality: str = "image"
) -> dict[str, Any]:
    """The tensors as the encoder takes them: counts as lists, where its signature says so."""
    known = inspect.signature(image_encoder(model, modality)).parameters

    def as_list(name: str) -> bool:
        told = str(known[name].annotation) if name in known else ""
        return "list" in told and "Tensor" not in told

    # Some classes call the frames of a video pixel_values.
    renamed = {VIDEO_PIXELS: "pixel_values"} if "pixel_values" in known and VIDEO_PIXELS not in known else {}
    return {
        renamed.get(name, name): value.tolist() if as_list(name) else value
        for name, value in tensors.items()
        if name not in TIMES
    }


def video_inputs(model_class: Any) -> tuple[str, ...]:
    """Names of the tensors of a processor that belong to a video: those that a forward of the class takes."""
    known = {
        name
        for owner in (model_class, class_without_head(model_class))
        if owner is not None
        for name in inspect.signature(owner.forward).parameters
    }
    return tuple(name for name in (VIDEO_PIXELS, "video_grid_thw", *TIMES) if name in known)


def encoder_inputs(model_class: Any) -> tuple[str, ...]:
    """Names of the tensors that the image encoder of a class may take; empty where it has none."""
    if decoder_attends(model_class):
        return (model_class.main_input_name, "attention_mask")
    if attends_beside_text(model_class):
        return attended_inputs(model_class)
    for owner in (model_class, class_without_head(model_class)):
        if (method := getattr(owner, _ENCODE["image"], None)) is None:
            continue
        parameters = inspect.signature(method).parameters.values()
        named = [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        # Some classes pass on whatever they get.
        if found := tuple(name for name in named if name != "self" and not name.startswith("vision_")):
            return (*found, *(name for name in _required(class_without_head(model_class)) if name not in found))
    return ()


def _required(model_class: Any) -> tuple[str, ...]:
    """Names of the tensors that the image encoder of a class cannot do without; the one with a head may pass them on unnamed."""
    method = getattr(model_class, _ENCODE["image"], None)
    if method is None:
        return ()
    parameters = inspect.signature(method).parameters.values()
    needed = [
        each.name
        for each in parameters
        if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and each.default is inspect.Parameter.empty
    ]
    return tuple(name for name in needed if name != "self" and not name.startswith("vision_"))


def class_without_head(model_class: Any) -> Any:
    """The class ``XModel`` beside ``XForConditionalGeneration``, ``XForCausalLM`` or the like; `None` where there is none."""
    module = sys.modules.get(model_class.__module__)
    return getattr(module, re.sub(r"For[A-Z]\w*$", "Model", model_class.__name__), None)


def _merging_forward(model: PreTrainedModel) -> Callable[..., Any]:
    """The forward that puts features in the places of image tokens: the model's, or that of the part without the head."""
    base = getattr(model, "model", None)
    for part in (model, base):
        if part is not None and ENCODER_OUTPUTS in inspect.signature(part.forward).parameters:
            forward: Callable[..., Any] = part.forward
            return forward
    return model.forward


@dataclass(frozen=True, kw_only=True)
class FeatureForm:
    """How the features of an image token lie side by side in one vector, and the form in which the language model wants them."""

    #: Field of the output object; empty where all features go to layers.
    field: str
    #: The field is a list with one tensor for each image, not one tensor.
    is_list: bool
    #: Width of the features, then of each deepstack feature.
    widths: tuple[int, ...]
    #: The layer of each deepstack feature, where the output names it.
    layers: tuple[int, ...] = ()
    #: Fields of the output object that are empty.
    empty: tuple[str, ...] = ()
    #: Of images that a decoder attends to beside its text: image tokens of a tile. 0: features take the places of tokens.
    tile_tokens: int = 0
    #: Fields of the output object that are the same for every image, and what the encoder may be called with to make them.
    constants: tuple[str, ...] = ()
    example: Mapping[str, Any] = dataclass_field(default_factory=dict)

    @classmethod
    def of(cls, outputs: Any) -> tuple[FeatureForm, torch.Tensor]:
        """The form of an encoder's output for one image, and its features ``[N, F]``."""
        deepstack = list(getattr(outputs, _DEEPSTACK, None) or ())
        layers = tuple(int(each[0]) for each in deepstack if isinstance(each, tuple) and isinstance(each[0], int))
        if layers:
            deepstack = [each[1] for each in deepstack]
        field = next((name for name in _FIELDS if getattr(outputs, name, None) is not None), "")
        if not field and not layers:
            raise UnsupportedModelError(f"its image encoder returns {type(outputs).__name__}, without features")
        features = getattr(outputs, field) if field else None
        parts = [_packed(each) for each in ([] if features is None else [features]) + deepstack]
        form = cls(
            field=field,
            is_list=not isinstance(features, torch.Tensor),
            widths=tuple(int(p.shape[1]) for p in parts),
            layers=layers,
            empty=tuple(name for name, value in vars(outputs).items() if value is None),
            tile_tokens=getattr(outputs, TILE_TOKENS, 0),
        )
        return form, torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def as_json(self) -> dict[str, Any]:
        """For the metadata of an export."""
        return {
            "field": self.field,
            "is_list": self.is_list,
            "widths": list(self.widths),
            "layers": list(self.layers),
            "empty": list(self.empty),
            **({"tile_tokens": self.tile_tokens} if self.tile_tokens else {}),
            **({"constants": list(self.constants), "example": dict(self.example)} if self.constants else {}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FeatureForm:
        """What `as_json` has written."""
        return cls(
            field=content["field"],
            is_list=content["is_list"],
            widths=tuple(content["widths"]),
            layers=tuple(content["layers"]),
            empty=tuple(content["empty"]),
            tile_tokens=content.get("tile_tokens", 0),
            constants=tuple(content.get("constants", ())),
            example=content.get("example", {}),
        )

    def with_constants(self, names: Sequence[str], image: Mapping[str, torch.Tensor]) -> FeatureForm:
        """The same with fields that are the same for every image; `image` is an example."""
        numbers = {name: value for name, value in image.items() if value.is_floating_point()}
        example = {
            name: list(value.shape) if name in numbers else {"values": value.tolist()} for name, value in image.items()
        }
        return replace(self, constants=tuple(names), example=example)

    def constant_fields(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """These fields. Of the encoder, a graph keeps what they need."""
        if not self.constants:
            return {}
        image = {
            name: torch.zeros(told) if isinstance(told, list) else torch.tensor(told["values"])
            for name, told in self.example.items()
        }
        pixels = tuple(value for value in image.values() if value.is_floating_point())
        with forward_scope(Scope(masks=MaskPlan())), ConstantsStayReal(), OneUnit(pixels):
            outputs = image_encoder(model)(**encoder_arguments(model, image), return_dict=True)
        return {name: getattr(outputs, name) for name in self.constants}

    def output(self, rows: torch.Tensor, constants: Mapping[str, torch.Tensor] = MappingProxyType({})) -> Any:
        """The output object for features ``[B * S, F]`` of which every token of the step has a row."""
        parts = list(torch.split(rows, list(self.widths), dim=1))
        fields: dict[str, Any] = {}
        if self.field:
            features = parts.pop(0)
            fields[self.field] = [features] if self.is_list else features[None]
        outputs = _Features(**fields)
        for name in self.empty:
            object.__setattr__(outputs, name, None)
        for name, value in constants.items():
            object.__setattr__(outputs, name, value)
        if parts:
            deepstack: list[Any] = [[each] for each in parts]
            if self.layers:
                deepstack = list(zip(self.layers, deepstack, strict=True))
            object.__setattr__(outputs, _DEEPSTACK, deepstack)
        return outputs


class _MissingFieldError(UnsupportedModelError, AttributeError):
    """The language model reads something of the encoder's output that belongs to no image token."""


@dataclass
class _Features(BaseModelOutputWithPooling):
    """Stands for the output object of an image encoder."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise _MissingFieldError(
            f"its language model reads {name} of its encoder's output, beside the features of image tokens"
        )


def _packed(features: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Features as ``[N, H]``."""
    if isinstance(features, torch.Tensor):
        return features.reshape(-1, features.shape[-1])
    return torch.cat([_packed(each) for each in features], dim=0)


class RowForEveryToken(TorchFunctionMode):
    """Does to whole tensors what the model does to packed ones by a mask over the tokens of a step.

    The model finds the places of images by the id of the image token, which may also have been generated, as text. So `is_image`
    ``[B, S]`` says which of them an image stands in, and `beside_image` which are text of a prompt with images.
    """

    def __init__(self, is_image: torch.Tensor, beside_image: torch.Tensor, *, modalities: int = 1) -> None:
        super().__init__()
        # Examples consist of image tokens, as many as there are rows. With two kinds of them a model compares each with all rows.
        self._counts_rows = modalities > 1
        #: The numbers of rows that it was told.
        self._counted: list[torch.Tensor] = []
        self._is_image = is_image
        self._beside_image = beside_image
        #: Whether any token is one of a kind, as far as the model has asked.
        self._asked: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Sees every call of the library while the mode is on."""
        del types
        given = dict(kwargs or {})
        if func in (torch.Tensor.masked_scatter, torch.masked_scatter):
            target, mask, source = args
            return torch.where(self._of_images(mask), source.reshape(target.shape).to(target.dtype), target)
        if func is torch.Tensor.__getitem__ and (mask := self._token_mask(args[1])) is not None:
            return args[0].flatten(0, mask.dim() - 1)
        if func is torch.Tensor.__setitem__ and (mask := self._token_mask(args[1])) is not None:
            target, _, value = args
            if isinstance(value, torch.Tensor) and value.dim() > 1:
                return _set_where(target, self._of_images(mask), value)
            if isinstance(value, torch.Tensor) and value.dim() == 1:
                # A vector for all tokens of an id, which stand around images: elsewhere such a token is text.
                return _set_where(target, mask & self._beside_image, value)
            # One value for all: the ids themselves are replaced, whether an image stands there or not.
            return _set_where(target, mask, value)
        is_sum = func in (torch.Tensor.sum, torch.sum) and len(args) == 1 and not given
        if is_sum and self._counts_rows and self._is_token_mask(args[0]):
            self._counted.append(func(torch.ones_like(args[0])))
            return self._counted[-1]
        if func is torch.Tensor.new_zeros and any(args[1] is counted for counted in self._counted):
            return func(args[0], args[0].shape[0], *args[2:], **given)
        if func in (torch.Tensor.any, torch.any) and len(args) == 1 and not given and self._is_token_mask(args[0]):
            self._asked.append(func(*args))
            return self._asked[-1]
        if func is torch.Tensor.__bool__ and any(args[0] is asked for asked in self._asked):
            # What follows is done to the tokens of the mask alone, and to none where there are none.
            return True
        return func(*args, **given)

    def _is_token_mask(self, mask: torch.Tensor) -> bool:
        return mask.dtype == torch.bool and mask.shape == self._is_image.shape

    def _of_images(self, mask: torch.Tensor) -> torch.Tensor:
        if mask.dim() == 1:
            return mask & self._is_image.flatten()
        return mask & self._is_image.reshape(*self._is_image.shape, *(1 for _ in range(mask.dim() - 2)))

    def _token_mask(self, index: Any) -> torch.Tensor | None:
        """The mask that an index consists of, if it is one over all tokens."""
        first, *others = index if isinstance(index, tuple) else (index,)
        if not isinstance(first, torch.Tensor) or first.dtype != torch.bool:
            return None
        is_of_rows = self._counts_rows and first.dim() == 1 and first.shape[0] == self._is_image.numel()
        if first.dim() < 2 and not is_of_rows:
            return None
        if any(other != slice(None) for other in others):
            return None
        return first


class OneUnit(TorchFunctionMode):
    """Answers the question which images are real, where there is one: that one is.

    Models whose processors fill up the images of a prompt with zeros look for pixels that are 0, and leave out an image of
    nothing else. A program gets no such images, so no pixel need be looked at.
    """

    def __init__(self, pixels: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._counts = {each.numel() for each in pixels}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Sees every call of the library while the mode is on."""
        del types
        if func in (torch.Tensor.__eq__, torch.Tensor.eq, torch.eq) and isinstance(args[1], float) and args[1] == 0.0:
            compared = args[0]
            if compared.is_floating_point() and compared.numel() in self._counts:
                with _disable_current_modes():
                    return torch.zeros(compared.shape, dtype=torch.bool)
        return func(*args, **(kwargs or {}))


class DerivedTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__ is untyped
    """Follows what is computed from some tensors."""

    def __init__(self, sources: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # They are kept, so that no other tensor gets their identity.
        self._derived = {id(source): source for source in sources}

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._derived

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Sees every operator while the mode is on."""
        del types
        given = dict(kwargs or {})
        results = func(*args, **given)
        if any(id(each) in self._derived for each in pytree.tree_leaves((args, given))):
            # What an operator has written into is derived as well.
            written = [each for each in (*args[:1], *pytree.tree_leaves(results)) if isinstance(each, torch.Tensor)]
            self._derived.update((id(each), each) for each in written)
        return results


def _set_where(target: torch.Tensor, mask: torch.Tensor, value: Any) -> None:
    wide = mask.reshape(*mask.shape, *(1 for _ in range(target.dim() - mask.dim())))
    if isinstance(value, torch.Tensor) and value.dim() > 1:
        value = value.reshape(target.shape)
    target.copy_(torch.where(wide, value, target))
