"""Pipelines under QEfficient's names: what a call and a configuration mean for `QEFFDiffusionPipeline`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qeff_framework import QEFFDiffusionPipeline
from qeff_framework.coverage.tiny_pipelines import tiny_pipeline
from qeff_framework.plugin_api import InputError, OptionError
from QEfficient import NotSupportedError, QEffFluxPipeline, QEffWanPipeline


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the core was asked to compile; it compiles nothing, and calls return their arguments."""
    asked: list[dict[str, Any]] = []

    def record(self: Any, backend: str, **options: Any) -> Any:
        asked.append({"backend": backend, **options})
        part = SimpleNamespace(backend=backend)
        return SimpleNamespace(directory=Path(f"artifact-{len(asked)}"), parts=lambda: {"unet": part})

    monkeypatch.setattr(QEFFDiffusionPipeline, "compile", record)
    monkeypatch.setattr(QEFFDiffusionPipeline, "load", lambda self, **runtime: asked[-1].update(runtime=runtime))
    monkeypatch.setattr(
        QEFFDiffusionPipeline, "generate", lambda self, *args, **given: SimpleNamespace(frames=[args, given])
    )
    return asked


def modules(**told: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": "for a test", "modules": told}


def test_a_call_compiles_for_its_sizes(
    compiled: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEFF_COMPAT_BACKEND", "qaic")
    devices = {"execute": {"device_ids": [3], "qpc_path": None}}
    config = modules(
        text_encoder={"compilation": {"onnx_path": None, "mdp_ts_num_devices": 1, "aic_num_cores": 16}},
        transformer={
            "specializations": {"batch_size": "1", "seq_len": 16},
            "compilation": {"mdp_ts_num_devices": 4, "mxfp6_matmul": True, "mdts-mos": 1, "compile_only": True},
            **devices,
        },
        vae_decoder={"compilation": {"aic-enable-depth-first": True}, **devices},
        safety_checker={},
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    pipeline = QEffFluxPipeline(tiny_pipeline("flux").pipeline, enable_first_block_cache=True)
    call = {"height": 64, "custom_config_path": tmp_path / "config.json", "parallel_compile": True}
    output = pipeline(["one", "two"], num_images_per_prompt=2, cache_threshold=0.1, **call)
    given = {"num_images_per_prompt": 2, "cache_threshold": 0.1, "height": 64, "width": 512}
    assert output.images == [(["one", "two"],), given]
    assert compiled == [
        {
            "backend": "qaic",
            "call": {"num_images_per_prompt": 2},
            "compile_config": {
                "text_encoder": {"num_cores": 16},
                "denoiser": {"num_devices": 4, "mxfp6_matmul": True, "mdts_mos": 1},
                "vae": {"aic_enable_depth_first": True},
            },
            "parallel": True,
            "enable_first_block_cache": True,
            "batch_size": 2,
            "max_sequence_length": 16,
            "height": 64,
            "width": 512,
            "runtime": {"device_ids": (3,)},
        }
    ]
    # The configuration stays, and the programs too; sizes of a call are those of that call.
    pipeline(["one", "two"], num_images_per_prompt=2, height=64)
    assert len(compiled) == 1
    assert pipeline.compile(width=64) == Path("artifact-2")
    assert compiled[1]["compile_config"] == compiled[0]["compile_config"]
    assert (compiled[1]["height"], compiled[1]["width"], compiled[1]["batch_size"]) == (512, 64, 1)
    pipeline("one", width=64)
    assert len(compiled) == 2


def test_what_a_configuration_cannot_say_is_refused(compiled: list[dict[str, Any]], tmp_path: Path) -> None:
    pipeline = QEffWanPipeline(tiny_pipeline("wan").pipeline)
    refused: tuple[tuple[Any, type[Exception], str], ...] = (
        (tmp_path / "nothing.json", InputError, "nothing.json cannot be read as JSON"),
        ({"transformer": {}}, OptionError, 'a configuration is {"modules"'),
        (modules(vae_decoder={"execute": {"qpc_path": "x"}}), NotSupportedError, "qpc_path of vae_decoder"),
        (modules(vae_decoder={"compilation": {"onnx_path": "x"}}), NotSupportedError, "onnx_path of vae_decoder"),
        (
            modules(a={"execute": {"device_ids": [0]}}, b={"execute": {"device_ids": [1]}}),
            NotSupportedError,
            "different device_ids",
        ),
        (
            modules(a={"specializations": [{"batch_size": 1}]}, b={"specializations": {"batch_size": 2}}),
            NotSupportedError,
            "different batch_size",
        ),
        (
            modules(vae_decoder={"compilation": {"aic_num_cores": 2}}, vae_encoder={}),
            NotSupportedError,
            "vae_encoder and vae are one component",
        ),
    )
    for config, kind, message in refused:
        with pytest.raises(kind, match=message):
            pipeline.compile(config, backend="ort_sim")
    assert compiled == []
    with pytest.raises(NotSupportedError, match="give cache_threshold"):
        pipeline("a", cache_threshold_high=0.1, cache_threshold_low=0.2)
