from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from qeff_framework.artifacts import create_and_dump_qconfigs
from qeff_framework.contracts import Specialization
from qeff_framework.errors import ArtifactError


class Mode(enum.Enum):
    FAST = "fast"


@dataclass(frozen=True, kw_only=True)
class Nested:
    mode: Mode
    names: frozenset[str]


class FuseNorms:
    pass


def dump(directory, **changes):
    arguments = {
        "huggingface_config": {"model_type": "gpt2", "id2label": {0: "no", 1: "yes"}},
        "export_dir": Path("/store/exports/gpt2"),
        "compile_dir": Path("/store/compiled/gpt2"),
        "torch_transforms": ["Second@1", "First@2"],
        "onnx_transforms": {FuseNorms},
        "specializations": [Specialization(name="Prefill", dims={"seq_len": 32}), {"seq_len": 1}],
        "compiler_options": {
            "num_cores": 16,
            "num_devices": 2,
            "nested": Nested(mode=Mode.FAST, names=frozenset("ba")),
        },
        "backend": {"name": "acme", "distribution": "qeff-acme", "version": "1.0", "fingerprint": {"sdk": "2.1"}},
        "sdk_versions": {"acme_sdk": "2.1", "driver": None},
    }
    return create_and_dump_qconfigs(directory, **{**arguments, **changes})


def test_readers_of_the_known_file_find_what_they_look_for(tmp_path):
    path = dump(tmp_path, onnx_path=Path("/store/exports/gpt2/model.onnx"), extra={"note": ("a", 1)})
    assert path == tmp_path / "qconfig.json"
    assert json.loads(path.read_text()) == {
        "huggingface_config": {"model_type": "gpt2", "id2label": {"0": "no", "1": "yes"}},
        "qpc_config": {
            "QEff_config": {
                "pytorch_transforms": ["Second@1", "First@2"],
                "onnx_transforms": ["FuseNorms"],
                "onnx_path": "/store/exports/gpt2/model.onnx",
                "export_dir": "/store/exports/gpt2",
            },
            "compiler_config": {
                "compile_dir": "/store/compiled/gpt2",
                "specializations": [{"seq_len": 32, "_graph_name": "Prefill"}, {"seq_len": 1}],
                "num_cores": 16,
                "num_devices": 2,
                "aic_num_cores": 16,
                "mdp_ts_num_devices": 2,
                "nested": {"mode": "fast", "names": ["a", "b"]},
            },
            "aic_sdk_config": {"acme_sdk": "2.1", "driver": None},
        },
        "backend": {"name": "acme", "distribution": "qeff-acme", "version": "1.0", "fingerprint": {"sdk": "2.1"}},
        "note": ["a", 1],
    }


def test_the_text_is_sorted_and_indented_by_four(tmp_path):
    text = dump(tmp_path).read_text()
    assert text == json.dumps(json.loads(text), indent=4, sort_keys=True, separators=(",", ":")) + "\n"
    assert text.startswith('{\n    "backend":{\n        "distribution":"qeff-acme",')


def test_the_same_content_gives_the_same_text(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = dump(tmp_path / "one", huggingface_config={"a": 1, "b": {"x", "y", "z"}})
    two = dump(tmp_path / "two", huggingface_config={"b": {"z", "y", "x"}, "a": 1})
    assert one.read_bytes() == two.read_bytes()


def test_infinities_are_written_as_transformers_writes_them(tmp_path):
    content = json.loads(dump(tmp_path, huggingface_config={"time_step_limit": (0.0, math.inf)}).read_text())
    assert content["huggingface_config"]["time_step_limit"] == [0.0, {"__float__": "Infinity"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"huggingface_config": {"a": [math.nan]}}, r"huggingface_config\.a\[0\] is NaN"),
        ({"backend": {"handle": object()}}, r"cannot hold 'backend\.handle': JSON has no form for builtins\.object"),
        ({"compiler_options": {"compile_dir": "x"}}, "compiler option 'compile_dir'"),
        ({"extra": {"backend": {}}}, "entry of `extra` 'backend'"),
        ({"qpc_config": {"QEff_config": {}}}, "entry of `qpc_config` 'QEff_config'"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_left(tmp_path, changes, message):
    with pytest.raises(ArtifactError, match=message):
        dump(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []
