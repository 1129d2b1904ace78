"""Pipelines of diffusers through ort_sim: pictures as eager ones, refusals before any work, and files that appear when all is done."""

from __future__ import annotations

import copy
import filecmp
import importlib.util
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from diffusers import EulerDiscreteScheduler, FirstBlockCacheConfig
from PIL import Image

from qeff_framework import QEFFDiffusionPipeline, load_compiled
from qeff_framework.cli.app import main
from qeff_framework.cli.picture_input import PictureInput, class_of_artifact, for_pictures
from qeff_framework.contracts import CompiledModel
from qeff_framework.coverage.tiny_pipelines import tiny_pipeline
from qeff_framework.diffusion.calls import PipelineModules, call_of
from qeff_framework.diffusion.folder import with_components
from qeff_framework.errors import CheckpointError, InputError, OptionError, UnsupportedModelError
from qeff_framework.export.pipeline import pipeline_graph
from qeff_framework.export.portable_graph import GraphRequest
from qeff_framework.runtime.pipeline import CompiledDiffusionPipeline
from qeff_framework.sources.pipeline import PipelineSource
from tests.pipelines import random_adapter, tiny_stable_diffusion

STEPS = 4


@pytest.fixture(scope="module")
def eager() -> Any:
    return tiny_stable_diffusion()


