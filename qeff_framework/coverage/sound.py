"""Tiny models of sound, held against what Transformers computes for a clip alone, without padding."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qeff_framework.coverage.parity import CONTEXT, HIDDEN_TOLERANCE, compiled_model, stage
from qeff_framework.coverage.processes import CheckError
from qeff_framework.coverage.reference import STEPS, plain_generation
from qeff_framework.coverage.rounding import BITS, ROUNDINGS, changed_by, largest
from qeff_framework.coverage.sizes import VOCAB
from qeff_framework.coverage.tiny import tiny_model
from qeff_framework.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch

    from qeff_framework.contracts import Task

#: Samples and feature frames of the clips, and the lengths that the programs have.
_CLIPS: Final[Mapping[int, tuple[int, ...]]] = {1: (5003, 2600), 2: (61, 33)}
_LENGTHS: Final[Mapping[int, tuple[int, ...]]] = {1: (3200, 6000), 2: (40, 80)}
_BATCH: Final = 2
#: Sizes of fields that only encoders of sound have.
_OF_SOUND: Final[Mapping[str, Any]] = {
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "feature_projection_input_dim": 20,
    "num_mel_bins": 16,
    "conv_depthwise_kernel_size": 7,
    "subsampling_conv_channels": 16,
    "tdnn_dim": (16, 16, 16, 16, 24),
    # With random weights each layer multiplies rounding by about 5: 24 of them leave nothing to compare.
    "speech_encoder_layers": 2,
    "speech_encoder_attention_heads": 4,
    "speech_encoder_intermediate_size": 96,
}


def ctc_types() -> list[str]:
    """Every type of Transformers' mapping of CTC models."""
    return _types("CTC")


def audio_classification_types() -> list[str]:
    """Every type of Transformers' mapping of classifiers of sound."""
    return _types("AUDIO_CLASSIFICATION")


def speech_seq2seq_types() -> list[str]:
    """Every type of Transformers' mapping of models that make texts of speech."""
    return _types("SPEECH_SEQ_2_SEQ")


