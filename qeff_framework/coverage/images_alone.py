"""Tiny classifiers of images, and models that embed images and texts, held against what Transformers computes for each alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.coverage.parity import HIDDEN_TOLERANCE, compiled_model, stage
from qeff_framework.coverage.processes import CheckError
from qeff_framework.coverage.sizes import FIRST_PLAIN_TOKEN
from qeff_framework.coverage.tiny import declared_fields, tiny_model
from qeff_framework.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch

    from qeff_framework.contracts import Task

_CLASSES: Final = "image-classification"
_SPACES: Final = "zero-shot-image-classification"
#: One more image, and text, than a program takes.
_COUNT, _BATCH = 3, 2
#: Tokens of the texts, and the lengths that the programs have.
_TEXTS: Final = (12, 7, 9)
_LENGTHS: Final = (12,)
#: Sides of an image where the config names none, or a large one.
_SIDES: Final = (64, 96, 224)
_HALVINGS: Final = 3
#: By field name, where the default is a list of one number for each stage: as many of these.
_OF_STAGES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("depths", "layers", "num_layers", "num_hidden_layers", "encoder_layers"), 1),
    **dict.fromkeys(("num_heads", "num_attention_heads", "encoder_num_heads"), 2),
}
#: By field name, for images.
_OF_IMAGES: Final[Mapping[str, Any]] = {"projection_dim": 24, "num_labels": 5}


def image_classification_types() -> list[str]:
    """Every type of Transformers' mapping of classifiers of images."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return list(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def zero_shot_types() -> list[str]:
    """Every type of Transformers' mapping of models that embed images and texts in one space."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return list(MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def tiny_images_alone(model_type: str, task: Task) -> torch.nn.Module:
    """The tiny model of a type: the smallest of the ways to shrink its config that Transformers can run.

    Raises:
        UnsupportedModelError: it runs none of them.
    """
    errors: list[str] = []
    for changes in _ways(model_type):
        try:
            module: Any = tiny_model(model_type, task, changes=changes | _head(model_type, task))
            _condition(module)
        except Exception as error:  # noqa: BLE001 - code of any family; the next way is tried
            errors.append(f"{type(error).__name__}: {error}".partition("\n")[0])
        else:
            tiny: torch.nn.Module = module
            return tiny
    raise UnsupportedModelError("; ".join(dict.fromkeys(errors)))


def _condition(module: Any) -> None:
    """Makes the weights smaller until float32 is precise enough to compare programs in.

    Batch norms of random models normalise nothing: over many layers signals grow until a rounding decides.
    """
    import torch

    inputs = _inputs(module, side_of(module), _COUNT)
    doubles = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    for _ in range(_HALVINGS):
        with torch.no_grad():
            single = module(**inputs)[0]
            double = module.double()(**doubles)[0]
            module.float()
            if float((single - double).abs().max() / double.std()) <= HIDDEN_TOLERANCE / 10:
                return
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(0.5)


def _head(model_type: str, task: Task) -> dict[str, Any]:
    """The class of a type that has several with this head: the first one."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as NAMES

    classes = NAMES.get(model_type) if task == _CLASSES else None
    return {"architectures": [classes[0]]} if isinstance(classes, tuple) else {}


def _ways(model_type: str) -> Iterator[dict[str, Any]]:
    """Changes of the fields of a config: small everywhere, and then with the family's own widths."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    fields = declared_fields(config_class)
    full = vars(config_class())
    stages = {
        name: [small] * len(full[name])
        for name, small in _OF_STAGES.items()
        if name in fields and isinstance(full.get(name), list | tuple)
    }
    own = {name: value for name, value in _OF_IMAGES.items() if name in fields or name == "num_labels"}
    yield {**own, **stages}
    sizes = {
        name: full[name]
        for name in fields
        if name not in stages and isinstance(full.get(name), int | list | tuple) and not name.endswith("_id")
    }
    # The family's own widths and patches with few layers.
    few = {name: 2 for name in ("num_hidden_layers", "num_layers") if isinstance(sizes.get(name), int)}
    yield {**own, **sizes, **few, **stages}
    yield {**own, **sizes, **few}


def side_of(module: Any) -> int:
    """Height and width of the images that a module takes, found by running it. Raises what its code raises."""
    import torch

    config = getattr(module.config, "vision_config", None) or module.config
    named = getattr(config, "image_size", None)
    named = named[0] if isinstance(named, list | tuple) else named
    error: Exception | None = None
    if not isinstance(named, int):
        sides: tuple[int, ...] = _SIDES
    else:
        # Some models keep a smaller window once they have seen a small image, so the size of the config comes first.
        sides = (named,) if named <= _SIDES[-1] else (_SIDES[0], named)
    for side in sides:
        try:
            with torch.no_grad():
                module(**_inputs(module, side))
        except Exception as raised:  # noqa: BLE001 - code of any family; the next size is tried
            error = error or raised
        else:
            return int(side)
    assert error is not None  # noqa: S101  (there is at least one size)
    raise error


def _inputs(module: Any, side: int, count: int = 1) -> dict[str, torch.Tensor]:
    """Random images, and a text of a model that reads texts too."""
    import torch

    config = getattr(module.config, "vision_config", None) or module.config
    channels = getattr(config, "num_channels", None) or getattr(config, "in_channels", None) or 3
    pixels = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(3))
    inputs = {"pixel_values": pixels}
    if "input_ids" in inspect.signature(module.forward).parameters and hasattr(module.config, "text_config"):
        inputs |= _text(module, _TEXTS[0], 0)
    return inputs


def _text(module: Any, length: int, seed: int) -> dict[str, torch.Tensor]:
    """Ids ``[1, length]`` that end as the model's texts do, with their mask."""
    import torch

    end = getattr(module.config.text_config, "eos_token_id", None)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST_PLAIN_TOKEN, 128, (1, length), generator=generator)
    if isinstance(end, int) and 0 <= end < module.config.text_config.vocab_size:
        ids[0, -1] = end if end != 2 else module.config.text_config.vocab_size - 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def check_reference(model_type: str, task: Task) -> dict[str, Any]:
    """The facts of a reference. Raises `UnsupportedModelError` for one that images do not change."""
    import torch

    module: Any = tiny_images_alone(model_type, task)
    side = side_of(module)
    with torch.no_grad():
        found = module(**_inputs(module, side, count=2))
    rows = found.logits if task == _CLASSES else found.image_embeds
    if torch.allclose(rows[0], rows[1], atol=1e-4):
        raise UnsupportedModelError(f"The tiny {model_type!r} is degenerate: images do not change its result.")
    return {"class": type(module).__name__, "side": side}