@pytest.fixture(scope="module")
def folder(eager: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pipeline")
    eager.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def compiled(folder: Path, session_store: Path) -> CompiledModel:
    return QEFFDiffusionPipeline.from_pretrained(folder).compile("ort_sim", height=64, width=64)


@pytest.fixture(scope="module")
def runner(compiled: CompiledModel) -> Iterator[CompiledDiffusionPipeline]:
    with load_compiled(compiled.directory) as loaded:
        assert isinstance(loaded, CompiledDiffusionPipeline)
        yield loaded


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_picture_is_that_of_diffusers(eager: Any, runner: CompiledDiffusionPipeline) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    seen: list[int] = []

    def on_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        return tensors

    asked: dict[str, Any] = {
        "negative_prompt": "fog",
        "guidance_scale": 7.5,
        "num_inference_steps": STEPS,
        "latents": latents,
        "output_type": "np",
    }
    expected = eager("a lighthouse", **asked)
    found = runner("a lighthouse", callback_on_step_end=on_step, **asked)
    assert type(found) is type(expected)
    assert np.abs(found.images - expected.images).max() < 1e-3
    assert expected.images.std() > 0.01  # a picture with contents
    assert seen == list(range(STEPS))
    other = runner("a tower by night", **asked).images
    assert np.abs(other - found.images).max() > 1e-5  # the prompt has an influence
    # A scheduler with time steps between whole numbers takes the place of one that counts them.
    own = runner.scheduler
    eager.scheduler = EulerDiscreteScheduler.from_config(own.config)
    runner.scheduler = EulerDiscreteScheduler.from_config(own.config)
    expected = eager("a lighthouse", **asked)
    assert np.abs(runner("a lighthouse", **asked).images - expected.images).max() < 1e-3
    eager.scheduler = runner.scheduler = own


def test_the_attention_of_every_component_is_an_op_of_the_dialect(compiled: CompiledModel, eager: Any) -> None:
    assert [*compiled.programs] == ["text_encoder", "unet", "vae"]
    attentions = {
        name: sum(type(each).__name__ in ("Attention", "CLIPAttention") for each in getattr(eager, name).modules())
        for name in compiled.programs
    }
    # Encoding pictures is not a part of the program.
    attentions["vae"] -= sum(type(each).__name__ == "Attention" for each in eager.vae.encoder.modules())
    found = {}
    for file in compiled.directory.parent.parent.glob("exports/*/model.onnx"):
        name = _component(file.parent)
        if name in attentions:
            nodes = onnx_ir.load(file).graph.all_nodes()
            found[name] = sum((node.domain, node.op_type) == ("qeff", "Attention") for node in nodes)
    assert found == attentions
    assert all(attentions.values())


def test_an_export_refers_to_the_files_of_a_folder(compiled: CompiledModel, folder: Path) -> None:
    # Another test may have exported an equal folder before, whose files are linked then.
    referring = {
        _component(shard.parent)
        for shard in compiled.directory.parent.parent.glob("exports/*/diffusion_pytorch_model.safetensors")
        for name in ("unet", "vae")
        if shard.stat().st_nlink > 1 and filecmp.cmp(shard, folder / name / shard.name, shallow=False)
    }
    assert referring == {"unet", "vae"}


def _component(export: Path) -> str:
    from qeff_framework.contracts import ExportedModel

    return str(ExportedModel.load(export).metadata.get("call", {}).get("component"))


def test_a_call_that_no_program_fits_is_refused_with_what_there_is(runner: CompiledDiffusionPipeline) -> None:
    with pytest.raises(InputError, match="enable_first_block_cache=True"):
        runner("a lighthouse", cache_threshold=0.1)
    with pytest.raises(
        InputError, match=r"unet\(.*sample \[1, 4, 8, 8\].* has programs for unet\(.*sample \[2, 4, 8, 8\]"
    ):
        runner("a lighthouse", guidance_scale=1.0, num_inference_steps=1)
    runner.pipeline.vae.enable_tiling()
    with pytest.raises(InputError, match=r"vae was changed \(use_tiling\).*compile that"):
        runner("a lighthouse", num_inference_steps=1)
    with pytest.raises(InputError, match=r"vae was changed \(use_tiling\)"):
        runner.pipeline("a lighthouse", num_inference_steps=1, height=64, width=64)  # those who call it itself as well
    runner.pipeline.vae.disable_tiling()
    own = runner.pipeline.unet
    runner.pipeline.unet = tiny_stable_diffusion().unet
    with pytest.raises(InputError, match="unet was replaced since the artifact was loaded"):
        runner("a lighthouse", num_inference_steps=1)
    runner.pipeline.unet = own
    # It would add the token before it finds that the text encoder has no weights.
    before = len(runner.pipeline.tokenizer)
    with pytest.raises(InputError, match=r"load_textual_inversion\(\) changes components"):
        runner.pipeline.load_textual_inversion({"fog": torch.ones(16)}, token="fog")
    assert len(runner.pipeline.tokenizer) == before
    own = runner.pipeline.tokenizer
    runner.pipeline.tokenizer = copy.deepcopy(own)
    runner.pipeline.tokenizer.add_tokens(["lighthouse"])
    with pytest.raises(InputError, match="tokenizer was changed"):
        runner("a lighthouse", num_inference_steps=1)
    runner.pipeline.tokenizer = own
    with pytest.raises(OptionError, match="give adapter as well"):
        runner("a lighthouse", adapter_weights=0.5)


def test_what_cannot_be_compiled_is_refused_before_any_work(
    store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A component that was taken away is also lost to the pipeline's config: others must not get this pipeline.
    eager = tiny_stable_diffusion()
    pipeline = QEFFDiffusionPipeline(eager)
    with pytest.raises(OptionError, match="height=60.*divisible by 8"):
        pipeline.compile("ort_sim", height=60, width=64)
    with pytest.raises(OptionError, match="height and width belong together"):
        pipeline.compile("ort_sim", height=64)
    with pytest.raises(OptionError, match="height and width are pixels, and 0 is none"):
        pipeline.compile("ort_sim", height=0, width=64)
    with pytest.raises(OptionError, match="guidance_runs=2 does not go with guidance=False"):
        pipeline.compile("ort_sim", guidance_runs=2, guidance=False)
    (tmp_path / "options.json").write_text('{"decoder": {}}')
    for config, message in (
        (tmp_path / "options.json", "has no decoder; name options for one of vae, text_encoder, unet"),
        (tmp_path / "nothing.json", "nothing.json cannot be read as JSON"),
        ({"vae": 4}, "compile_config is options by component"),
        ({"vae": {"height": 64}}, "height of vae is for all components"),
        ({"vae": {"num_coresx": 4}}, "did you mean 'num_cores'"),
    ):
        with pytest.raises(OptionError, match=message):
            pipeline.compile("ort_sim", height=64, width=64, compile_config=config)
    with pytest.raises(OptionError, match="takes no num_frames; leave it out"):
        pipeline.compile("ort_sim", num_frames=5)
    with pytest.raises(OptionError, match=r"call compile\(\)"):
        pipeline.export()
    for component, message in (("unet", "lacks its unet"), ("tokenizer", "lacks its tokenizer")):
        with monkeypatch.context() as patch:
            patch.setattr(eager, component, None)
            with pytest.raises(InputError, match=message):
                QEFFDiffusionPipeline(eager)
    with monkeypatch.context() as patch:
        patch.setattr(eager, "safety_checker", torch.nn.Linear(1, 1))
        with pytest.raises(UnsupportedModelError, match="safety_checker=None"):
            QEFFDiffusionPipeline(eager)
    eager.enable_attention_slicing()
    with pytest.raises(UnsupportedModelError, match=r"computes attention in slices.*disable_attention_slicing"):
        QEFFDiffusionPipeline(eager)
    eager.disable_attention_slicing()
    with pytest.raises(CheckpointError, match="cannot be loaded as a pipeline"):
        QEFFDiffusionPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "A", "unet": ["diffusers", "B"], "safety": [null, null]}'
    )
    with pytest.raises(CheckpointError, match="lacks its unet, which its model_index.json names"):
        QEFFDiffusionPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "A", "safety_checker": ["diffusers", "B"]}')
    assert main(["compile", str(tmp_path), "--backend", "ort_sim"]) == 1
    assert "A has a safety checker, which is not compiled; pass safety_checker=None" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="cannot be loaded"):  # by diffusers, which knows no A
        QEFFDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "diffusers" else find(name, *more)
    )
    with pytest.raises(InputError, match=r"not installed \(diffusers\): pip install .qeff-framework\[diffusion\]"):
        QEFFDiffusionPipeline.from_pretrained("somewhere")
    assert not list(store_root.rglob("*.onnx"))