def _types(mapping: str) -> list[str]:
    from transformers.models.auto import modeling_auto

    return list(getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES"))


def tiny_sound_model(model_type: str, task: Task, **fields: Any) -> torch.nn.Module:
    """The tiny model of a type, with a short stack of convolutions; `fields` of its configuration have the values given."""
    import torch
    from transformers import CONFIG_MAPPING

    default: Any = CONFIG_MAPPING[model_type]() if model_type in CONFIG_MAPPING else None
    module = tiny_model(model_type, task, changes={**_changes(default), **fields})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in module.parameters():
            # Biases are zeros at first, and a model of zeros says nothing about padding.
            if parameter.dim() == 1 and not parameter.any():
                parameter.uniform_(-0.1, 0.1)
    return module


def _changes(config: Any) -> dict[str, Any]:
    """Values of fields that a type's default configuration has."""
    if config is None:
        return {}
    changes = {name: value for name, value in _OF_SOUND.items() if getattr(config, name, None) is not None}
    if getattr(config, "vocab_size", 0) is None:
        changes["vocab_size"] = VOCAB
    for name in ("encoder_config", "audio_config", "encoder"):
        nested: Any = getattr(config, name, None)
        if hasattr(nested, "to_dict"):
            inner = {field: value for field, value in _OF_SOUND.items() if getattr(nested, field, None) is not None}
            changes |= {name: inner} if inner else {}
    return changes


class TensorsOfAClip:
    """Stands for a feature extractor: samples, or frames of them, of its own form whatever the sound."""

    sampling_rate = 16_000

    def __init__(self, name: str, shape: tuple[int | None, ...]) -> None:
        self.model_input_names = [name]
        self.shape = shape

    def __call__(self, clip: Any, **_settings: Any) -> dict[str, Any]:
        """Zeros of the form."""
        import numpy as np

        length = len(clip) if len(self.shape) == 1 else len(clip) // 160
        sizes = (length if size is None else size for size in self.shape)
        return {self.model_input_names[0]: np.zeros((1, *sizes), dtype=np.float32)}

    def save_pretrained(self, directory: Path) -> None:
        """Writes nothing that could be read."""
        directory.mkdir()


def form_of(module: Any) -> tuple[str, tuple[int | None, ...]]:
    """Name and shape of a module's input, found by running it.

    Raises:
        UnsupportedModelError: it takes none of the forms that are known.
    """
    import torch

    name = module.main_input_name
    generator = torch.Generator().manual_seed(0)
    errors: list[str] = []
    for shape in _forms(module.config):
        length = _CLIPS[min(len(shape), 2)][0]
        clip = torch.randn(1, *(length if size is None else size for size in shape), generator=generator)
        further = (
            {"decoder_input_ids": torch.ones((1, 1), dtype=torch.int64)}
            if "decoder_input_ids" in inspect.signature(module.forward).parameters
            else {}
        )
        try:
            with torch.no_grad():
                module(**{name: clip}, **further)
        except Exception as error:  # noqa: BLE001 - the next form is tried
            errors.append(f"{type(error).__name__}: {error}".partition("\n")[0])
        else:
            return name, shape
    raise UnsupportedModelError(f"it takes no sound in a form that is known: {'; '.join(errors)}")


def _forms(config: Any) -> Iterator[tuple[int | None, ...]]:
    sources = [config, getattr(config, "encoder_config", None), getattr(config, "audio_config", None)]
    names = ("feature_projection_input_dim", "num_mel_bins", "input_feat_per_channel", "input_dim", "feature_size")
    sizes = [
        getattr(source, name) for source in sources for name in names if isinstance(getattr(source, name, None), int)
    ]
    positions = getattr(config, "max_source_positions", None)
    frames = getattr(config, "max_length", None)
    if isinstance(frames, int) and sizes and getattr(config, "patch_size", None):
        yield (frames, sizes[0])
    if isinstance(positions, int) and sizes:
        yield (sizes[0], 2 * positions)
    for size in sizes:
        yield (None, size)
    yield (None,)


def check_reference(model_type: str, task: Task) -> dict[str, Any]:
    """The facts of a reference. Raises `UnsupportedModelError` for one that sound does not change."""
    import torch

    module: Any = tiny_sound_model(model_type, task)
    name, shape = form_of(module)
    if task != "speech-seq2seq":
        first, second = (_alone(module, name, clip) for clip in _clips(shape)[:2])
        if first.shape == second.shape and torch.allclose(first, second, atol=1e-3):
            raise UnsupportedModelError(f"The tiny {model_type!r} is degenerate: sound does not change its scores.")
    return {"class": type(module).__name__, "input": f"{name} {list(shape)}"}


def check_scores(module: Any, backend: str, facts: dict[str, Any], *, task: Task) -> dict[str, Any]:
    """Scores clips of unequal lengths in one batch, through programs of two lengths."""
    import numpy as np

    from qeff_framework.tasks import task_spec

    name, shape = form_of(module)
    clips = _clips(shape)
    wanted = [_alone(module, name, clip).numpy() for clip in clips]
    model: Any = task_spec(task).model_class
    sizes = {"seq_len": _LENGTHS[len(shape)]} if None in shape else {}
    compiled = compiled_model(
        model(module, processor=TensorsOfAClip(name, shape)), backend, facts, {"batch_size": _BATCH, **sizes}
    )
    with stage("execute", facts), compiled.load() as runner:
        rows = [clip[0].numpy() for clip in clips]
        together = runner.generate({name: rows})
        alone = runner.generate({name: rows[1:]})
    error = absolute = 0.0
    rows_of: dict[int, list[Any]] = {}
    for first, found, expected in ((0, together, wanted), (1, alone, wanted[1:])):
        logits, lengths = found if isinstance(found, tuple) else (found, None)
        for number, want in enumerate(expected):
            if lengths is not None and lengths[number] != len(want):
                facts["stage"] = "frames"
                raise CheckError(f"clip {number} has {lengths[number]} frames instead of {len(want)}", facts)
            got = logits[number] if lengths is None else logits[number, : len(want)]
            rows_of.setdefault(first + number, []).append(got)
            difference = float(np.abs(got - want).max())
            error, absolute = largest(error, difference / float(want.std())), largest(absolute, difference)
    # The last row twice: beside a longer clip, and alone in a shorter program.
    beside, by_itself = rows_of[len(wanted) - 1]
    facts["logit_error"], facts["absolute_error"] = error, absolute
    facts["padding_error"] = float(np.abs(beside - by_itself).max())
    if not error <= HIDDEN_TOLERANCE and not error <= _rounding(module, name, clips):
        facts["stage"] = "logits"
        raise CheckError(f"a logit differs by {error:.1e}", facts)
    return facts


def _rounding(module: Any, name: str, clips: Sequence[torch.Tensor]) -> float:
    """A multiple of how far PyTorch's own logits move where each sample changes by its last bit, in standard deviations."""
    moves = []
    for clip in clips:
        want = _alone(module, name, clip)
        for bit in BITS:
            moved = _alone(module, name, changed_by(bit, {name: clip})[name])
            moves.append(float((moved - want).abs().max() / want.std()))
    return ROUNDINGS * max(moves)


def check_speech_seq2seq(module: Any, backend: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Decodes two clips in one batch."""
    import torch
    import transformers

    from qeff_framework.auto import QEFFAutoModelForSpeechSeq2Seq
    from qeff_framework.generation import SCORE_SETTINGS

    name, shape = form_of(module)
    clips = _clips(shape)
    generation_config: Any = transformers.GenerationConfig  # untyped
    generate: Any = transformers.GenerationMixin.generate
    tokens, margins = [], []
    for clip in clips:
        with plain_generation(module), torch.no_grad():
            result = generate(
                module,
                **{name: clip},
                generation_config=generation_config(
                    max_new_tokens=STEPS,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                    decoder_start_token_id=module.config.decoder_start_token_id,
                ),
            )
        logits = torch.cat(result.logits).float()
        best = logits.topk(2).values
        margins.append(float(((best[:, 0] - best[:, 1]) / logits.std(dim=-1)).min()))
        tokens.append(result.sequences[0, -STEPS:].tolist())
    facts["margin"] = round(min(margins), 5)
    if len({token for row in tokens for token in row}) < 2:
        raise UnsupportedModelError(f"The tiny model is degenerate: it gives {tokens}.")
    sizes = {"seq_len": _LENGTHS[len(shape)]} if None in shape else {}
    model = QEFFAutoModelForSpeechSeq2Seq(module, processor=TensorsOfAClip(name, shape))
    compiled = compiled_model(model, backend, facts, {"batch_size": _BATCH, **sizes, "ctx_len": CONTEXT})
    with stage("execute", facts), compiled.load() as runner:
        given = {name: [clip[0].numpy() for clip in clips]}
        plain = dict.fromkeys(SCORE_SETTINGS)
        start = module.config.decoder_start_token_id
        found = runner.generate(
            given, max_new_tokens=STEPS, ignore_eos=True, decoder_start_token_id=start, **plain
        ).generated_ids
    for number, (got, want) in enumerate(zip(found, tokens, strict=True)):
        if got != want:
            facts["stage"] = "tokens"
            step = next(
                (step for step, pair in enumerate(zip(got, want, strict=False)) if pair[0] != pair[1]), len(got)
            )
            raise CheckError(f"clip {number} differs from step {step} on", facts)
    return facts


def _clips(shape: tuple[int | None, ...]) -> list[torch.Tensor]:
    """Random clips ``[1, ...]`` of unequal lengths where the form has lengths."""
    import torch

    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(1, *(length if size is None else size for size in shape), generator=generator)
        for length in _CLIPS[min(len(shape), 2)]
    ]


def _alone(module: Any, name: str, clip: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        logits: torch.Tensor = module(**{name: clip}).logits[0]
    return logits
