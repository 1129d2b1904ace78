"""The map of keywords: what is passed on, told, refused; and the page that is made from it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qeff_framework
import QEfficient
from qeff_framework.plugin_api import BackendUnavailableError, OptionError, Probe
from QEfficient import NotSupportedError, QEFFAutoModel, QEFFAutoModelForCausalLM
from QEfficient._compat import backends
from QEfficient._compat.backends import choose_backend, descriptor
from QEfficient._compat.keywords import COMPILE, EXPORT, FROM_PRETRAINED, GENERATE, NAMES, QAIC_CONFIG, Keyword
from QEfficient._compat.translation import of_qaic_config, of_sampling_params, translate
from QEfficient._compat.translation import simulated as of_environment
from QEfficient.migrating import page
from tests.docs.markdown import ROOT
from tests.tiny_models import tiny_causal_lm

TABLES = {
    "from_pretrained": FROM_PRETRAINED,
    "qaic_config": QAIC_CONFIG,
    "compile": COMPILE,
    "export": EXPORT,
    "generate": GENERATE,
}
SIZES = qeff_framework.QEFFAutoModelForCausalLM.shapes


def test_the_page_is_current() -> None:
    written = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    assert written == page(), "run `python -m QEfficient.migrating docs/migrating.md`"


@pytest.mark.parametrize("method", TABLES)
def test_each_keyword_stands_once_and_a_refusal_names_what_to_use(method: str) -> None:
    names = [each.name for each in TABLES[method]]
    assert len(set(names)) == len(names)
    for keyword in TABLES[method]:
        if keyword.treatment != "refused":
            continue
        with pytest.raises(NotSupportedError, match=f"{method}: {keyword.name}=7 is not supported; ") as caught:
            translate(method, TABLES[method], {keyword.name: 7})
        assert str(caught.value).endswith(keyword.note)
        assert translate(method, TABLES[method], {keyword.name: None}) == {}


def test_the_names_of_the_page_can_be_imported() -> None:
    import importlib

    for each in NAMES:
        module, _, attribute = f"QEfficient.{each.name}".rpartition(".")
        if not hasattr(importlib.import_module(module), attribute):
            importlib.import_module(f"{module}.{attribute}")
        if each.instead.startswith("QEFF") and not each.instead.endswith(("CTC", "Seq2Seq")):
            assert each.instead.partition("(")[0].partition(".")[0] in qeff_framework.__all__
    assert all(hasattr(QEfficient, name) for name in QEfficient.__all__)
    with pytest.raises(ImportError, match=r"QEfficient\.utils\.get_qpc_dir_path is not provided"):
        from QEfficient.utils import get_qpc_dir_path  # noqa: F401


def test_a_keyword_about_devices_goes_to_backends_that_have_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"mxfp6": True, "num_devices": 2, "mos": 2, "aic_hw_version": "2.0", "aic_num_cores": 8, "artifacts": True}
    wanted = {"mxfp6_matmul": True, "num_devices": 2, "mos": 2, "hw_version": "ai100", "num_cores": 8, "dry_run": True}
    assert translate("compile", COMPILE, given, backend=descriptor("qaic")) == wanted
    assert caplog.records == []
    off = {"convert_to_fp16": False, "mxfp6": False}
    assert translate("compile", COMPILE, off, backend=descriptor("qaic")) == {"convert_to_fp16": False}
    assert translate("compile", COMPILE, {**off, **given, "mos": -1}, backend=descriptor("ort_sim")) == {
        "num_cores": 8,
        "dry_run": True,
    }
    told = [record.message.partition("=")[0] for record in caplog.records]
    assert told == ["compile: mxfp6", "compile: num_devices", "compile: aic_hw_version"]
    simulated = translate("compile", COMPILE, {"mxfp6": True, "simulate": "ai100"}, backend=descriptor("ort_sim"))
    assert simulated == {"mxfp6_matmul": True, "simulate": "ai100"}
    monkeypatch.setenv("QEFF_COMPAT_SIMULATE", "ai100")
    assert (of_environment(descriptor("ort_sim")), of_environment(descriptor("qaic"))) == ({"simulate": "ai100"}, {})
    with pytest.raises(OptionError, match="aic_hw_version='3.0' is none of '2.0', 'ai100', 'ai200'"):
        translate("compile", COMPILE, {"aic_hw_version": "3.0"}, backend=descriptor("qaic"))


def test_sizes_that_the_core_does_not_have_are_refused_by_name() -> None:
    """One map decides: a size is passed on as soon as the task has it."""
    table = (Keyword(name="later", treatment="size", to="ctx_len"), Keyword(name="never", treatment="size", note="x"))
    assert translate("compile", table, {"later": 8, "never": None}, sizes=SIZES) == {"ctx_len": 8}
    with pytest.raises(NotSupportedError, match="never=True is not supported by the installed qeff-framework; x"):
        translate("compile", table, {"never": True}, sizes=SIZES)


def test_what_has_no_effect_is_told_where_it_is_listened_to(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="QEfficient")
    for _ in range(2):
        assert translate("compile", COMPILE, {"dynamo": True, "use_onnx_subfunctions": False}) == {}
    assert [record.message.partition(":")[0] for record in caplog.records] == ["compile"]


def test_qaic_config() -> None:
    assert of_qaic_config({"speculative_model_type": "target", "max_top_k_ids": 256}, SIZES) == {}
    assert of_qaic_config({"include_sampler": True, "return_pdfs": False}, SIZES) == {"include_sampler": True}
    blocked = {"enable_blocking": True, "blocking_mode": "kv", "num_kv_blocks": 4, "num_kv_heads_repeat": 2}
    options = {"num_kv_blocks": 4, "replicate_kv_heads": 2}
    assert of_qaic_config(blocked, SIZES) == options
    given = {**options, "use_onnx_subfunctions": True}
    assert translate("compile", COMPILE, given, backend=descriptor("qaic")) == {**options, "sub_functions": True}
    assert translate("compile", COMPILE, given, backend=descriptor("ort_sim")) == {}
    simulated = {"simulate": "ai100"}
    assert translate("compile", COMPILE, given | simulated, backend=descriptor("ort_sim")) == options | simulated
    with pytest.raises(NotSupportedError, match="blocking_mode='h' with num_kv_blocks is not supported"):
        of_qaic_config({**blocked, "blocking_mode": "h"}, SIZES)
    with pytest.raises(OptionError, match="unknown key 'include_sampling'; did you mean 'include_sampler'"):
        of_qaic_config({"include_sampling": True}, SIZES)
    with pytest.raises(NotSupportedError, match="speculative_model_type='turbo' is not supported; 'target'"):
        of_qaic_config({"speculative_model_type": "turbo"}, SIZES)
    with pytest.raises(NotSupportedError, match="max_top_k_ids=1024 .* among 512 tokens"):
        of_qaic_config({"max_top_k_ids": 1024}, SIZES)


def test_sampling_params() -> None:
    assert of_sampling_params(None) == {}
    assert of_sampling_params({"temperatures": [[0.5]], "top_ks": [[-1]], "repetition_penalties": [[1.5]]}) == {
        "temperature": 0.5,
        "do_sample": True,
        "top_k": 512,
        "repetition_penalty": 1.5,
    }
    assert of_sampling_params({"temperatures": [[0.0]], "top_ks": [[5]]}) == {}
    masks = np.ones((2, 8), dtype=bool)
    assert of_sampling_params({"token_bitmasks": masks}) == {}
    masks[:, [2, 5]] = False
    assert of_sampling_params({"token_bitmasks": masks}) == {"suppress_tokens": [2, 5]}
    masks[0, 7] = False
    with pytest.raises(NotSupportedError, match="token_bitmasks differs between the prompts"):
        of_sampling_params({"token_bitmasks": masks})
    with pytest.raises(OptionError, match="unknown entry 'temperature'"):
        of_sampling_params({"temperature": 1})


def test_pooling_is_none_unless_it_is_asked_for() -> None:
    """The core's own default is what a sentence-transformers checkpoint says."""
    assert QEFFAutoModel.core_arguments({}) == {"pooling": None}
    assert QEFFAutoModel.core_arguments({"pooling": "avg"}) == {"pooling": "mean"}


