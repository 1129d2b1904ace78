"""Tiny models of sound, their processors, and synthetic clips."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    CONFIG_MAPPING,
    AddedToken,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    GenerationConfig,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

RATE = 16_000
_LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmno"]
_TINY: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": len(_LETTERS),
    "pad_token_id": 0,
    "conv_dim": (16, 16),
    "conv_stride": (20, 4),
    "conv_kernel": (40, 6),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def speech_model(model_type: str, head: Any = AutoModelForCTC, **config: Any) -> PreTrainedModel:
    """A random model of this type, with weights that make its scores depend on the sound."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module: PreTrainedModel = head.from_config(CONFIG_MAPPING[model_type](**_TINY | config))
        for parameter in module.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return module.eval()


def sound_classifier(model_type: str, **config: Any) -> PreTrainedModel:
    return speech_model(model_type, AutoModelForAudioClassification, num_labels=3, **config)


def clip(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Harmonics of a gliding voice, in syllables, with some noise."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 2 * np.pi * np.cumsum(110 + 25 * np.sin(2 * np.pi * 0.4 * time + seed)) / RATE
    voice = sum(np.sin(pitch * harmonic) / harmonic for harmonic in range(1, 9))
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * time + seed), 0, 1)
    sound: NDArray[np.float32] = (0.2 * voice * syllables + 0.01 * random.standard_normal(time.size)).astype(np.float32)
    return sound


def speech_processor(folder: Path) -> Wav2Vec2Processor:
    """A feature extractor for waveforms, and a tokenizer of letters."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: index for index, letter in enumerate(_LETTERS)}))
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    return Wav2Vec2Processor(feature_extractor=extractor, tokenizer=Wav2Vec2CTCTokenizer(str(vocabulary)))


def frame_extractor() -> SeamlessM4TFeatureExtractor:
    """Mel frames, two of them side by side."""
    return SeamlessM4TFeatureExtractor(feature_size=20, num_mel_bins=20)


#: Tokens of a tiny Whisper: text, end, start, two languages, two tasks, no time stamps; time stamps behind.
END, START, LANGUAGES, TASKS, NO_TIMES = 50, 51, {"<|en|>": 52, "<|de|>": 53}, {"translate": 54, "transcribe": 55}, 56
#: Begins what was said before.
PREVIOUS = 4
_WHISPER_VOCABULARY = NO_TIMES + 1 + 1501


def whisper(seed: int = 0, positions: int = 64, window: int = 30) -> PreTrainedModel:
    """A random Whisper that reads windows of so many seconds, and whose decoder has so many positions."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = WhisperForConditionalGeneration(
            WhisperConfig(
                vocab_size=_WHISPER_VOCABULARY,
                num_mel_bins=8,
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
                max_target_positions=positions,
                max_source_positions=50 * window,
                **dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), END),
                decoder_start_token_id=START,
                suppress_tokens=None,
                begin_suppress_tokens=None,
            )
        )
        for parameter in module.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.6)
    module.generation_config = GenerationConfig(
        eos_token_id=END,
        bos_token_id=END,
        pad_token_id=END,
        decoder_start_token_id=START,
        suppress_tokens=[1, 2, START, *LANGUAGES.values(), *TASKS.values()],
        begin_suppress_tokens=[3, END],
        lang_to_id=LANGUAGES,
        task_to_id=TASKS,
        is_multilingual=True,
        no_timestamps_token_id=NO_TIMES,
        max_initial_timestamp_index=50,
        return_timestamps=False,
        prev_sot_token_id=PREVIOUS,
    )
    return module.eval()


def whisper_extractor(window: int = 30) -> WhisperFeatureExtractor:
    """Windows of so many seconds, with few mel bins."""
    return WhisperFeatureExtractor(feature_size=8, chunk_length=window)


def whisper_processor(window: int = 30) -> WhisperProcessor:
    """With a tokenizer of characters for the tokens of `whisper`."""
    times = [f"<|{step * 0.02:.2f}|>" for step in range(_WHISPER_VOCABULARY - NO_TIMES - 1)]
    ends = {"<|endoftext|>": END, "<|startoftranscript|>": START, "<|notimestamps|>": NO_TIMES}
    specials = {"<|startofprev|>": PREVIOUS, **ends, **LANGUAGES, **{f"<|{task}|>": TASKS[task] for task in TASKS}}
    space = "\u0120"  # byte-level tokenizers write it so
    vocabulary = {
        character: index
        for index, character in enumerate(f"0123?{string.ascii_lowercase}{space}{string.ascii_uppercase}"[:END])
        if index != PREVIOUS
    }
    vocabulary |= specials | {time: NO_TIMES + 1 + index for index, time in enumerate(times)}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], additional_special_tokens=[*specials])
    tokenizer.add_tokens([AddedToken(time, normalized=False) for time in times])
    assert len(tokenizer) == _WHISPER_VOCABULARY
    return WhisperProcessor(feature_extractor=whisper_extractor(window), tokenizer=tokenizer)


def whisper_tokens(module: PreTrainedModel, seconds: int, new_tokens: int) -> list[int]:
    """What Transformers makes of `clip(seconds, seconds)`, which fits into a window."""
    extractor = whisper_extractor(module.config.max_source_positions // 50)
    made = extractor(clip(seconds, seconds), sampling_rate=RATE, return_tensors="pt")
    tokens: list[int] = module.generate(input_features=made["input_features"], max_new_tokens=new_tokens)[0].tolist()
    return tokens
