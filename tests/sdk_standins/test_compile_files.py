"""Rows C9 to C19: what the stand-in `qaic-compile` accepts in the model and in its side files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper
from tests.sdk_standins.graphs import ACCELERATOR, Decoder, make_model, parse_graph
from tests.sdk_standins.harness import KV_FLOAT16, PREFILL_AND_DECODE, Compiler

NAMED = [
    {"name": "Prefill", "symbols": PREFILL_AND_DECODE[0]},
    {"name": "Decode", "symbols": PREFILL_AND_DECODE[1]},
]


def relu_chain(length: int) -> onnx.ModelProto:
    """x [n, 4] -> y through `length` Relu nodes named n0, n1, ..."""
    names = ["x", *(f"h{i}" for i in range(1, length)), "y"]
    nodes = [helper.make_node("Relu", [names[i]], [names[i + 1]], name=f"n{i}") for i in range(length)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    return make_model(helper.make_graph(nodes, "chain", [x], [y]))


def partition(name: str, devices: list[int], nodes: list[str] | None = None, cores: int = 4) -> dict[str, Any]:
    result: dict[str, Any] = {"name": name, "devices": [{"deviceId": d, "numCores": cores} for d in devices]}
    return result if nodes is None else {**result, "nodeList": nodes}


# C9: the ONNX file


def test_c9_garbage_bytes(compiler: Compiler) -> None:
    path = compiler.write("garbage.onnx", "this is not a protobuf " * 10)
    compiler.fails(compiler.arguments(path), "QAIC_ERROR:", "Error message:", "garbage.onnx")


def test_c9_empty_file(compiler: Compiler) -> None:
    compiler.fails(compiler.arguments(compiler.write("empty.onnx", "")), "QAIC_ERROR:", "no nodes")


def test_c9_external_data_beside_the_model(compiler: Compiler) -> None:
    path = Decoder().save(compiler.folder / "external.onnx", external=True)
    arguments = [*compiler.arguments(path, specializations=PREFILL_AND_DECODE), "-retained-state"]
    compiler.ok(arguments)

    data = path.with_name("external.onnx.data")
    data.write_bytes(data.read_bytes()[:-8])
    compiler.fails(arguments, "is too short for")
    data.unlink()
    compiler.fails(arguments, "'external.onnx.data'", "not found")


def test_c9_checker(compiler: Compiler) -> None:
    model = relu_chain(1)
    model.graph.node[0].input[0] = "nowhere"
    compiler.fails(compiler.arguments(model, specializations=[{"n": "1"}]), "Invalid ONNX model", "nowhere")


def test_c9_shape_inference_of_each_specialization(compiler: Compiler) -> None:
    model = parse_graph("g (float[n, 4] x, float[m, 4] z) => (float[n, 4] y) { y = Add (x, z) }")
    compiler.ok(compiler.arguments(model, specializations=[{"n": "2", "m": "2"}, {"n": "3", "m": "3"}]))
    compiler.fails(
        compiler.arguments(model, specializations=[{"n": "2", "m": "2"}, {"n": "3", "m": "2"}]),
        "Shape inference of specialization 1 failed",
    )


def test_c9_output_without_static_shape(compiler: Compiler) -> None:
    model = parse_graph("g (float[n] x) => (int64[1, found] y) { y = NonZero (x) }")
    compiler.fails(compiler.arguments(model, specializations=[{"n": "2"}]), "'y' has no static shape")


# C10: the specialization file


@pytest.mark.parametrize("profile", ["legacy", "1.21", "1.22"])
def test_c10_flat_form(compiler_for: Callable[[str], Compiler], profile: str) -> None:
    compiler = compiler_for(profile)
    compiler.ok(compiler.decoder_arguments())


@pytest.mark.parametrize("profile", ["legacy", "1.21"])
def test_c10_named_form_on_an_older_sdk(compiler_for: Callable[[str], Compiler], profile: str) -> None:
    compiler = compiler_for(profile)
    compiler.fails(
        compiler.decoder_arguments(specializations=NAMED),
        "[json.exception.type_error.302] type must be string, but is object",
        code=255,
    )


def test_c10_named_form(newer_compiler: Compiler) -> None:
    newer_compiler.ok(newer_compiler.decoder_arguments(specializations=NAMED))


@pytest.mark.parametrize(
    "entries",
    [
        [{**NAMED[0], "extra": "1"}, NAMED[1]],
        [NAMED[0], PREFILL_AND_DECODE[1]],
        [NAMED[0], {**NAMED[1], "name": "Prefill"}],
        [{"symbols": PREFILL_AND_DECODE[0]}, NAMED[1]],
    ],
    ids=["extra key", "mixed forms", "equal names", "no name"],
)
def test_c10_malformed_named_form(newer_compiler: Compiler, entries: list[Any]) -> None:
    newer_compiler.fails(newer_compiler.decoder_arguments(specializations=entries), "QAIC_ERROR:", "pecialization")


@pytest.mark.parametrize(
    ("value", "text", "code"),
    [
        (1, "type must be string, but is number", 255),
        (None, "type must be string, but is null", 255),
        ("1.0", "not a decimal number", 1),
        ("-1", "not a decimal number", 1),
        ("", "not a decimal number", 1),
    ],
)
def test_c10_values_are_strings_of_digits(compiler: Compiler, value: object, text: str, code: int) -> None:
    entry = {**PREFILL_AND_DECODE[0], "batch_size": value}
    compiler.fails(compiler.decoder_arguments(specializations=[entry]), text, code=code)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{not json", 255),
        ("[]", 1),
        ('{"specializations": []}', 1),
        ('{"specializations": [{"n": "1"}], "more": 1}', 1),
        ('{"specializations": [{"n": "1", "n": "2"}]}', 1),
    ],
)
def test_c10_malformed_file(compiler: Compiler, content: str, code: int) -> None:
    path = compiler.write("broken.json", content)
    compiler.fails([*compiler.arguments(relu_chain(1)), f"-network-specialization-config={path}"], code=code)


# C11 and C12: binding


def test_c11_every_symbol_is_bound(compiler: Compiler) -> None:
    incomplete = {name: value for name, value in PREFILL_AND_DECODE[1].items() if name != "ctx_len"}
    compiler.fails(
        compiler.decoder_arguments(specializations=[PREFILL_AND_DECODE[0], incomplete]),
        "Symbol 'ctx_len' of input 'past_key.0' is not defined by specialization 1",
    )
    compiler.fails(compiler.arguments(), "Symbol 'batch_size'")


def test_c11_unused_symbols_are_ignored(compiler: Compiler) -> None:
    entries = [{**entry, "full_batch_exec_size": "1"} for entry in PREFILL_AND_DECODE]
    compiler.ok(compiler.decoder_arguments(specializations=entries))


def test_c12_no_unique_input(compiler: Compiler) -> None:
    compiler.fails(
        compiler.decoder_arguments(specializations=[PREFILL_AND_DECODE[0]] * 2),
        "Error message: No input that uniquely identifies specialization",
    )


def test_c12_one_input_must_tell_all_entries_apart(compiler: Compiler) -> None:
    model = parse_graph("g (float[a] x, float[b] z) => (float[a] y, float[b] w) { y = Relu (x)  w = Relu (z) }")
    combinations = [{"a": a, "b": b} for a in "12" for b in "12"]
    compiler.fails(compiler.arguments(model, specializations=combinations), "No input that uniquely identifies")

    tagged = parse_graph(
        "g (float[a] x, float[b] z, float[t] tag) => (float[a] y, float[b] w, float[t] v)"
        "{ y = Relu (x)  w = Relu (z)  v = Relu (tag) }"
    )
    entries = [{**entry, "t": str(i + 1)} for i, entry in enumerate(combinations)]
    compiler.ok(compiler.arguments(tagged, specializations=entries))


# C13: the custom-IO file


def test_c13_name_must_be_in_the_graph(compiler: Compiler) -> None:
    compiler.fails(compiler.decoder_arguments(custom_io={**KV_FLOAT16, "past_key.1": "float16"}), "'past_key.1'")


@pytest.mark.parametrize(
    ("target", "precision", "works"),
    [("ai100", "bfloat16", False), ("ai200", "bfloat16", True), ("ai100", "mxint8", True), ("ai100", "fp16", False)],
)
def test_c13_precision(newer_compiler: Compiler, target: str, precision: str, works: bool) -> None:
    arguments = newer_compiler.decoder_arguments(custom_io=dict.fromkeys(KV_FLOAT16, precision))
    arguments = [a.replace("-aic-hw-version=ai100", f"-aic-hw-version={target}") for a in arguments]
    if works:
        newer_compiler.ok(arguments)
    else:
        newer_compiler.fails(arguments, f"Precision '{precision}'", target)


def test_c13_retained_pair_has_one_precision(compiler: Compiler) -> None:
    compiler.fails(compiler.decoder_arguments(custom_io={"past_key.0": "float16"}), "must have the same precision")
    mixed = {"past_key.0": "float16", "past_key.0_RetainedState": "mxint8"}
    compiler.fails(compiler.decoder_arguments(custom_io=mixed), "must have the same precision", "float16 and mxint8")


@pytest.mark.parametrize(
    ("yaml_text", "part"),
    [
        ("- IOName: x\n  Precision: int8\n", "needs Scale and Offset"),
        ("- IOName: x\n  Precision: float16\n  Scale: 1.0\n", "int8 only"),
        ("- IOName: x\n  Precision: float16\n  Layout: NHWC\n", "rank 4 only"),
        ("- IOName: x\n  Precision: float16\n  Presision: float\n", "Unknown key Presision"),
        ("- IOName: x\n  Precision: float16\n- IOName: x\n  Precision: float16\n", "appears twice"),
        ("x: float16\n", "must be a list"),
        ("- Precision: float16\n", "needs an IOName"),
        ("- IOName: [\n", "is not YAML"),
    ],
)
def test_c13_malformed_item(compiler: Compiler, yaml_text: str, part: str) -> None:
    path = compiler.write("io.yaml", yaml_text)
    arguments = compiler.arguments(relu_chain(1), specializations=[{"n": "1"}])
    compiler.fails([*arguments, f"-custom-IO-list-file={path}"], part)


def test_c13_int8_with_scale_and_offset(compiler: Compiler) -> None:
    path = compiler.write("io.yaml", "- IOName: x\n  Precision: int8\n  Scale: 0.5\n  Offset: 3\n")
    compiler.ok([*compiler.arguments(relu_chain(1), specializations=[{"n": "1"}]), f"-custom-IO-list-file={path}"])


def test_c13_only_float_tensors(compiler: Compiler) -> None:
    compiler.fails(compiler.decoder_arguments(custom_io={"input_ids": "float16"}), "'input_ids'", "not a float tensor")


# C14: retained state


def with_output(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    for node in model.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
        node.input[:] = [new if name == old else name for name in node.input]
    for value in model.graph.output:
        value.name = new if value.name == old else value.name
    return model


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("past_key.9_RetainedState", "no input named 'past_key.9'"),
        ("past_key.0_InternalRetainedState", "internal name"),
    ],
)
def test_c14_names(compiler: Compiler, name: str, part: str) -> None:
    model = with_output(Decoder().model(), "past_key.0_RetainedState", name)
    arguments = compiler.arguments(model, specializations=PREFILL_AND_DECODE)
    compiler.fails([*arguments, "-retained-state"], part)
    # Without the flag it is an output like any other.
    compiler.ok(arguments)


def test_c14_shapes_and_types(compiler: Compiler) -> None:
    longer = parse_graph(
        "g (float[n, 4] s) => (float[m, 4] s_RetainedState) { s_RetainedState = Concat <axis = 0> (s, s) }"
    )
    arguments = compiler.arguments(longer, specializations=[{"n": "2"}])
    compiler.fails([*arguments, "-retained-state"], "[2, 4]", "[4, 4]", "different shapes")

    other_type = parse_graph("g (float[2] s) => (float16[2] s_RetainedState) { s_RetainedState = Cast <to = 10> (s) }")
    compiler.fails([*compiler.arguments(other_type), "-retained-state"], "different types")


def test_c14_prefixed_names_pair_by_suffix(compiler: Compiler) -> None:
    model = with_output(Decoder().model(), "past_key.0_RetainedState", "past_key.0_kvPrefix_RetainedState")
    for node in model.graph.node:
        node.input[:] = ["past_key.0_kvPrefix" if name == "past_key.0" else name for name in node.input]
    model.graph.input[2].name = "past_key.0_kvPrefix"
    compiler.ok([*compiler.arguments(model, specializations=PREFILL_AND_DECODE), "-retained-state"])


# C15, operators


def single_node(op_type: str, domain: str, functions: tuple[onnx.FunctionProto, ...] = ()) -> onnx.ModelProto:
    node = helper.make_node(op_type, ["x"], ["y"], name="suspect", domain=domain)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([node], "g", [x], [y])
    return make_model(graph, functions=functions, domains=(domain,))


@pytest.mark.parametrize(
    ("op_type", "domain", "reason"),
    [
        ("CtxScatter", ACCELERATOR, "is not defined in the model"),
        ("CustomRMSNorm", "com.qti.aisw.onnx", "is not defined in the model"),
        ("FusedGelu", "com.microsoft", "is not supported"),
        ("Normalizer", "ai.onnx.ml", "is not defined in the model"),
    ],
)
def test_c15_domains(compiler: Compiler, op_type: str, domain: str, reason: str) -> None:
    compiler.fails(
        compiler.arguments(single_node(op_type, domain)),
        "QAIC_ERROR:",
        "Error message:  [Operator-'suspect', opset_version-18, ir_version-9] :",
        reason,
        "QAICException:Unable to AddNodesToGraphFromModel",
    )


def test_c15_contrib_operators(compiler: Compiler) -> None:
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], name="q", domain="com.microsoft", K=32, N=2, bits=4, block_size=32
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [
            onnx.numpy_helper.from_array(np.zeros((2, 1, 16), np.uint8), "w"),
            onnx.numpy_helper.from_array(np.ones(2, np.float32), "s"),
        ],
    )
    compiler.ok(compiler.arguments(make_model(graph, domains=("com.microsoft",))))


def test_c15_functions_of_other_domains_need_sub_functions(compiler: Compiler) -> None:
    function = onnx.parser.parse_function(
        '<opset_import: ["" : 18], domain: "some.module"> Layer (a) => (b) { b = Relu (a) }'
    )
    arguments = compiler.arguments(single_node("Layer", "some.module", (function,)))
    compiler.fails(arguments, "'some.module'", "-sub-functions")
    compiler.ok([*arguments, "-sub-functions"])


def test_c15_opsets(compiler: Compiler) -> None:
    for opset in (17, 18):
        arguments = compiler.arguments(Decoder(opset=opset).model(), specializations=PREFILL_AND_DECODE)
        compiler.ok(arguments)
    model = relu_chain(1)
    for opset in (16, 21):
        model.opset_import[0].version = opset
        compiler.fails(compiler.arguments(model, specializations=[{"n": "1"}]), f"Opset {opset}")


# C17: run-time shapes in sub-functions. C16 is a numeric property and tested with the runtime.


def expanding(shape: str, callee_input: str) -> onnx.ModelProto:
    """`Tile` expands its input to `n`; the caller passes either a run-time tensor or the shape of one."""
    tile = onnx.parser.parse_function(
        f'<opset_import: ["" : 18], domain: "{ACCELERATOR}"> Tile (a, n) => (b) {{ b = Expand (a, n) }}'
    )
    text = (
        f"g (float[4] x, int64[1] count) => (float[m] y) {{ s = {shape}  y = {ACCELERATOR}.Tile (x, {callee_input}) }}"
    )
    graph = onnx.parser.parse_graph(text)
    graph.node[-1].name = "call"
    del graph.output[0].type.tensor_type.shape.dim[:]
    graph.output[0].type.tensor_type.shape.dim.add(dim_value=4)
    return make_model(graph, functions=[tile])


def test_c17_runtime_shape_in_a_sub_function(compiler: Compiler) -> None:
    arguments = compiler.arguments(expanding("Identity (count)", "s"))
    compiler.ok(arguments)
    compiler.fails([*arguments, "-sub-functions"], "Non-constant", "Expand", "Tile")


def test_c17_shape_of_a_tensor_is_constant(compiler: Compiler) -> None:
    compiler.ok([*compiler.arguments(expanding("Shape (x)", "s")), "-sub-functions"])


def test_c17_range(compiler: Compiler) -> None:
    count = onnx.parser.parse_function(
        f'<opset_import: ["" : 18], domain: "{ACCELERATOR}">'
        "Count (n) => (b) { z = Constant <value_int = 0> ()  o = Constant <value_int = 1> ()  b = Range (z, n, o) }"
    )
    graph = onnx.parser.parse_graph(f"g (int64 n) => (int64[3] y) {{ y = {ACCELERATOR}.Count (n) }}")
    model = make_model(graph, functions=[count])
    compiler.fails([*compiler.arguments(model), "-sub-functions"], "Non-constant", "Range", "Count")


# C18, partitions


def pipeline(*lists: list[str]) -> dict[str, Any]:
    return {"partitions": [partition(f"Partition{i}", [i], names) for i, names in enumerate(lists)]}


@pytest.mark.parametrize(
    "document",
    [
        {"connections": [{"devices": [0, 1], "type": "p2p"}], "partitions": [partition("P", [0, 1])]},
        {"connections": [{"devices": [1, 0], "type": "host"}], "partitions": [partition("P", [1, 0], cores=16)]},
        pipeline(["n0", "unknown", "n1"], ["n2", "n3"]),
        pipeline(["n0"], ["n3"]),
        {
            "connections": [{"devices": list(range(17)), "type": "host"}],
            "partitions": [partition("P", list(range(17)))],
        },
    ],
    ids=["tensor slice", "host traffic", "pipeline with unknown name", "partial lists", "17 devices through the host"],
)
def test_c18_accepted(compiler: Compiler, document: dict[str, Any]) -> None:
    compiler.ok(compiler.arguments(relu_chain(4), specializations=[{"n": "1"}], mdp=document))


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ({"partitions": [partition("P", [0, 0])]}, "deviceId 0 appears twice"),
        ({"partitions": [partition("P", [1, 2])]}, "contiguous from 0"),
        ({"partitions": [partition("P", [0], cores=0)]}, "numCores must be 1 to 16"),
        ({"partitions": [partition("P", [0], cores=17)]}, "numCores must be 1 to 16"),
        ({"partitions": [partition("P", [])]}, "has no devices"),
        ({"partitions": []}, "no partitions"),
        ({"partitions": [{"name": "P", "devices": [{"deviceId": 0}]}]}, "numCores"),
        ({"partitions": [{"name": "P", "devices": [{"deviceId": "0", "numCores": 4}]}]}, "must be integers"),
        ({"connections": [{"devices": [0, 1], "type": "p2p"}], "partitions": [partition("P", [0])]}, "unknown devices"),
        ({"connections": [{"devices": [0], "type": "pcie"}], "partitions": [partition("P", [0])]}, "p2p or host"),
        (
            {
                "connections": [{"devices": list(range(17)), "type": "p2p"}],
                "partitions": [partition("P", list(range(17)))],
            },
            "At most 16 devices",
        ),
        (pipeline(["n1", "n0"], ["n2", "n3"]), "'n1' comes before 'n0'"),
        (pipeline(["n2", "n3"], ["n0", "n1"]), "comes before"),
        (pipeline(["n0", "n3"], ["n1"]), "comes before"),
        (pipeline(["n0", "n1"], ["n1", "n2"]), "more than one place"),
        (pipeline(["n0"], ["nothing known"]), "has no node of the model"),
        ({"partitions": [partition("A", [0], ["n0"]), partition("B", [1])]}, "needs a nodeList"),
        ({"partitions": [partition("A", [0], ["n0"]), partition("A", [1], ["n1"])]}, "unique"),
        ({"partitions": [{**partition("P", [0]), "nodes": []}]}, "needs the keys"),
    ],
)
def test_c18_refused(compiler: Compiler, document: dict[str, Any], part: str) -> None:
    compiler.fails(compiler.arguments(relu_chain(4), specializations=[{"n": "1"}], mdp=document), part)


def test_c18_order_is_followed_through_unlisted_nodes(compiler: Compiler) -> None:
    document = pipeline(["n0"], ["n3", "n1"])
    compiler.fails(
        compiler.arguments(relu_chain(4), specializations=[{"n": "1"}], mdp=document), "'n3' comes before 'n1'"
    )


def test_c18_nodes_of_inlined_functions_have_the_call_in_their_name(compiler: Compiler) -> None:
    function = onnx.parser.parse_function(
        f'<opset_import: ["" : 18], domain: "{ACCELERATOR}"> Two (a) => (c) {{ b = Relu (a)  c = Relu (b) }}'
    )
    function.node[0].name, function.node[1].name = "first", "second"
    model = single_node("Two", ACCELERATOR, (function,))
    compiler.ok(compiler.arguments(model, mdp=pipeline(["suspect/first"], ["suspect/second"])))
    compiler.fails(compiler.arguments(model, mdp=pipeline(["suspect/second"], ["suspect/first"])), "comes before")


# C19: node precision


def test_c19_node_precision(compiler: Compiler) -> None:
    good = {"FP16NodeInstanceNames": ["h1"], "FP32NodeInstanceNames": ["y"]}
    compiler.ok(compiler.arguments(relu_chain(2), specializations=[{"n": "1"}], node_precision=good))
    for wrong in (
        {"FP8NodeInstanceNames": ["h1"]},
        {"FP16NodeInstanceNames": "h1"},
        {"FP16NodeInstanceNames": [1]},
        ["h1"],
    ):
        arguments = compiler.arguments(relu_chain(2), specializations=[{"n": "1"}], node_precision=wrong)
        compiler.fails(arguments, "node_precision.yaml")