def test_refusals_of_from_pretrained(checkpoint: str) -> None:
    with pytest.raises(NotSupportedError, match="pooling is not for this class"):
        QEFFAutoModelForCausalLM.from_pretrained(checkpoint, pooling="mean")
    with pytest.raises(OptionError, match="num_hiden_layers"):
        QEFFAutoModelForCausalLM.from_pretrained(checkpoint, num_hiden_layers=1)
    with pytest.raises(NotSupportedError, match="enable_proxy=True is not supported; export a config"):
        QEFFAutoModelForCausalLM.from_pretrained(checkpoint, enable_proxy=True)


def test_a_module_in_memory_and_a_class_that_the_core_does_not_have() -> None:
    module = tiny_causal_lm("llama", num_hidden_layers=1)[0]
    model = QEfficient.transform(module)
    assert model.model.lm_head is module.lm_head
    assert QEfficient.transform(model) is model
    assert QEFFAutoModelForCausalLM(module, continuous_batching=True, is_tlm=True).is_tlm
    with pytest.raises(OptionError, match="QEFFAutoModelForCausalLM: unknown arguments continous_batching"):
        QEFFAutoModelForCausalLM(module, continous_batching=True)
    later = type("QEFFAutoModelForSmells", (QEFFAutoModel,), {"core_class": "QEFFAutoModelForSmells"})
    with pytest.raises(
        NotSupportedError, match="the installed qeff-framework has no QEFFAutoModelForSmells; upgrade it"
    ):
        later.from_pretrained("anything")


