"""The interface between the image encoder and the language model of a vision-language model of Transformers.

``get_image_features`` returns an output object whose ``pooler_output`` holds the vectors of the image tokens, packed: those of
all images one after the other. The language model's forward takes that object as ``mm_encoder_outputs["image"]`` and scatters the
vectors over the places of the image tokens. Some models add further vectors to the hidden states of their first layers
(``deepstack_features``).

A graph of fixed sizes cannot pack: how many image tokens a step has is not known. Here every token of the step has a row, image
token or not, and what Transformers does to packed tensors by a mask is done to whole tensors by a selection.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from qeff_framework.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Keyword of the forward that takes the output of the encoders, by modality.
ENCODER_OUTPUTS = "mm_encoder_outputs"
#: Fields of the output object that hold a row for each image token; the first one there is the features themselves.
_FIELDS = ("pooler_output", "last_hidden_state")
_DEEPSTACK = "deepstack_features"


def image_encoder(model: PreTrainedModel) -> Callable[..., Any]:
    """The method that encodes images. Raises `UnsupportedModelError` where the language model cannot run apart from it."""
    method = getattr(model, "get_image_features", None)
    if method is None:
        raise UnsupportedModelError(
            "its images do not go through get_image_features, the interface of Transformers between encoder and language model"
        )
    if ENCODER_OUTPUTS not in inspect.signature(_merging_forward(model)).parameters:
        raise UnsupportedModelError(
            f"its forward takes no {ENCODER_OUTPUTS}, so it cannot run apart from its image encoder"
        )
    encoder: Callable[..., Any] = method
    return encoder


def encoder_inputs(model_class: Any) -> tuple[str, ...]:
    """Names of the tensors that the image encoder of a class may take; empty where it has none."""
    method = getattr(model_class, "get_image_features", None)
    return tuple(inspect.signature(method).parameters) if method is not None else ()


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

    #: Field of the output object.
    field: str
    #: The field is a list with one tensor for each image, not one tensor.
    is_list: bool
    #: Width of the features, then of each deepstack feature.
    widths: tuple[int, ...]

    @classmethod
    def of(cls, outputs: Any) -> tuple[FeatureForm, torch.Tensor]:
        """The form of an encoder's output for one image, and its features ``[N, F]``."""
        field = next((name for name in _FIELDS if getattr(outputs, name, None) is not None), None)
        if field is None:
            raise UnsupportedModelError(f"its image encoder returns {type(outputs).__name__}, without features")
        features = getattr(outputs, field)
        parts = [_packed(features), *(_packed(each) for each in getattr(outputs, _DEEPSTACK, None) or ())]
        form = cls(
            field=field, is_list=not isinstance(features, torch.Tensor), widths=tuple(int(p.shape[1]) for p in parts)
        )
        return form, torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def as_json(self) -> dict[str, Any]:
        """For the metadata of an export."""
        return {"field": self.field, "is_list": self.is_list, "widths": list(self.widths)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FeatureForm:
        """What `as_json` has written."""
        return cls(field=content["field"], is_list=content["is_list"], widths=tuple(content["widths"]))

    def output(self, rows: torch.Tensor) -> Any:
        """The output object for features ``[B * S, F]`` of which every token of the step has a row."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        features, *deepstack = torch.split(rows, list(self.widths), dim=1)
        outputs = BaseModelOutputWithPooling(**{self.field: [features] if self.is_list else features[None]})  # type: ignore[arg-type]
        if deepstack:
            object.__setattr__(outputs, _DEEPSTACK, [[each] for each in deepstack])
        return outputs


def _packed(features: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Features as ``[N, H]``."""
    if isinstance(features, torch.Tensor):
        return features.reshape(-1, features.shape[-1])
    return torch.cat([_packed(each) for each in features], dim=0)


class RowForEveryToken(TorchFunctionMode):
    """Does to whole tensors what the model does to packed ones by a mask over the tokens of a step.

    The model finds the places of images by the id of the image token, which may also have been generated, as text. So `is_image`
    ``[B, S]`` says which of them an image stands in.
    """

    def __init__(self, is_image: torch.Tensor) -> None:
        super().__init__()
        self._is_image = is_image

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
            return _set_where(target, self._of_images(mask), value)
        return func(*args, **given)

    def _of_images(self, mask: torch.Tensor) -> torch.Tensor:
        return mask & self._is_image.reshape(*self._is_image.shape, *(1 for _ in range(mask.dim() - 2)))

    def _token_mask(self, index: Any) -> torch.Tensor | None:
        """The mask that an index consists of, if it is one over all tokens."""
        first, *others = index if isinstance(index, tuple) else (index,)
        if not isinstance(first, torch.Tensor) or first.dtype != torch.bool or first.dim() < 2:
            return None
        if any(other != slice(None) for other in others):
            return None
        return first


class OneUnit(TorchFunctionMode):
    """Answers the question which images are real, where there is one: that one is.

    Models whose processors fill up the images of a prompt with zeros look for pixels that are 0, and leave out an image of
    nothing else. A program gets no such images, so no pixel need be looked at.
    """

    def __init__(self, pixels: torch.Tensor) -> None:
        super().__init__()
        self._count = pixels.numel()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Sees every call of the library while the mode is on."""
        del types
        if func in (torch.Tensor.__eq__, torch.Tensor.eq, torch.eq) and isinstance(args[1], float) and args[1] == 0.0:
            compared = args[0]
            if compared.is_floating_point() and compared.numel() == self._count:
                with _disable_current_modes():
                    return torch.zeros(compared.shape, dtype=torch.bool)
        return func(*args, **(kwargs or {}))


def _set_where(target: torch.Tensor, mask: torch.Tensor, value: Any) -> None:
    wide = mask.reshape(*mask.shape, *(1 for _ in range(target.dim() - mask.dim())))
    if isinstance(value, torch.Tensor) and value.dim() > 0:
        value = value.reshape(target.shape)
    target.copy_(torch.where(wide, value, target))