def check_classes(module: Any, backend: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Classifies images, more of them than the program takes at once."""
    import torch

    from qeff_framework.auto import QEFFAutoModelForImageClassification

    side = side_of(module)
    pixels = _inputs(module, side, _COUNT)["pixel_values"]
    with torch.no_grad():
        wanted = torch.cat([module(pixel_values=row[None]).logits for row in pixels]).numpy()
    compiled = compiled_model(
        QEFFAutoModelForImageClassification(module), backend, facts, {"batch_size": _BATCH, "img_size": side}
    )
    with stage("execute", facts), compiled.load() as runner:
        found = runner.generate(pixel_values=pixels.numpy())
    return _compared({"logits": (found, wanted)}, facts)


def check_spaces(module: Any, backend: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Embeds images and texts, and scores them."""
    import numpy as np
    import torch

    from qeff_framework.auto import QEFFAutoModelForZeroShotImageClassification

    side = side_of(module)
    pixels = _inputs(module, side, _COUNT)["pixel_values"]
    texts = [_text(module, length, seed) for seed, length in enumerate(_TEXTS)]
    with torch.no_grad():
        alone = [module(pixel_values=pixels, **text) for text in texts]
        longest = max(_TEXTS)
        padded = [{name: _padded(value, longest) for name, value in text.items()} for text in texts]
        filled = [module(pixel_values=pixels, **text) for text in padded]
    effects = [
        float((one.text_embeds - other.text_embeds).abs().max()) for one, other in zip(alone, filled, strict=True)
    ]
    facts["padding_effect"] = max(effects)
    # Where padding is text to Transformers itself, its result with the same padding is the reference.
    reference = alone if max(effects) < HIDDEN_TOLERANCE else filled
    wanted = {
        "logits_per_image": torch.cat([found.logits_per_image for found in reference], dim=1).numpy(),
        "image_embeds": reference[0].image_embeds.numpy(),
        "text_embeds": torch.cat([found.text_embeds for found in reference]).numpy(),
    }
    sizes = {"img_size": side, "seq_len": _LENGTHS}
    compiled = compiled_model(
        QEFFAutoModelForZeroShotImageClassification(module), backend, facts, {"batch_size": _BATCH, **sizes}
    )
    given = {name: np.concatenate([text[name].numpy() for text in padded]) for name in padded[0]}
    with stage("execute", facts), compiled.load() as runner:
        found = runner.generate(pixel_values=pixels.numpy(), **given)
    return _compared({name: (getattr(found, name), values) for name, values in wanted.items()}, facts)


def _padded(row: torch.Tensor, length: int) -> torch.Tensor:
    import torch

    return torch.nn.functional.pad(row, (0, length - row.shape[1]))


def _compared(pairs: Mapping[str, tuple[Any, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """The facts with the largest error, in standard deviations of what was wanted."""
    import numpy as np

    errors = {name: float(np.abs(found - wanted).max() / wanted.std()) for name, (found, wanted) in pairs.items()}
    name = max(errors, key=lambda each: errors[each])
    facts["score_error"] = errors[name]
    if not errors[name] <= HIDDEN_TOLERANCE:
        facts["stage"] = name
        raise CheckError(f"{name} differ by {errors[name]:.1e}", facts)
    return facts
