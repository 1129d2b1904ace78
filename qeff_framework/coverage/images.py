"""Tiny vision-language models through both programs, held against what Transformers generates for the same images."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.coverage.parity import BATCH, CONTEXT, compiled_model, stage
from qeff_framework.coverage.processes import CheckError
from qeff_framework.coverage.reference import CLEAR_MARGIN, STEPS, plain_generation
from qeff_framework.coverage.rounding import BITS, ROUNDINGS, changed_by, largest
from qeff_framework.coverage.sizes import HIDDEN
from qeff_framework.coverage.tiny import tiny_config, tiny_model, tiny_prompts
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.attended_images import attends_beside_text
from qeff_framework.seam.image_features import (
    FeatureForm,
    decoder_attends,
    encoder_arguments,
    encoder_inputs,
    image_encoder,
)
from qeff_framework.seam.image_inputs import has_rope_axes, image_token_id, sees_image_tokens_ahead

if TYPE_CHECKING:
    import torch

    Image = Mapping[str, torch.Tensor]

#: Time, height and width in patches, of encoders that take an image as a list of patches.
_GRID: Final = (1, 4, 6)
_GRIDS: Final = ("image_grid_thw", "image_grid_hw", "spatial_shapes", "target_sizes")
#: Encoders whose patches are small images, not rows of numbers.
_IMAGES_OF_PATCHES: Final = ("kimi_k25_vision", "paddleocr_vl_vision")
#: Encoders whose patches are those of a token, channels last; their grid counts tokens.
_IMAGES_OF_TOKENS: Final = ("inkling2_vision",)
_SEEDS: Final = 8
#: Height and width of an image that comes as patches; the axes of one that does not, of which channels may be the last.
_SIDE: Final = 32
_AXES_OF_PIXELS: Final = 4
_CHANNELS: Final = 3
#: Gates of layers that attend to images start closed, and training opens them.
_OPENED: Final = 0.5
_BLOCK: Final = 16
#: Fields of the whole config, and of the image encoder's, by name as in `sizes`.
_OF_IMAGES: Final[Mapping[str, Any]] = {
    "mm_tokens_per_image": 4,
    "projection_dim": HIDDEN,
    "image_grid_pinpoints": [[32, 64], [64, 32]],
}
_OF_VISION: Final[Mapping[str, Any]] = {
    "out_hidden_size": HIDDEN,
    "projection_dim": HIDDEN,
    "depth": 3,
    "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [1],
    "window_size": 32,
}
#: Largest error of an image embedding, as a part of the largest one.
IMAGE_TOLERANCE: Final = 1e-4
#: Largest difference of a logit, in standard deviations of its step: less than what makes a choice clear.
LOGIT_TOLERANCE: Final = CLEAR_MARGIN / 2
#: Whose prompts' tokens all see each other: a processor marks them with the kind 0.
_PREFIXES: Final = ("paligemma",)
#: Whose tokens see further than their own image.
_WIDE_BLOCKS: Final = (*_PREFIXES, "molmo2")
#: What the decoder of an encoder-decoder begins with.
_DECODER_START: Final = 2
_TOKEN_TYPES: Final = ("token_type_ids", "mm_token_type_ids")


def image_text_types() -> list[str]:
    """Every type of Transformers' mapping of vision-language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return list(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageReference:
    """Greedy tokens of three prompts with one, no and two images."""

    prompts: list[list[int]]
    #: The images of each prompt.
    images: list[list[Image]]
    tokens: list[list[int]]
    #: Logits ``[steps, V]`` of each prompt.
    logits: list[torch.Tensor]
    #: Smallest distance of the two best logits of a step, in standard deviations.
    margin: float
    #: Tokens of an image.
    image_tokens: int


class TensorsOfAnImage:
    """Stands for a processor: returns the tensors of an image, whatever the image."""

    def __init__(self, image: Image) -> None:
        self._image = image

    def __call__(self, images: Sequence[Any], return_tensors: str) -> Image:  # noqa: ARG002 - as a processor is called
        """The tensors."""
        return self._image

    def save_pretrained(self, directory: Path) -> None:
        """Writes nothing that could be read."""
        directory.mkdir()


