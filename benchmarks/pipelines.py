"""Time of each program of a pipeline beside diffusers on the same processor, in interleaved rounds.

python -m benchmarks.pipelines [--rounds N] [--threads N] [STRUCTURE ...]

Denoisers and autoencoders have the widths of real ones and fewer layers: kernels take the time, as with a whole model. A round
makes one picture with each; the ratio of a round is that of the mean times of a call. Beside the time on the clock stands that of
all processors together, which another process on the machine changes less. The goal is a ratio of at most 0.8 for the denoiser.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from qeff_framework import QEFFDiffusionPipeline, load_compiled
from qeff_framework.coverage import tiny_components
from qeff_framework.coverage import tiny_pipelines as tiny
from qeff_framework.diffusion.components import METHODS
from qeff_framework.diffusion.folder import components_with_weights

STEPS = 4
TEXT = 256
#: Of one component and method: seconds on the clock and of the processors, for each call.
Times = Mapping[str, list[tuple[float, float]]]


def text_encoder(kind: str = "CLIPTextModel") -> Any:
    """CLIP with four layers over 77 tokens."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=514, hidden_size=TEXT, intermediate_size=4 * TEXT, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=512, eos_token_id=513, pad_token_id=513, projection_dim=TEXT,
    )  # fmt: skip
    return getattr(transformers, kind)(config).eval()


def autoencoder(channels: int, **changed: Any) -> Any:
    """Sides are 8 times as long as those of the latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[128, 256, 512, 512], norm_num_groups=32, latent_channels=channels, layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, **changed,
    ).eval()  # fmt: skip


def unet() -> tuple[Any, dict[str, Any]]:
    """Stable Diffusion 1 with its own first two widths, 320 and 640, over latents of 32 x 32."""
    pipeline = tiny.tiny_pipeline("stable-diffusion").pipeline
    denoiser = tiny_components.unet(
        block_out_channels=(320, 640), norm_num_groups=32, sample_size=32, attention_head_dim=8, layers_per_block=1,
        cross_attention_dim=TEXT, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    pipeline.register_modules(
        unet=denoiser.eval(),
        vae=autoencoder(4),
        text_encoder=text_encoder(),
        tokenizer=tiny_components.clip_tokenizer(77),
    )
    return _sized(pipeline), {"height": 256, "width": 256}


def xl() -> tuple[Any, dict[str, Any]]:
    """Stable Diffusion XL with its own first two widths, 320 and 640, and two layers of attention in a block."""
    pipeline = tiny.tiny_pipeline("stable-diffusion-xl").pipeline
    denoiser = tiny_components.unet(
        block_out_channels=(320, 640), norm_num_groups=32, sample_size=32, attention_head_dim=(5, 10), layers_per_block=1,
        cross_attention_dim=2 * TEXT, use_linear_projection=True, addition_embed_type="text_time",
        transformer_layers_per_block=(1, 2), addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=TEXT + 6 * 32,
    )  # fmt: skip
    tokenizer = tiny_components.clip_tokenizer(77)
    pipeline.register_modules(
        unet=denoiser.eval(), vae=autoencoder(4), tokenizer=tokenizer, tokenizer_2=tokenizer,
        text_encoder=text_encoder(), text_encoder_2=text_encoder("CLIPTextModelWithProjection"),
    )  # fmt: skip
    return _sized(pipeline), {"height": 256, "width": 256}


def transformer() -> tuple[Any, dict[str, Any]]:
    """Stable Diffusion 3 with two blocks of its own width, 1536, over 256 patches."""
    from diffusers import SD3Transformer2DModel

    pipeline = tiny.tiny_pipeline("stable-diffusion-3").pipeline
    denoiser = SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=64,
        num_attention_heads=24, caption_projection_dim=1536, joint_attention_dim=32, pooled_projection_dim=32,
        qk_norm="rms_norm",
    )  # fmt: skip
    changed = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06}
    pipeline.register_modules(transformer=denoiser.eval(), vae=autoencoder(16, **changed))
    return _sized(pipeline), {"height": 256, "width": 256, "max_sequence_length": 16}


def flux() -> tuple[Any, dict[str, Any]]:
    """Flux with one double and two single blocks of 1536 numbers, half of its width, over 1024 patches."""
    from diffusers import FluxTransformer2DModel

    pipeline = tiny.tiny_pipeline("flux").pipeline
    denoiser = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=128, num_attention_heads=12,
        joint_attention_dim=32, pooled_projection_dim=tiny_components.TEXT, axes_dims_rope=(16, 56, 56), guidance_embeds=True,
    )  # fmt: skip
    pipeline.register_modules(transformer=denoiser.eval())
    return pipeline, {"height": 64, "width": 64, "max_sequence_length": 16, "guidance": False}


def _sized(pipeline: Any) -> Any:
    """The pipeline for its autoencoder, whose factor it has read from the one before."""
    from qeff_framework.diffusion.folder import further_arguments

    return type(pipeline)(**pipeline.components, **further_arguments(pipeline))


STRUCTURES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    each.__name__: each for each in (unet, xl, transformer, flux)
}


@contextmanager
def timed(pipeline: Any) -> Iterator[Times]:
    """The times of the calls of each component in the block."""
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter(), time.process_time()
            result = function(*args, **kwargs)
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
            return result

        return run

    with ExitStack() as stack:
        for name, component in components_with_weights(pipeline).items():
            for method in METHODS:
                if hasattr(component, method):
                    title = name if method == "forward" else f"{name}.{method}"
                    run = watched(title, getattr(component, method))
                    own = vars(type(component)).get(method)
                    if getattr(own, "__name__", "") == "handed":
                        # A component that runs programs has a class of its own, and refuses calls when it is changed itself.
                        setattr(type(component), method, staticmethod(run))
                        stack.callback(setattr, type(component), method, own)
                    else:
                        setattr(component, method, run)
                        stack.callback(delattr, component, method)
        yield times


def means(pipeline: Any, run: Any, sizes: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The mean times of a call of each component, while one picture is made."""
    given = {name: value for name, value in sizes.items() if name != "guidance"}
    with timed(pipeline) as times:
        run(
            prompt="a lighthouse",
            num_inference_steps=STEPS,
            output_type="np",
            generator=torch.Generator().manual_seed(1),
            **given,
        )
    return {
        name: (statistics.fmean(clock for clock, _ in calls), statistics.fmean(all_ for _, all_ in calls))
        for name, calls in times.items()
    }