# --- the backend ------------------------------------------------------------------------------------------------------


def _probes(monkeypatch: pytest.MonkeyPatch, **usable: bool) -> None:
    """Each named backend works or does not; `qaic` is hardware."""

    def probe(name: str) -> Probe:
        works = usable.get(name, False)
        return Probe(can_compile=works, can_execute=works, hardware=name == "qaic", rank=1)

    monkeypatch.setattr(backends, "_probe", probe)
    monkeypatch.delenv("QEFF_COMPAT_BACKEND")


def test_the_backend_is_chosen_in_the_documented_order(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _probes(monkeypatch, qaic=True, ort_sim=True)
    assert choose_backend() == "qaic"
    monkeypatch.setenv("QEFF_BACKEND", "qnn")
    assert choose_backend() == "qnn"
    monkeypatch.setenv("QEFF_COMPAT_BACKEND", "acme")
    assert choose_backend() == "acme"
    assert choose_backend(enable_qnn=True) == "qnn"
    assert choose_backend("ort_sim", enable_qnn=True) == "ort_sim"
    assert caplog.records == []


def test_without_an_sdk_and_a_choice_a_simulator_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _probes(monkeypatch, ort_sim=True)
    assert choose_backend() == "ort_sim"
    assert "runs on backend 'ort_sim', a simulator; set QEFF_COMPAT_BACKEND" in caplog.text
    monkeypatch.setattr(backends, "_probe", lambda name: None)
    with pytest.raises(BackendUnavailableError, match="no Cloud AI SDK here.*QEFF_COMPAT_BACKEND=ort_sim"):
        choose_backend()


# --- the device's compilers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qnn", [False, True], ids=["qaic", "qnn"])
def test_a_dry_run_for_the_device(qnn: bool, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options of the script stand in the bundle; nothing is compiled, and no SDK is needed."""
    monkeypatch.setenv("QAIC_SDK_ROOT", str(tmp_path / "none"))
    monkeypatch.delenv("QNN_SDK_ROOT", raising=False)
    model = QEFFAutoModelForCausalLM.from_pretrained(checkpoint)
    chosen: dict[str, Any] = {"backend": "qaic", "aic_hw_version": "ai100"}
    if qnn:
        config = tmp_path / "qnn_config.json"
        config.write_text(json.dumps({"converter_args_extension": "--onnx_defer_loading"}))
        chosen = {"enable_qnn": True, "qnn_config": str(config)}
    path = model.compile(
        **chosen,
        prefill_seq_len=4,
        ctx_len=24,
        num_cores=4,
        num_devices=2,
        mos=2,
        artifacts=True,
        mxfp6_matmul=True,
        mxint8_kv_cache=True,
        aic_enable_depth_first=True,
    )
    content = json.loads((path / "qconfig.json").read_text(encoding="utf-8"))
    told = content["qpc_config"]["compiler_config"]
    assert content["backend"]["name"] == ("qnn" if qnn else "qaic")
    assert {name: told[name] for name in ("mos", "num_devices", "mxfp6_matmul", "aic_enable_depth_first")} == {
        "mos": 2,
        "num_devices": 2,
        "mxfp6_matmul": True,
        "aic_enable_depth_first": True,
    }