@pytest.mark.parametrize(
    ("component", "kept", "message"),
    [
        ("unet", "config.json", r"lacks its unet: no file with weights lies in .*unet; download it again"),
        ("tokenizer", "tokenizer_config.json", r"lacks its tokenizer: no file with tokens lies in .*tokenizer;"),
        (
            "vae",
            "",
            r"lacks its vae, without which StableDiffusionPipeline does not run: its model_index.json names none",
        ),
    ],
)
def test_a_folder_that_is_not_complete_is_refused(
    folder: Path, tmp_path: Path, component: str, kept: str, message: str
) -> None:
    place = shutil.copytree(folder, tmp_path / "pipeline")
    for file in (place / component).iterdir():
        if file.name != kept:
            file.unlink()
    if not kept:
        index = json.loads((place / "model_index.json").read_text())
        (place / "model_index.json").write_text(json.dumps({**index, component: [None, None]}))
    with pytest.raises(CheckpointError, match=message):
        QEFFDiffusionPipeline.from_pretrained(place)


def test_an_optional_text_encoder_that_the_pipeline_needs_is_named() -> None:
    tiny = tiny_pipeline("stable-diffusion-xl")
    tiny.pipeline.register_modules(text_encoder_2=None)
    with pytest.raises(InputError, match="XLPipeline lacks its text_encoder_2, without which it does not run"):
        QEFFDiffusionPipeline(tiny.pipeline).compile("ort_sim", **tiny.sizes)


