"""Runs the HTP compiler. Part of the child process."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qeff_framework.plugin_api import CompileError
from qnn_backend.htp.provider import COMPATIBILITY, reason, session_options

TRACE_FILE = "qnn_op_trace.json"
#: More nodes than this in one message help nobody; the trace has all of them.
_NODES_IN_MESSAGE = 12
_ADVICE = {
    "1002": "The compiler's error for graphs that it cannot finalize; often it is not about memory, but about a pattern of ops",
}


def compile_graphs(
    graphs: Mapping[str, str],
    output: str,
    soc_id: int,
    provider_options: Mapping[str, str],
    *,
    allow_partial: bool,
    shared: bool = False,
) -> dict[str, Any]:
    """Compiles ONNX files to ``<name>_ctx.onnx`` and ``<name>_ctx_qnn.bin``.

    With `shared` all of them go into one binary, named after the first.

    Returns:
        For each graph ``seconds``, ``nodes_on_npu``, ``compatibility`` and ``unsupported``, the nodes that stay on the CPU.

    Raises:
        CompileError: the compiler failed, or nodes would stay on the CPU and `allow_partial` is off.
    """
    results = {}
    for number, (name, source) in enumerate(graphs.items()):
        entries = {}
        if shared:
            entries["ep.share_ep_contexts"] = "1"
            if number == len(graphs) - 1:
                entries["ep.stop_share_ep_contexts"] = "1"
        results[name] = _compile(
            name, Path(source), Path(output), soc_id, provider_options, entries, allow_partial=allow_partial
        )
    return results


def _compile(
    name: str,
    source: Path,
    output: Path,
    soc_id: int,
    provider_options: Mapping[str, str],
    entries: Mapping[str, str],
    *,
    allow_partial: bool,
) -> dict[str, Any]:
    import onnxruntime as ort

    traces = source.parent / f"trace_{name}"
    traces.mkdir(exist_ok=True)
    (traces / TRACE_FILE).unlink(missing_ok=True)  # after a failed finalization the old one would be read
    tracing = {"enable_framework_op_trace": "1", "framework_op_trace_dir": str(traces), "enable_htp_prepare_only": "1"}
    options = session_options(
        soc_id, {**provider_options, **tracing}, entries, allow_cpu=allow_partial, log_warnings=True
    )
    flags = ort.OrtCompileApiFlags.ERROR_IF_NO_NODES_COMPILED | ort.OrtCompileApiFlags.ERROR_IF_OUTPUT_FILE_EXISTS
    target = output / f"{name}_ctx.onnx"
    started = time.monotonic()
    try:
        compiler = ort.ModelCompiler(options, str(source), embed_compiled_data_into_model=False, flags=flags)
        compiler.compile_to_file(str(target))
    except Exception as error:
        unsupported = unsupported_nodes(traces / TRACE_FILE)
        if unsupported:
            raise CompileError(
                f"{name}: {len(unsupported)} nodes cannot run on the NPU: {describe(unsupported)}. "
                "allow_partial=True leaves them on the CPU"
            ) from error
        raise CompileError(f"the HTP compiler failed on {name}: {_explained(reason(error))}") from error
    unsupported = unsupported_nodes(traces / TRACE_FILE)
    others = _nodes_beside_the_program(target)
    if (unsupported or others) and not allow_partial:
        raise CompileError(f"{name}: not everything runs on the NPU: {describe(unsupported) or ', '.join(others)}")
    return {
        "seconds": round(time.monotonic() - started, 3),
        "nodes_on_npu": _count_nodes(source) - len(unsupported),
        "compatibility": _compatibility(target),
        "unsupported": unsupported,
    }


def unsupported_nodes(trace: Path) -> list[dict[str, str]]:
    """The nodes that the compiler did not take: ``op_type``, ``node_name``, ``reason``."""
    if not trace.is_file():
        return []
    content = json.loads(trace.read_text(encoding="utf-8"))
    return [
        {key: str(node.get(key, "")) for key in ("op_type", "node_name", "reason")}
        for node in content.get("unsupported_nodes", [])
    ]


def describe(nodes: Sequence[Mapping[str, str]]) -> str:
    """One line for the nodes, each with the compiler's own reason."""
    told = [f"{node['op_type']} '{node['node_name']}': {node['reason']}" for node in nodes[:_NODES_IN_MESSAGE]]
    more = len(nodes) - len(told)
    return "; ".join([*told, *([f"and {more} more"] if more > 0 else [])])


def _nodes_beside_the_program(model: Path) -> list[str]:
    """Op types of a compiled model that are not the one compiled program."""
    import onnx

    op_types = [node.op_type for node in onnx.load(str(model), load_external_data=False).graph.node]
    return [] if op_types == ["EPContext"] else op_types


def _count_nodes(model: Path) -> int:
    import onnx

    return len(onnx.load(str(model), load_external_data=False).graph.node)


def _compatibility(model: Path) -> str:
    import onnx

    properties = {entry.key: entry.value for entry in onnx.load(str(model), load_external_data=False).metadata_props}
    return str(properties.get(COMPATIBILITY, ""))


def _explained(text: str) -> str:
    advice = next(
        (advice for code, advice in _ADVICE.items() if f"Code: {code}" in text or f"code {code}" in text), None
    )
    return f"{text}. {advice}" if advice else text
