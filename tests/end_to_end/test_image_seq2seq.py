"""Images that a decoder attends to: the tokens of Transformers, for images alone and with a prompt of the decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

from qeff_framework import QEFFAutoModelForImageTextToText
from qeff_framework.errors import InputError, OptionError
from tests.image_models import NEW_TOKENS, Processor, built


def model_of_two_parts() -> tuple[Any, dict[str, torch.Tensor]]:
    """The decoder numbers its tokens by itself, and is narrower than the encoder."""
    vision = ViTConfig(
        hidden_size=48,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
    )
    text = BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        is_decoder=True,
        add_cross_attention=True,
        pad_token_id=0,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text, decoder_start_token_id=2)
    module = VisionEncoderDecoderModel(config)
    module.generation_config.decoder_start_token_id = 2
    return module, {"pixel_values": torch.zeros(1, 3, 16, 16)}


class Told:
    """A streamer that keeps what it is given, and `None` for the end."""

    def __init__(self) -> None:
        self.tokens: list[int | None] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.tokens.append(None)


def test_tokens_of_images_with_and_without_prompts(session_store: Path) -> None:
    del session_store
    module, image = built(model_of_two_parts)
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def wanted(rows: torch.Tensor, *prompt: int, **settings: Any) -> list[list[int]]:
        started = torch.tensor([[2, *prompt]] * len(rows))
        with torch.no_grad():
            output = module.generate(
                pixel_values=rows,
                decoder_input_ids=started,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
                **settings,
            )
        return output[:, started.shape[1] :].tolist()

    model = QEFFAutoModelForImageTextToText(module, processor=Processor(image))
    for asked, told in (({"full_batch_size": 2}, "full_batch_size"), ({"num_images": 2}, "num_images")):
        with pytest.raises(OptionError, match=f"{told} does not apply"):
            model.compile(backend="ort_sim", img_size=16, **asked)
    model.compile(backend="ort_sim", ctx_len=16, batch_size=2, img_size=16)
    settings: dict[str, Any] = {"generation_len": NEW_TOKENS, "eos_token_id": None, "decoder_start_token_id": 2}
    with model.load() as program:
        output = program.generate(pixel_values=pixels, **settings)  # three images take turns in two rows
        assert output.generated_ids == wanted(pixels)
        assert len({tuple(row) for row in output.generated_ids}) > 1
        prompted = program.generate({"pixel_values": pixels[:2], "decoder_input_ids": [[7, 8]] * 2}, **settings)
        assert prompted.generated_ids == wanted(pixels[:2], 7, 8)
        assert prompted.prompt_lengths == [3, 3]
        told = Told()
        program.generate(pixel_values=pixels[:1], streamer=told, **settings)
        assert told.tokens == [2, *output.generated_ids[0], None]
        with pytest.raises(InputError, match="a streamer gets the tokens of one image .*; 3 images and num_beams=1"):
            program.generate(pixel_values=pixels, streamer=told, **settings)
        # The rows of an image's texts have its keys and values in common, which stay where they are.
        beams: dict[str, Any] = {"num_beams": 2, "length_penalty": 0.5}
        found = program.generate({"pixel_values": pixels, "decoder_input_ids": [[7, 8]] * 3}, **settings, **beams)
        assert found.generated_ids == wanted(pixels, 7, 8, **beams) != wanted(pixels, 7, 8)
        (hidden,) = program.image_embeddings({"pixel_values": pixels[:1]})
        with torch.no_grad():
            np.testing.assert_allclose(
                hidden, module.encoder(pixels[:1]).last_hidden_state[0].numpy(), rtol=1e-4, atol=1e-5
            )
        wrong: dict[str, tuple[dict[str, Any], str]] = {
            "size": ({"pixel_values": pixels[..., :8]}, r"pixel_values \[1, 3, 16, 8\], the program was compiled for"),
            "room": ({"pixel_values": pixels, "generation_len": 16}, "1 start tokens and 16 new ones"),
            "rows": ({"pixel_values": pixels, "decoder_input_ids": [[2]]}, "1 rows for 3 images"),
            "beams": ({"pixel_values": pixels, "num_beams": 3}, "compile with batch_size=3"),
            "sampling": ({"pixel_values": pixels, "do_sample": True}, "do_sample=True is not supported"),
            "none": ({"images": [None]}, "one image for each text"),
            "array": ({"inputs": pixels}, "a mapping with pixel_values; got"),
        }
        for given, told in wrong.values():
            with pytest.raises(InputError, match=told):
                program.generate(**{**settings, "processor": Processor(image), **given})
        with pytest.raises(InputError, match="an engine and a server"):
            program.text_generator()
