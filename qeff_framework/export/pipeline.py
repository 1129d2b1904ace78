"""The graph of one call of a pipeline's component: its tensors in, the tensors of its result out, all of fixed sizes."""

from __future__ import annotations

import torch

from qeff_framework.diffusion.calls import Call, CallGraph, PipelineModules, example_tensors, tensor_specs
from qeff_framework.errors import ExportError, UnsupportedModelError
from qeff_framework.export.interface import rename_interface
from qeff_framework.export.portable_graph import GraphRequest, PortableGraph
from qeff_framework.export.stages import stage
from qeff_framework.export.trace import finish, probe, trace, translate
from qeff_framework.export.weights import graph_weights
from qeff_framework.seam.norms import find_rms_norms, replace_rms_norms
from qeff_framework.seam.weightless import weightless_copy

#: What torch says of a constant that is written to.
_WRITTEN_CONSTANT = "is mutated in the forward method"
_WHOLE_NUMBERS = frozenset({"int32", "int64"})
#: Ops whose results no seed of the host decides.
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def _probe(graph: CallGraph, example: tuple[list[torch.Tensor]], call: Call) -> None:
    """A whole call was recorded before, with the pipeline's own tensors: what fails now has other contents alone."""
    try:
        with stage("probe run"):
            probe(graph, example)
    except ExportError as error:
        whole = [path for path, spec in tensor_specs(call.inputs) if spec["dtype"] in _WHOLE_NUMBERS]
        if call.part or not whole:
            raise
        raise UnsupportedModelError(
            f"its {call.component} runs for the contents of {', '.join(whole)} that the pipeline gives it, and not for others: "
            f"sizes or places follow from them, and a graph has those of one run only: {error}"
        ) from error


def pipeline_graph(module: PipelineModules, request: GraphRequest) -> PortableGraph:
    """Inputs are named after the arguments, outputs after their places in the result."""
    call = Call(**request.program_inputs["call"])
    component = module.get_submodule(call.component)
    norms = find_rms_norms(component)
    weightless = weightless_copy(component)
    replace_rms_norms(weightless, norms)
    graph = CallGraph(weightless, call)
    example = (example_tensors(call.inputs),)
    try:
        _probe(graph, example, call)
        result = graph.result
        with stage("trace"):
            program = trace(graph, example, ([{} for _ in example[0]],))
        with stage("translation to ONNX"):
            model = translate(program, graph_weights(component, norms))
            finish(model)
    except (ExportError, UnsupportedModelError) as error:
        if _WRITTEN_CONSTANT in str(error):
            raise UnsupportedModelError(
                f"its {call.component} makes a tensor of constants and writes what it computes into it, which has no form as a "
                f"graph: {error}"
            ) from error
        if not graph.read_contents:
            raise
        raise UnsupportedModelError(
            f"its {call.component} reads the contents of a tensor on the host ({graph.read_contents}) and computes something "
            f"else for others, which a graph cannot do: {error}"
        ) from error
    drawn = sorted({node.op_type for node in model.graph.all_nodes() if node.op_type in _RANDOM})
    if drawn:
        raise UnsupportedModelError(
            f"its {call.component} draws random numbers ({', '.join(drawn)}), which a program would draw otherwise"
        )
    inputs = [path for path, _ in tensor_specs(call.inputs)]
    outputs = [path for path, _ in tensor_specs({"result": result})]
    rename_interface(model, inputs=inputs, outputs=outputs)
    return PortableGraph(model=model, metadata={"call": call.as_json(), "result": result})