def example_image(module: Any) -> Image:
    """Random tensors of the form that a module's image encoder takes, for the size in its config.

    Raises:
        UnsupportedModelError: it takes others.
    """
    import torch

    names = encoder_inputs(type(module))
    config = getattr(module.config, "vision_config", None) or module.config
    channels = _size(config, "num_channels", "in_channels", "in_chans", default=3)
    patch = _size(config, "patch_size", default=8)
    if "aspect_ratio_ids" in names:  # two tiles side by side of four
        tiles, side = config.max_num_tiles, config.image_size
        return {
            "pixel_values": torch.randn(1, 1, tiles, channels, side, side),
            "aspect_ratio_ids": torch.tensor([[2]]),
            "aspect_ratio_mask": torch.tensor([[[1, 1, *[0] * (tiles - 2)]]]),
        }
    if (grid_name := next((name for name in _GRIDS if name in names), None)) is not None:
        return _patches(names, grid_name, config, channels, patch)
    if "image_position_ids" in names:
        return _positioned(config, channels, patch)
    side = _size(getattr(config, "sam_config", config), "image_size", "resolution", default=32)
    pixels = torch.randn(1, channels, side, side)
    if "image_token_pooling" in names:
        places = torch.arange((side // patch) ** 2).reshape(1, side // patch, side // patch)
        pooled = places.unfold(1, 2, 2).unfold(2, 2, 2).reshape(-1, 4)
        return {
            "pixel_values": torch.randn(1, (side // patch) ** 2, channels * patch**2),
            "image_token_pooling": pooled,
            "image_grids": torch.tensor([[0, 0, side // patch // 2, side // patch // 2]]),
        }
    if "pixel_values_local" in names:
        return {
            "pixel_values": pixels,
            "pixel_values_local": torch.randn(2, channels, side, side),
            "num_local_patches": torch.tensor([2]),
            **({"patches_grid": torch.tensor([[2, 1]])} if "patches_grid" in names else {}),
        }
    if "high_res_pixel_values" in names:
        high = _size(module.config.high_res_vision_config, "image_size", default=64)
        return {"pixel_values": pixels, "high_res_pixel_values": torch.randn(1, channels, high, high)}
    if module.config.model_type == "inkling_mm_model":  # each patch is a token, and an image of its own
        frames = _size(config, "temporal_patch_size", default=2)
        return {"pixel_values": torch.randn(1, frames, patch, patch, channels)}
    if module.config.model_type == "fuyu":
        return {"pixel_values": torch.randn(1, 6, channels * patch**2)}
    if module.config.model_type == "granite_docling":  # its mask is one of tiles
        return {"pixel_values": pixels[None], "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}
    if "pixel_attention_mask" in names:
        return {"pixel_values": pixels[None], "pixel_attention_mask": torch.ones(1, 1, side, side, dtype=torch.int64)}
    if "image_sizes" in names and getattr(module.config, "image_grid_pinpoints", None):
        return {
            "pixel_values": torch.randn(1, 3, channels, side, side),
            "image_sizes": torch.tensor([[side, 2 * side]]),
        }
    if "image_sizes" in names:
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[side, side]])}
    return {"pixel_values": pixels}


def _patches(names: Sequence[str], grid_name: str, config: Any, channels: int, patch: int) -> Image:
    """An image as a list of patches, with their numbers along its axes."""
    import torch

    merge = _size(config, "spatial_merge_size", "merge_size", "merge_kernel_size", default=2)
    frames = _size(config, "temporal_patch_size", "patch_temporal", default=1)
    time, height, width = _GRID
    grid = torch.tensor([[time, height * merge // 2, width * merge // 2]])
    if grid_name == "target_sizes":  # two merges, one after the other
        grid = 2 * grid
    grid = grid if grid_name == "image_grid_thw" else grid[:, 1:]
    count = int(grid.prod())
    if grid_name == "spatial_shapes":
        mask = torch.ones(1, count, dtype=torch.int64)
        pixels = torch.randn(1, count, channels * patch**2)
        return {"pixel_values": pixels, grid_name: grid, "pixel_attention_mask": mask}
    if grid_name == "target_sizes":
        return {"pixel_values": torch.randn(1, channels, patch, count * patch), grid_name: grid}
    shape: tuple[int, ...] = (count, channels * frames * patch**2)
    if config.model_type in _IMAGES_OF_PATCHES:
        shape = (count, channels, patch, patch)
    elif config.model_type in _IMAGES_OF_TOKENS:
        shape = (count, patch * merge, patch * merge, channels)
    image = {"pixel_values": torch.randn(shape), grid_name: grid}
    return {**image, "image_merge_sizes": torch.tensor([merge])} if "image_merge_sizes" in names else image


def _positioned(config: Any, channels: int, patch: int) -> Image:
    """An image as patches with the place of each."""
    import torch

    pool = _size(config, "pooling_kernel_size", default=2)
    side = 2 * pool
    if hasattr(config, "mm_embed_dim"):  # a patch holds those that are pooled
        side, patch = 2, patch * pool
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(1)[None]
    return {"pixel_values": torch.randn(1, side**2, channels * patch**2), "image_position_ids": places}


def tiny_image_model(model_type: str) -> torch.nn.Module:
    """The tiny model of a type, with an image encoder that fits the image and the language model."""
    import torch

    module = tiny_model(model_type, "image-text-to-text", changes=_changes(model_type))
    if attends_beside_text(type(module)):
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.endswith("_gate") and parameter.numel() == 1:
                    parameter.fill_(_OPENED)
    return module


def _changes(model_type: str) -> dict[str, Any]:
    """Values of fields that only models of images have, or whose value depends on that of another part."""
    config = tiny_config(model_type, "image-text-to-text")
    vision, text = getattr(config, "vision_config", None), config.get_text_config()
    changes = {name: value for name, value in _OF_IMAGES.items() if getattr(config, name, None) is not None}
    if vision is not None:
        of_vision = {name: value for name, value in _OF_VISION.items() if getattr(vision, name, None) is not None}
        changes |= {"vision_config": of_vision} if of_vision else {}
    rope: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    if "rope_type" in rope and "mrope_section" not in rope and text is not config and _has_axes(model_type):
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        half = int(head * rope.get("partial_rotary_factor", 1.0)) // 2
        third = half // 3
        section = {**rope, "mrope_section": [half - 2 * third, third, third]}
        changes["text_config"] = {"rope_parameters": section}
    return changes


def _has_axes(model_type: str) -> bool:
    """Whether positions of the type have several axes."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    return bool(has_rope_axes(getattr(transformers, NAMES[model_type])))


def image_reference(module: Any, image: Image) -> ImageReference:
    """The tokens for the first prompts at which no choice is a near tie, else of the clearest ones."""
    import torch

    with torch.no_grad():
        form, features = FeatureForm.of(image_encoder(module)(**encoder_arguments(module, image), return_dict=True))
    count = int(features.shape[0])
    indicators = getattr(module.config, "visual_indicator_token_ids", None) or (None, None)
    names = ("vision_start_token_id", "vision_end_token_id")
    around = [
        getattr(module.config, name, each) for name, each in zip(names, (indicators[0], indicators[-1]), strict=True)
    ]
    picture = [image_token_id(module)] * (1 if form.tile_tokens else count)
    start, end = ([token] if isinstance(token, int) else [] for token in around)
    picture = [*start, *picture, *end]
    best: ImageReference | None = None
    for seed in range(_SEEDS):
        generator = torch.Generator().manual_seed(seed)
        one, two, three = (
            {
                name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
                for name, value in image.items()
            }
            for _ in range(3)
        )
        if form.tile_tokens:  # all four tiles
            two = {**two, "aspect_ratio_ids": torch.tensor([[6]])}
            two["aspect_ratio_mask"] = torch.ones_like(two["aspect_ratio_mask"])
        first, second = tiny_prompts(seed)
        prompts = [[*first[:4], *picture, *first[4:]], second, [first[0], *picture, second[0], *picture, *second[1:4]]]
        images: list[list[Image]] = [[one], [], [two, three]]
        decoded = [_decode(module, *row) for row in zip(prompts, images, strict=True)]
        found = ImageReference(
            prompts=prompts,
            images=images,
            tokens=[tokens for tokens, _, _ in decoded],
            logits=[logits for _, logits, _ in decoded],
            margin=min(margin for _, _, margin in decoded),
            image_tokens=count,
        )
        best = found if best is None or found.margin > best.margin else best
        if best.margin >= CLEAR_MARGIN:
            break
    assert best is not None  # noqa: S101  (the loop runs at least once)
    return best


def check_reference(model_type: str) -> dict[str, Any]:
    """The facts of a reference. Raises `UnsupportedModelError` for one that images do not change."""
    module: Any = tiny_image_model(model_type)
    reference = image_reference(module, example_image(module))
    if len({token for row in reference.tokens for token in row}) < 3:
        raise UnsupportedModelError(f"The tiny {model_type!r} is degenerate: it gives {reference.tokens}.")
    return {
        "class": type(module).__name__,
        "margin": round(reference.margin, 5),
        "image_tokens": reference.image_tokens,
    }


def check_image_text(module: Any, backend: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Generates from images and text."""
    import numpy as np

    from qeff_framework.auto import QEFFAutoModelForImageTextToText
    from qeff_framework.generation import SCORE_SETTINGS

    if decoder_attends(type(module)):
        return _check_encoder_and_decoder(module, backend, facts)
    _require_images(module)
    with stage("export", facts):
        # What the export refuses first, before an example is made.
        image_encoder(module)
        image_token_id(module)
    image = example_image(module)
    reference = image_reference(module, image)
    facts["margin"], facts["image_tokens"] = round(reference.margin, 5), reference.image_tokens
    longest = max(map(len, reference.prompts))
    # Tokens that see each other must be read in one step; others may lie in several.
    chunk = max(2, min(reference.image_tokens - 1, longest // 2))
    if sees_image_tokens_ahead(type(module)):
        chunk = longest if module.config.model_type in _WIDE_BLOCKS else reference.image_tokens + 1
    # Some families read the cache in blocks.
    context = max(CONTEXT, -(-(longest + STEPS) // _BLOCK) * _BLOCK)
    sizes: dict[str, Any] = {
        "prefill_seq_len": chunk,
        "ctx_len": context,
        "batch_size": BATCH,
        "num_images": 2,
        **_size_of(image),
    }
    given = [each for row in reference.images for each in row]
    inputs: dict[str, Any] = {
        "input_ids": np.array([row + [0] * (longest - len(row)) for row in reference.prompts]),
        "attention_mask": np.array([[1] * len(row) + [0] * (longest - len(row)) for row in reference.prompts]),
        **_joined(given),
    }
    inputs |= tiles_seen(module, inputs["input_ids"].tolist(), reference.images)
    for kv_offload in (True, False):
        model = QEFFAutoModelForImageTextToText(module, processor=TensorsOfAnImage(image), kv_offload=kv_offload)
        try:
            compiled_model(model, backend, facts, sizes)
        except CheckError as refusal:
            if kv_offload or not isinstance(refusal.__cause__, UnsupportedModelError):
                raise
            # Two programs pass.
            del facts["stage"], facts["where"]
            facts["note"] = f"as two programs, not as one: {refusal.__cause__}"
            break
        with stage("execute", facts), model.load() as runner:
            error = tolerance = 0.0
            if kv_offload or not attends_beside_text(type(module)):
                error, tolerance = _image_error(module, runner, given)
                facts["image_error"] = largest(error, facts.get("image_error", 0.0))
            plain = dict.fromkeys(SCORE_SETTINGS)
            seen = SeenLogits()
            tokens = runner.generate(
                inputs=inputs,
                generation_len=STEPS,
                ignore_eos=True,
                num_beams=1,
                logits_processor=[seen],
                **plain,
            ).generated_ids
        _compare(tokens, reference, kv_offload, facts)
        facts["logit_error"] = largest(seen.error(reference), facts.get("logit_error", 0.0))
        if not facts["logit_error"] <= LOGIT_TOLERANCE and not facts["logit_error"] <= _rounding_of_logits(
            module, reference
        ):
            facts["stage"] = "logits"
            raise CheckError(f"a logit differs by {facts['logit_error']:.1e} of the standard deviation", facts)
        if not error <= tolerance:
            facts["stage"] = "values"
            raise CheckError(f"image embeddings differ by {error:.1e} of the largest one", facts)
    facts.setdefault("note", "as two programs and as one")
    return facts


class SeenLogits:
    """Notes the logits from which each token is chosen."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, ...], Any] = {}

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """As a logits processor of Transformers, for one row."""
        self._rows[tuple(input_ids[0].tolist())] = scores[0].clone()
        return scores

    def error(self, reference: ImageReference) -> float:
        """The largest difference from the reference, in standard deviations of a step's logits."""
        import torch

        worst = 0.0
        for prompt, tokens, logits in zip(reference.prompts, reference.tokens, reference.logits, strict=True):
            for step, want in enumerate(logits):
                got = self._rows[(*prompt, *tokens[:step])]
                allowed = want > torch.finfo(want.dtype).min / 2
                difference = (got.float() - want)[allowed].abs().max() / want[allowed].std()
                worst = largest(worst, float(difference))
        return float(f"{worst:.1e}")


def _rounding_of_logits(module: Any, reference: ImageReference) -> float:
    """A multiple of how far PyTorch's own logits move where each pixel changes by its last bit, see `_image_error`."""
    worst = 0.0
    for prompt, images, logits in zip(reference.prompts, reference.images, reference.logits, strict=True):
        for bit in BITS if images else ():
            _, moved, _ = _decode(module, prompt, [changed_by(bit, image) for image in images])
            worst = max(worst, float(((moved - logits).abs().amax(dim=1) / logits.std(dim=1)).max()))
    return ROUNDINGS * worst


def _compare(tokens: Sequence[list[int]], reference: ImageReference, kv_offload: bool, facts: dict[str, Any]) -> None:
    for row, (got, want) in enumerate(zip(tokens, reference.tokens, strict=True)):
        if got != want:
            facts["stage"] = "tokens"
            step = next(step for step, pair in enumerate(zip(got, want, strict=True)) if pair[0] != pair[1])
            form = "two programs" if kv_offload else "one program"
            raise CheckError(
                f"{form}: prompt {row} ({len(reference.images[row])} images) differs from step {step} on", facts
            )


def _require_images(module: Any) -> None:
    """Raises where Transformers itself makes no text of images with the class, whatever its mapping says."""
    if not module.can_generate():
        raise ValueError(f"{type(module).__name__} generates no text")
    known = inspect.signature(module.forward).parameters
    if not any(name.startswith(("pixel_values", "flattened_patches")) for name in known):
        raise ValueError(f"the forward of {type(module).__name__} takes no images")


def _source_image(module: Any) -> Image:
    """Random tensors of the form that the encoder of an encoder-decoder takes."""
    import torch

    config = module.get_encoder().config
    if module.main_input_name == "flattened_patches":  # row and column of each patch, its pixels, and padding
        places = torch.cartesian_prod(torch.arange(1, 5), torch.arange(1, 4)).float()
        patches = torch.randn(len(places), config.patch_embed_hidden_size)
        padding = torch.zeros(4, 2 + config.patch_embed_hidden_size)
        return {
            "flattened_patches": torch.cat([torch.cat([places, patches], dim=1), padding])[None],
            "attention_mask": torch.tensor([[1.0] * len(places) + [0.0] * len(padding)]),
        }
    side = _size(config, "image_size", default=32)
    return {"pixel_values": torch.randn(1, _size(config, "num_channels", default=3), side, side)}


def _check_encoder_and_decoder(module: Any, backend: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Generates from images alone, and from an image with a prompt of the decoder."""
    import torch
    import transformers

    from qeff_framework.auto import QEFFAutoModelForImageTextToText
    from qeff_framework.generation import SCORE_SETTINGS

    images = [_source_image(module) for _ in range(2)]
    prompt = [_DECODER_START, 5, 6]
    wanted = []
    generation_config: Any = transformers.GenerationConfig  # untyped
    greedy = generation_config(max_new_tokens=STEPS, do_sample=False, decoder_start_token_id=_DECODER_START)
    for started in (prompt[:1], prompt):
        rows = []
        for image in images:
            with plain_generation(module), torch.no_grad():
                found = module.generate(**image, decoder_input_ids=torch.tensor([started]), generation_config=greedy)
            rows.append(found[0, len(started) :].tolist())
        wanted.append(rows)
    if wanted[0][0] == wanted[0][1] and wanted[1][0] == wanted[1][1]:
        raise UnsupportedModelError(f"The tiny {type(module).__name__} is degenerate: images do not change its text.")
    with torch.no_grad():
        want = image_encoder(module)(**encoder_arguments(module, images[0]), return_dict=True).last_hidden_state[0]
    facts["image_tokens"] = int(want.shape[0])
    model = QEFFAutoModelForImageTextToText(module, processor=TensorsOfAnImage(images[0]))
    compiled_model(model, backend, facts, {"ctx_len": CONTEXT, "batch_size": BATCH, **_size_of(images[0])})
    with stage("execute", facts), model.load() as loaded:
        runner: Any = loaded
        (got,) = runner.image_embeddings(images[0])
        facts["image_error"] = float(f"{float((torch.from_numpy(got) - want).abs().max() / want.abs().max()):.1e}")
        plain = dict.fromkeys(SCORE_SETTINGS)
        for rows, started in zip(wanted, (prompt[:1], prompt), strict=True):
            output = runner.generate(
                inputs={**_joined(images), "decoder_input_ids": [started] * 2},
                generation_len=STEPS,
                ignore_eos=True,
                decoder_start_token_id=_DECODER_START,
                **plain,
            )
            if output.generated_ids != rows:
                facts["stage"] = "tokens"
                raise CheckError(f"the tokens behind {started} differ: {output.generated_ids} instead of {rows}", facts)
    if not facts["image_error"] <= IMAGE_TOLERANCE:
        facts["stage"] = "values"
        raise CheckError(f"image embeddings differ by {facts['image_error']:.1e} of the largest one", facts)
    return facts


def _image_error(module: Any, runner: Any, images: Sequence[Image]) -> tuple[float, float]:
    """The largest difference of an image embedding from PyTorch's, divided by the largest embedding, and the tolerance.

    Random encoders may amplify rounding: where a change of each pixel by its last bit moves PyTorch's own embeddings further than
    the tolerance, a multiple of that is allowed.
    """
    import torch

    def features(given: Image) -> torch.Tensor:
        with torch.no_grad():
            return FeatureForm.of(image_encoder(module)(**encoder_arguments(module, given), return_dict=True))[1]

    worst = effect = 0.0
    for image in images:
        (got,) = runner.image_embeddings(image)
        want = features(image)
        scale = want.abs().max()
        worst = largest(worst, float((torch.from_numpy(got) - want).abs().max() / scale))
        for bit in BITS:
            effect = max(effect, float((features(changed_by(bit, image)) - want).abs().max() / scale))
    return float(f"{worst:.1e}"), max(IMAGE_TOLERANCE, ROUNDINGS * effect)


def _size_of(image: Image) -> dict[str, int]:
    """Height and width for `compile`: what stands for the processor makes one form of every image."""
    pixels = image.get("pixel_values")
    if pixels is None or pixels.dim() < _AXES_OF_PIXELS or pixels.shape[-1] <= _CHANNELS:
        return {"img_size": _SIDE}
    height, width = pixels.shape[-2:]
    return {"height": int(height), "width": int(width)}


def _joined(images: Sequence[Image], *, one_prompt: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of several images, as a processor returns them."""
    import torch

    if not images:
        return {}
    first = images[0]

    def axis(name: str) -> int:
        if name == "pixel_values" and "target_sizes" in first:
            return -1
        # Tiles of one prompt stand along the second axis, and so do images of tiles.
        if "aspect_ratio_ids" in first:
            return int(one_prompt)
        return int(one_prompt and first["pixel_values"].dim() == 5 and "pixel_attention_mask" in first)

    joined = {name: torch.cat([each[name] for each in images], dim=axis(name)) for name in first}
    if (name := "image_token_pooling") in first:  # numbers of patches, over all images
        patches = first["pixel_values"].shape[:-1].numel()
        joined[name] = torch.cat([each[name] + number * patches for number, each in enumerate(images)])
    return joined


@contextmanager
def _mended(module: Any) -> Iterator[None]:
    """Llama 4 reads a field of its own output that Transformers does not set; nothing else can be said about it."""
    if module.config.model_type != "llama4":
        yield
        return
    from qeff_framework.seam.special.llama4 import add_image_outputs

    hook = module.language_model.register_forward_hook(add_image_outputs)
    try:
        yield
    finally:
        hook.remove()


def tiles_seen(module: Any, prompts: list[list[int]], images: Sequence[Sequence[Image]]) -> dict[str, torch.Tensor]:
    """Which tiles each token of a model that attends to images sees, as its processor tells it; nothing of another model."""
    import torch

    if not attends_beside_text(type(module)):
        return {}
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    dense: Any = convert_sparse_cross_attention_mask_to_dense
    token = image_token_id(module)
    seen = dense(
        [get_cross_attention_token_mask(prompt, token) for prompt in prompts],
        num_tiles=[[int(each["aspect_ratio_mask"].sum()) for each in of_prompt] for of_prompt in images],
        max_num_tiles=module.config.vision_config.max_num_tiles,
        length=max(map(len, prompts)),
    )
    return {"cross_attention_mask": torch.as_tensor(seen)}


def _decode(module: Any, prompt: list[int], images: Sequence[Image]) -> tuple[list[int], torch.Tensor, float]:
    """Tokens of one prompt, their logits, and the margin of the closest choice."""
    import torch
    import transformers

    generation_config: Any = transformers.GenerationConfig  # untyped
    ids = torch.tensor([prompt])
    known = inspect.signature(module.forward).parameters
    given: dict[str, Any] = _joined(images, one_prompt=True)
    of_image = (ids == image_token_id(module)).long()
    kinds = torch.zeros_like(ids) if module.config.model_type in _PREFIXES else of_image
    given |= {name: kinds for name in _TOKEN_TYPES if name in known}
    given |= tiles_seen(module, [prompt], [images]) if images else {}
    with plain_generation(module), _mended(module), torch.no_grad():
        result = module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=generation_config(
                max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
            ),
            **encoder_arguments(module, given),
        )
    logits = torch.cat(result.logits).float()
    best = logits.topk(2).values
    # Tokens that a family forbids have the lowest float as logit.
    deviations = torch.stack([row[row > torch.finfo(row.dtype).min / 2].std() for row in logits])
    margin = float(((best[:, 0] - best[:, 1]) / deviations).min())
    return result.sequences[0, len(prompt) :].tolist(), logits, margin


def _size(config: Any, *names: str, default: int) -> int:
    for name in names:
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(value, int):
            return value
    return default
