"""On a stand-in for the Cloud AI SDK: it is what scripts run on where nothing else is chosen."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import pytest

from qaic_backend.sdk import ROOT_VARIABLE
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.utils import load_hf_tokenizer
from tests.eager import eager_greedy
from tests.sdk_standins.qaic import install_standin
from tests.tiny_models import tiny_causal_lm


def test_standin_is_chosen_and_gets_the_options_and_devices_of_the_script(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("QEFF_COMPAT_BACKEND")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sdk = install_standin(tmp_path / "sdk")
    monkeypatch.setenv(ROOT_VARIABLE, str(sdk.root))
    tokenizer = load_hf_tokenizer(checkpoint)
    module = tiny_causal_lm("llama", num_hidden_layers=1, eos_token_id=None)[0]
    wanted = eager_greedy(module, tokenizer("w5 w9 w3")["input_ids"], 5)
    with sdk.clean_imports():
        model = QEFFAutoModelForCausalLM.from_pretrained(checkpoint, qaic_config={"num_kv_heads_repeat": 2})
        asked = {"mos": 1, "aic_enable_depth_first": True, "convert_to_fp16": False, "use_onnx_subfunctions": True}
        model.compile(prefill_seq_len=4, ctx_len=24, num_cores=4, num_kv_blocks=2, **asked)
        info = model.generate(tokenizer, ["w5 w9 w3"], device_id=[0], generation_len=5, stream=False)
        assert model._program.session.info["device"]
        model._close()
    assert info.generated_ids[0].tolist() == [wanted]
    (invocation,) = sdk.invocations("qaic-compile")
    assert {"-sub-functions", "-mos=1", "-aic-enable-depth-first", "-aic-num-cores=4"} <= {*map(str, invocation.argv)}
    assert [record for record in caplog.records if record.name == "QEfficient"] == []
    sdk.assert_released()
    graph = onnx.load(model.qpc_path / "model.onnx", load_external_data=False).graph
    assert {value.type.tensor_type.shape.dim[1].dim_value for value in graph.input[2:]} == {4}
    assert sum(node.op_type == "CtxGather" for node in graph.node) == 2 * 2