def test_the_command_writes_pictures_that_say_how_they_were_made(
    compiled: CompiledModel, runner: CompiledDiffusionPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.png"
    arguments = ["generate", str(compiled.directory), "--prompt", "a lighthouse", "--steps", "2", "--seed", "1"]
    assert main([*arguments, "--output", str(output), "--quiet"]) == 0
    assert str(output) in capsys.readouterr().out
    expected = runner("a lighthouse", num_inference_steps=2, generator=[torch.Generator().manual_seed(1)]).images[0]
    with Image.open(output) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
        told = picture.info
    assert {name: told[name] for name in ("prompt", "seed", "steps", "height", "backend")} == {
        "prompt": "a lighthouse",
        "seed": "1",
        "steps": "2",
        "height": "64",
        "backend": "ort_sim",
    }
    for wrong, message in (
        ([], "--output FILE.png"),
        (["--output", "out.jpg"], "is no PNG file"),
        (["--output", str(output), "--parallel"], "parallel cannot be given for .*: it is compiled already"),
    ):
        assert main([*arguments, *wrong]) != 0
        assert re.search(message, capsys.readouterr().err)


def test_what_diffusers_warns_about_is_told_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, tmp_path / "unsafe")
    index = tmp_path / "unsafe" / "model_index.json"
    index.write_text(index.read_text().replace('"requires_safety_checker": false', '"requires_safety_checker": true'))
    monkeypatch.setattr(logging.getLogger("diffusers"), "handlers", [caplog.handler])
    pipelines = [QEFFDiffusionPipeline.from_pretrained(tmp_path / "unsafe", safety_checker=None) for _ in range(2)]
    # Another pipeline of its components is made for the run that finds the programs.
    with_components(pipelines[0]._pipeline, {})
    assert [message for message in caplog.messages if "safety checker" in message] == caplog.messages
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("form", "arguments", "message"),
    [
        ("artifact", ["--image", "picture.png"], "StableDiffusionPipeline makes pictures of texts alone"),
        ("folder", ["--mask", "picture.png"], "give the picture with --image"),
        ("folder", ["--image", "nothing.png"], "the image nothing.png cannot be read"),
        ("folder", ["--image", "picture.png", "--mask", "small.png"], "these have 32 x 64, 64 x 64 pixels"),
        ("folder", ["--image", "picture.png", "--strength", "2"], "--strength 2.0 is out of range"),
        ("folder", ["--image", "picture.png", "-O", "height=128"], "64 x 64 pixels .*the programs are for 128 x 64"),
        ("inpainting", ["--image", "picture.png"], "say which with --mask"),
        ("inpainting", [], "StableDiffusionInpaintPipeline begins with a picture"),
        ("folder", ["-O", "batch_size=2"], "1 prompts were given, and the program makes 2 pictures at a time"),
        ("artifact", ["--cache-threshold", "0.1"], "compile with -O enable_first_block_cache=true"),
        ("folder", ["--cache-threshold", "-1"], "--cache-threshold -1.0 is out of range"),
    ],
)
def test_pictures_that_do_not_fit_are_refused_before_any_work(
    folder: Path,
    compiled: CompiledModel,
    form: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("picture.png")
    Image.new("RGB", (64, 32)).save("small.png")
    model = compiled.directory if form == "artifact" else folder
    if form == "inpainting":
        model = tmp_path / form
        shutil.copytree(folder, model)
        index = (model / "model_index.json").read_text()
        (model / "model_index.json").write_text(
            index.replace("StableDiffusionPipeline", "StableDiffusionInpaintPipeline")
        )
    monkeypatch.setattr("qeff_framework.diffusion.short_runs.recorded", lambda *_: pytest.fail("the pipeline is run"))
    backend = [] if form == "artifact" else ["--backend", "ort_sim"]
    assert main(["generate", str(model), *backend, "--prompt", "a", "--output", "out.png", *arguments]) != 0
    assert re.search(message, capsys.readouterr().err)


def test_components_of_a_folder_become_a_pipeline_that_begins_with_a_picture(folder: Path) -> None:
    model = QEFFDiffusionPipeline.from_pretrained(folder)
    given = PictureInput(prompts=1, images=[Image.new("RGB", (64, 32))], masks=[], strength=0.5)
    form, sizes = for_pictures(model, given, {})
    assert form.pipeline_class.__name__ == "StableDiffusionImg2ImgPipeline"
    assert sizes == {"height": 32, "width": 64}
    assert form._pipeline_source.stored == model._pipeline_source.stored != {}
    assert given.arguments(form.pipeline_class, 0, 1) == {"image": given.images[0], "strength": 0.5}
    with pytest.raises(OptionError, match="there is no form 'video'"):
        model.in_form("video")


def test_the_command_compiles_a_form_and_shares_the_exports_of_components(
    compiled: CompiledModel, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exports = compiled.directory.parent.parent / "exports"
    before = {place.name for place in exports.iterdir()}
    sizes = ["-O", "height=64", "-O", "width=64"]
    command = ["compile", str(folder), "--backend", "ort_sim", *sizes, "--output", str(tmp_path / "out")]
    assert main([*command, "--form", "image-to-image"]) == 0
    made = CompiledModel.load(tmp_path / "out")
    assert class_of_artifact(made).__name__ == "StableDiffusionImg2ImgPipeline"  # type: ignore[union-attr]
    assert [*made.programs] == ["text_encoder", "vae-encode", "unet", "vae"]
    assert len({place.name for place in exports.iterdir()} - before) <= 1  # what encodes pictures
    capsys.readouterr()


def test_what_is_cancelled_in_the_middle_leaves_no_file(
    compiled: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def stop(message: str) -> None:
        steps.append(message)
        if message.startswith("step 2"):
            raise KeyboardInterrupt

    monkeypatch.setattr("qeff_framework.progress.report", stop)
    arguments = ["generate", str(compiled.directory), "--prompt", "a", "--steps", "3", "--seed", "1"]
    try:
        code = main([*arguments, "--output", str(tmp_path / "out.png")])
    except KeyboardInterrupt:
        code = 130
    assert code != 0
    assert steps[-1].startswith("step 2")
    assert not [*tmp_path.iterdir()]


def test_weights_that_were_changed_make_another_pipeline(eager: Any) -> None:
    source = PipelineSource(eager, "tiny")
    before = source.identity()["components"]
    bias = eager.unet.conv_in.bias
    with torch.no_grad():
        bias[0] += 1
        source.look_again()
        after = source.identity()["components"]
        bias[0] -= 1
    assert [name for name in before if before[name] != after[name]] == ["unet"]
    # Pipelines that have a component in common share its export.
    source.exported = "vae"
    assert source.identity() == {"components": {"vae": before["vae"]}}


def test_a_picture_is_encoded_by_a_program_and_guidance_is_two_runs(eager: Any, session_store: Path) -> None:
    tiny = tiny_pipeline("stable-diffusion/inpainting")
    model = QEFFDiffusionPipeline(tiny.pipeline)
    with pytest.raises(OptionError, match=r"does not run without a picture .*give the height and width"):
        model.compile("ort_sim")
    compiled = model.compile("ort_sim", guidance_runs=2, **tiny.sizes)
    assert [*compiled.programs] == ["text_encoder", "vae-encode", "unet", "vae"]
    denoiser = CompiledModel.load(compiled.directory / compiled.programs["unet"])
    assert denoiser.metadata["call"]["arguments"]["sample"]["tensor"]["shape"][0] == 1
    asked = {**tiny.arguments, "num_inference_steps": STEPS, "output_type": "np"}

    def painted(run: Any) -> Any:
        return run("a lighthouse", generator=torch.Generator().manual_seed(1), **asked).images

    assert np.abs(painted(model) - painted(tiny.pipeline)).max() < 1e-3
    larger = {name: each.resize((96, 96)) for name, each in tiny.arguments.items() if hasattr(each, "resize")}
    with pytest.raises(InputError, match=r"96 x 96 pixels .*programs are for 64 x 64.*resize"):
        model("a lighthouse", **larger)
    with torch.no_grad():
        tiny.pipeline.unet.conv_out.bias.add_(1)
    with pytest.raises(InputError, match=r"unet of the pipeline was changed since compile \(conv_out.bias\)"):
        painted(model)


def test_steps_use_what_the_blocks_behind_the_first_added_before(
    eager: Any, session_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "qeff_framework.progress")
    tiny = tiny_pipeline("flux")
    sizes = {"guidance": False, "enable_first_block_cache": True, **tiny.sizes}
    model = QEFFDiffusionPipeline(tiny.pipeline)
    style = random_adapter({"transformer": tiny.pipeline.transformer}, seed=1, rank=2, layers=("to_q", "proj_mlp"))
    model.load_lora_weights(style, "style")
    compiled = model.compile("ort_sim", **sizes)
    parts = ["transformer-first", "transformer-rest", "transformer-skip"]
    assert [name for name in compiled.programs if "transformer" in name] == parts
    asked = {"num_inference_steps": STEPS, "output_type": "np", "height": 32, "width": 32, "max_sequence_length": 16}

    def made(run: Any, **more: Any) -> Any:
        return run("a lighthouse", generator=torch.Generator().manual_seed(1), **asked, **more).images

    model.delete_adapters("style")
    model.load_lora_weights({name: each * 2 for name, each in style.items()}, "style")
    with pytest.raises(OptionError, match="'style' was loaded after compile"):
        made(model)
    with load_compiled(compiled.directory) as loaded:
        assert isinstance(loaded, CompiledDiffusionPipeline)
        assert loaded.adapters == {"style": 1}
        for threshold, steps in ((0.0, (STEPS, 0)), (0.6, (1, STEPS - 1))):
            tiny.pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
            expected = made(tiny.pipeline)
            tiny.pipeline.transformer.disable_cache()
            assert np.abs(made(loaded, cache_threshold=threshold) - expected).max() < 1e-3
            assert loaded.cached_steps == steps
            assert caplog.messages[-1].startswith(
                f"calls of the denoiser: {steps[0]} computed, {steps[1]} from the cache"
            )
        tiny.pipeline.load_lora_weights(style, adapter_name="style")
        found = made(loaded, cache_threshold=0.0, adapter="style")
        assert np.abs(found - made(tiny.pipeline)).max() < 1e-3 < np.abs(found - expected).max()
        with pytest.raises(InputError, match="cache_threshold=-1 is out of range"):
            loaded("a lighthouse", cache_threshold=-1)
        with pytest.raises(OptionError, match="there is no 'unet'; there are: .*transformer"):
            loaded("a lighthouse", adapter="style", adapter_weights={"unet": 1.0})
        with pytest.raises(InputError, match="negative_prompt has no part in a picture without guidance"):
            loaded("a lighthouse", negative_prompt="fog")
    with pytest.raises(UnsupportedModelError, match="diffusers has no caches for UNet2DConditionModel"):
        QEFFDiffusionPipeline(eager).compile("ort_sim", height=64, width=64, enable_first_block_cache=True)


@pytest.fixture
def text_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters of text encoders go through Transformers, which asks for a version of peft that may not be installed."""
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda min_version: None)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.usefixtures("text_adapters")
def test_adapters_are_switched_without_another_compile(
    eager: Any, session_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"unet": eager.unet, "text_encoder": eager.text_encoder}
    styles = {
        "ink": random_adapter(parts, seed=1, rank=4, layers=("to_q", "to_out.0", "conv1", "q_proj")),
        "oil": random_adapter({"unet": eager.unet}, seed=2, rank=2, layers=("to_v", "conv1")),
    }
    adapted = tiny_stable_diffusion()
    asked = {"num_inference_steps": STEPS, "output_type": "np", "height": 64, "width": 64}

    def made(run: Any, **more: Any) -> Any:
        return run("a lighthouse", generator=torch.Generator().manual_seed(1), **asked, **more).images

    model = QEFFDiffusionPipeline(eager)
    for name, style in styles.items():
        model.load_lora_weights(style, adapter_name=name)
        adapted.load_lora_weights(style, adapter_name=name)
    assert model.get_active_adapters() == ["oil"]
    plain = made(eager)
    choices: list[tuple[list[str], Any]] = [(["ink"], 1.0), (["ink", "oil"], [0.7, {"unet": 0.5}])]
    expected = []
    for names, weights in choices:
        adapted.set_adapters(names, weights)
        expected.append(made(adapted))
        assert np.abs(expected[-1] - plain).max() > 1e-2
    with pytest.raises(OptionError, match="'oil' is adapter number 2; .*max_loras=2"):
        model.compile("ort_sim", height=64, width=64, max_loras=1)
    model.compile("ort_sim", height=64, width=64, max_loras=2)
    monkeypatch.setattr(model, "compile", None)
    for (names, weights), picture in zip(choices, expected, strict=True):
        model.set_adapters(names, weights)
        assert np.abs(made(model) - picture).max() < 1e-3
    assert np.abs(made(model, adapter="base") - plain).max() < 1e-3
    with pytest.raises(OptionError, match="no adapter 'chalk'; there are: ink, oil"):
        made(model, adapter="chalk")
    with pytest.raises(OptionError, match="2 numbers for 1 adapters"):
        made(model, adapter="ink", adapter_weights=[1, 2])
    # The programs have room for another one.
    later = random_adapter(parts, seed=3, rank=3, layers=("attn1.to_q", "q_proj"))
    with pytest.raises(OptionError, match="'later' is adapter number 3"):
        model.load_lora_weights(later, "later")
    model.delete_adapters("ink")
    for rank, layers, problem in (
        (5, ("conv1",), "rank 5; compile with max_lora_rank=5"),
        (1, ("ff.net.2",), "unet .*net.2"),
    ):
        with pytest.raises(OptionError, match=problem):
            model.load_lora_weights(random_adapter(parts, seed=1, rank=rank, layers=layers), "other")
    model.load_lora_weights(later, "later")
    adapted.load_lora_weights(later, adapter_name="later")
    adapted.set_adapters("later")
    found = made(model)
    assert np.abs(found - made(adapted)).max() < 1e-3 < np.abs(found - plain).max()


def test_what_a_program_cannot_do_is_refused_before_any_export(store_root: Path) -> None:
    changing = tiny_pipeline("stable-diffusion-pag")
    with pytest.raises(UnsupportedModelError, match=r"the pipeline changes its unet while it runs \(mid_block.*attn1"):
        QEFFDiffusionPipeline(changing.pipeline).compile("ort_sim", **changing.sizes)
    # With a picture it stumbles over another thing: the error of the run without one says what is wrong.
    writing = tiny_pipeline("glm_image")
    with pytest.raises(UnsupportedModelError, match=r"^the pipeline lets its vision_language_encoder write a text"):
        QEFFDiffusionPipeline(writing.pipeline).compile("ort_sim", **writing.sizes)
    assert not list(store_root.rglob("*.onnx"))


def test_the_contents_of_a_tensor_that_decide_are_named() -> None:
    class Net(torch.nn.Module):
        def forward(self, lengths: torch.Tensor) -> torch.Tensor:
            return torch.ones(max(lengths.tolist()))

    call, _ = call_of("net", "forward", Net().forward, [torch.tensor([1, 2])], {})
    request = GraphRequest(program_inputs={"call": call.as_json()})
    with pytest.raises(UnsupportedModelError, match=r"its net reads the contents of a tensor on the host \(item"):
        pipeline_graph(PipelineModules({"net": Net()}), request)


def test_what_runs_for_the_pipelines_own_contents_only_is_refused() -> None:
    class Net(torch.nn.Module):
        def forward(self, grid: torch.Tensor) -> torch.Tensor:
            return torch.ones(4).reshape(int(grid[0]) // 2, 2)

    call, _ = call_of("net", "forward", Net().forward, [torch.tensor([4])], {})
    request = GraphRequest(program_inputs={"call": call.as_json()})
    with pytest.raises(
        UnsupportedModelError, match=r"its net runs for the contents of grid that the pipeline gives it"
    ):
        pipeline_graph(PipelineModules({"net": Net()}), request)


def test_norms_of_queries_and_keys_are_ops_of_the_dialect() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.RMSNorm(4, eps=1e-6)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.norm(hidden.unflatten(-1, (2, 4))))

    call, _ = call_of("net", "forward", Net().forward, [torch.ones(1, 3, 8)], {})
    graph = pipeline_graph(PipelineModules({"net": Net()}), GraphRequest(program_inputs={"call": call.as_json()}))
    assert [node.op_type for node in graph.model.graph if node.domain] == ["RMSNorm"]


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_smoothing_with_aligned_corners_is_that_of_torch(mode: str, tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def forward(self, picture: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.interpolate(picture, size=(8, 2), mode=mode, antialias=True, align_corners=True)

    picture = torch.randn(1, 2, 3, 5, generator=torch.Generator().manual_seed(1))
    call, _ = call_of("net", "forward", Net().forward, [picture], {})
    request = GraphRequest(program_inputs={"call": call.as_json()})
    onnx_ir.save(pipeline_graph(PipelineModules({"net": Net()}), request).model, tmp_path / "net.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"picture": picture.numpy()})
    np.testing.assert_allclose(found, Net()(picture), atol=1e-5)
