"""Order, honesty and idempotence of the lowering passes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import Transform, TransformRequest
from qeff_framework.errors import OptionError
from qeff_framework.options import describe_options
from qeff_framework.testing.checks import NotClaimedError, check, require
from qeff_framework.testing.groups.compile import products_layer
from qeff_framework.testing.groups.dialect import _experts, _update_cb
from qeff_framework.testing.groups.execute import attention_layer

if TYPE_CHECKING:
    import onnx_ir

    from qeff_framework.testing.layers import Layer
    from qeff_framework.testing.subject import Subject


def _layers(subject: Subject) -> list[Layer]:
    """Graphs with most kinds of ops."""
    from qeff_framework.dialect.names import Gate

    subject.need("causal-lm" in subject.capabilities.tasks, "task 'causal-lm'")
    found = [attention_layer(), products_layer(), _experts("moe_swish", Gate(), biased=False)]
    return [*found, _update_cb()] if subject.capabilities.continuous_batching else found


def _passes(subject: Subject, layer: Layer, **changes: Any) -> list[Transform]:
    return subject.passes(subject.export(layer.program), layer.program.specializations, subject.options(**changes))


def _names(passes: list[Transform]) -> list[str]:
    return [f"{each.name}@{each.version}" for each in passes]


def _model(subject: Subject, layer: Layer) -> onnx_ir.Model:
    from qeff_framework.lowering.stored_weights import load_portable

    return load_portable(subject.export(layer.program).model_path)


def _digest(model: onnx_ir.Model) -> str:
    """Of what the graph computes, weights included; inferred shapes and comments do not count."""
    import onnx_ir

    proto = onnx_ir.serde.serialize_model(model)
    _strip(proto.graph)
    for function in proto.functions:
        _strip(function)
    for field in ("doc_string", "metadata_props"):
        proto.ClearField(field)
    found = hashlib.sha256(proto.SerializeToString(deterministic=True))
    for kept in model.meta.values():
        # Static graphs, one for each specialization: see `lowering.BindSizes`.
        for name, graph in kept.items() if isinstance(kept, Mapping) else ():
            if isinstance(graph, onnx_ir.Model):
                found.update(f"{name} {_digest(graph)}".encode())
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            found.update(value.const_value.tobytes())
    return found.hexdigest()


def _strip(graph: Any) -> None:
    """Removes what says something about a graph and computes nothing."""
    for field in ("value_info", "doc_string", "metadata_props"):
        graph.ClearField(field)
    for node in graph.node:
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                _strip(inner)


@check("transforms")
def check_order(subject: Subject) -> None:
    """The request alone decides which passes there are and in which order: asked again, the answer is the same."""
    for layer in _layers(subject):
        first = _names(_passes(subject, layer))
        for info in describe_options(subject.backend.options):
            for choice in info.choices:
                try:
                    _passes(subject, layer, **{info.name: choice})
                except OptionError:
                    continue
        second = _names(_passes(subject, layer))
        require(first == second, f"asked twice, transform names {first} and then {second}")


@check("transforms")
def check_names(subject: Subject) -> None:
    """Names and versions of passes are texts; no two passes have both in common, and they name no place and no object."""
    for layer in _layers(subject):
        names = _names(_passes(subject, layer))
        twins = sorted({name for name in names if names.count(name) > 1})
        require(not twins, f"two passes are called {', '.join(twins)}: give them names or versions of their own")
        odd = [name for name in names if " at 0x" in name or str(subject.workspace) in name or name.endswith("@")]
        require(not odd, f"the pass '{odd[:1]}' has a name or version that changes from run to run, or none")


@check("transforms")
def check_torch_stage(subject: Subject) -> None:
    """Passes for the torch stage are named from the request alone, too."""
    request = TransformRequest(stage="torch", task="causal-lm", options=subject.options())
    with subject.available("name its transforms"):
        first, second = _names(subject.relay.transform(request)), _names(subject.relay.transform(request))
    require(first == second, f"asked twice, transform names {first} and then {second}")


def _steps(subject: Subject, layer: Layer) -> Iterator[tuple[Transform, onnx_ir.Model, bool, bool]]:
    """Each pass after it was applied, with the graph, what it said, and whether the graph changed."""
    model = _model(subject, layer)
    for each in _passes(subject, layer):
        before = _digest(model)
        said = bool(each(model))
        yield each, model, said, _digest(model) != before


@check("transforms")
def check_says_what_it_did(subject: Subject) -> None:
    """A pass says whether it has changed the graph; what it says stands in the artifact."""
    for layer in _layers(subject):
        for each, _, said, changed in _steps(subject, layer):
            require(
                said == changed,
                f"{each.name} says that it {'changed' if said else 'did not change'} {layer.program.name}, "
                f"and it {'did' if changed else 'did not'}",
            )


@check("transforms")
def check_idempotent(subject: Subject) -> None:
    """A pass that is applied a second time finds nothing left to do."""
    for layer in _layers(subject):
        for each, model, _, _ in _steps(subject, layer):
            before = _digest(model)
            again = each(model)
            require(not again, f"{each.name} changes {layer.program.name} a second time")
            require(_digest(model) == before, f"{each.name} changes {layer.program.name} a second time, and denies it")


@check("transforms")
def check_repeatable(subject: Subject) -> None:
    """The passes make the same graph of the same export each time."""
    for layer in _layers(subject):
        graphs = []
        for _ in range(2):
            model = _model(subject, layer)
            for each in _passes(subject, layer):
                each(model)
            graphs.append(_digest(model))
        require(graphs[0] == graphs[1], f"lowering {layer.program.name} twice gives two graphs")


@check("transforms")
def check_interface(subject: Subject) -> None:
    """The lowered graph takes and returns what the export does: names and dtypes stay."""
    found = False
    for layer in _layers(subject):
        model = _model(subject, layer)
        before = _interface(model)
        for each in _passes(subject, layer):
            found = True
            each(model)
            require(_interface(model) == before, f"{each.name} changes inputs or outputs of {layer.program.name}")
    if not found:
        raise NotClaimedError("it has no lowering passes")


def _interface(model: onnx_ir.Model) -> list[tuple[str, str]]:
    return [(str(value.name), str(value.dtype)) for value in (*model.graph.inputs, *model.graph.outputs)]