def measure(name: str, rounds: int) -> Iterator[str]:
    """A line of the table for each component."""
    pipeline, sizes = STRUCTURES[name]()
    pipeline.set_progress_bar_config(disable=True)
    weights = {
        part: sum(each.numel() for each in module.parameters())
        for part, module in components_with_weights(pipeline).items()
    }
    with tempfile.TemporaryDirectory() as directory:
        compiled = QEFFDiffusionPipeline(pipeline).compile("ort_sim", compile_dir=f"{directory}/{name}", **sizes)
        with load_compiled(compiled.directory, num_threads=torch.get_num_threads()) as runner:
            loaded = runner.pipeline  # type: ignore[attr-defined]
            loaded.set_progress_bar_config(disable=True)
            pairs = [(means(loaded, runner, sizes), means(pipeline, pipeline, sizes)) for _ in range(rounds + 1)][1:]
    for part in pairs[0][1]:
        ours, theirs = (statistics.median(pair[side][part][0] for pair in pairs) for side in (0, 1))
        ratios = [sorted(mine[part][kind] / other[part][kind] for mine, other in pairs) for kind in (0, 1)]
        clock, processors = (f"{statistics.median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})" for each in ratios)
        count = f"{weights[part.partition('.')[0]] / 1e6:.1f} M"
        yield f"| {name} | {part} | {count} | {ours * 1e3:.1f} | {theirs * 1e3:.1f} | {clock} | {processors} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", nargs="*", choices=[*STRUCTURES, []], metavar="STRUCTURE")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of both; by default those that torch takes")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print("| Structure | Component | Weights | ms a call | diffusers, ms | Ratio, clock | Ratio, processors |")
    print(f"|{'---|' * 7}", flush=True)
    for structure in options.structures or STRUCTURES:
        for line in measure(structure, options.rounds):
            print(line, flush=True)
