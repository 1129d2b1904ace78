"""The public names, written down a second time: whoever moves one has to change this list, and docs/stability.md says how."""

from __future__ import annotations

import importlib

import pytest

PUBLIC = {
    "qeff_framework": """
        QEFFAutoModel QEFFAutoModelForCausalLM QEFFAutoModelForFeatureExtraction QEFFAutoModelForImageTextToText
        QEFFAutoModelForQuestionAnswering QEFFAutoModelForSeq2SeqLM QEFFAutoModelForSequenceClassification
        QEFFAutoModelForTokenClassification QEFFAutoPeftModelForCausalLM QEFFBaseModel QEFFError create_and_dump_qconfigs get_backend list_backends load_compiled
    """,
    "qeff_framework.plugin_api": """
        API_VERSION BACKEND_GROUP Backend BackendError BackendUnavailableError Capabilities Check CompileError CompileOptions
        CompileRequest CompiledModel EXTENSION_GROUP ExecuteRequest ExecutionError ExecutionSession ExportError ExportRequest
        ExportedModel InputError LowRankDelta MicroscalingOptions OptionError PackedMatrix Probe QEFFError RuntimeOptions Specialization StateSpec Status
        TOOLKITS Task TensorSpec Transform TransformRequest UnsupportedModelError hookimpl option prompt_ids
    """,
    "qeff_framework.lowering": """
        Activation AttentionNode AttentionOps BindSizes CausalMaskNode CausalMaskOps CompressedProducts Computation ConstantProduct
        DOMAIN DequantizedProducts DialectNode DialectPass ExpertOps FLOAT16_MIN FLOAT32_MIN FoldConstants Gate GatherRows GraphEditor GraphPass
        InlineDialect KVGatherNode KVUpdateNode LimitConstants Limits MaskPolicy MoENode ONNX_OPSET OneHotUpdates Op PassResult
        PerGraph QuantizedMatMulNode RMSNormNode RemoveUnused RotaryTables ScatterUpdates UnrollScan WeightBlocks add_initializer attach_function
        bind_sizes computed_tensor constant_array constant_products content_key dialect_nodes graph_of has_subgraph is_weight
        made_by nodes_of operand readers replace_content require_shape same_dim specialized_graphs static_dim static_shape
        subgraphs weight_of weights
    """,
    "qeff_framework.sessions": """
        BaseSession Shape StepSelector allocate check_distinct_shapes check_positions check_rows check_specializations check_step describe_shapes
        host_inputs host_outputs resolve_shape state_buffers write_tokens
    """,
    "qeff_framework.testing": """
        BackendConformance BrokenPromiseError CheckCase CheckResult ConformanceCheck GROUPS NotClaimedError Outcome Report Settings
        Subject Tolerance UnavailableError all_checks chosen_cases run_check run_conformance
    """,
    "qeff_framework.serving": """
        AnswerStream AsyncEngine Delta Engine EngineClosedError QueueFullError TokenLogprobs
    """,
    "qeff_framework.toolchains": """
        Diagnosis Ended LOG_FILE Outcome ProbeError Toolchain ask_command ask_python keep_log run_process
    """,
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_stay(module: str) -> None:
    loaded = importlib.import_module(module)
    assert sorted(loaded.__all__) == sorted(PUBLIC[module].split())
    assert all(getattr(loaded, name) is not None for name in loaded.__all__)


def test_the_version_of_the_plugin_api_and_the_groups_agree() -> None:
    from qeff_framework import plugin_api

    major = plugin_api.API_VERSION.partition(".")[0]
    assert plugin_api.BACKEND_GROUP.endswith(f".v{major}")
    assert plugin_api.EXTENSION_GROUP.endswith(f".v{major}")
