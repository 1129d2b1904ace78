"""Lowering passes that break one promise each."""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir

from qeff_framework.lowering import GraphPass
from qeff_framework.plugin_api import Transform, TransformRequest, hookimpl
from tests.testing.mutants import mutant
from tests.testing.toy_hooks import ToyHooks


class Named(GraphPass):
    """Does nothing, under the name that it is given."""

    def __init__(self, name: str, version: str = "1") -> None:
        self.name, self.version = name, version

    def run(self, model: onnx_ir.Model) -> bool:
        return False


@mutant("transforms", "order")
class OrderThatChanges(ToyHooks):
    """The order of the passes changes from call to call."""

    calls: ClassVar[list[int]] = []

    def passes(self, request: TransformRequest) -> list[Transform]:
        self.calls.append(1)
        found: list[Transform] = [Named("First"), Named("Second")]
        return found[::-1] if len(self.calls) % 2 else found


@mutant("transforms", "order")
class RemembersOptions(ToyHooks):
    """What was asked with other options before decides."""

    seen: ClassVar[set[str]] = set()

    def passes(self, request: TransformRequest) -> list[Transform]:
        self.seen.add(request.options.level)
        return [Named(f"For_{level}") for level in sorted(self.seen)]


@mutant("transforms", "torch_stage")
class TorchPassesThatChange(ToyHooks):
    """The version of a pass for the torch stage is counted up: no export is ever found again."""

    calls: ClassVar[list[int]] = []

    @hookimpl
    def transform(self, request: TransformRequest) -> list[Transform]:
        self.calls.append(1)
        return [Named("Patch", str(len(self.calls)))] if request.stage == "torch" else []


@mutant("transforms", "names")
class Twins(ToyHooks):
    """Two passes cannot be told apart."""

    def passes(self, request: TransformRequest) -> list[Transform]:
        return [Named("Fuse"), Named("Fuse")]


@mutant("transforms", "names", "order")
class NameOfAnObject(ToyHooks):
    """The version of a pass is the place of an object in memory."""

    kept: ClassVar[list[Any]] = []

    def passes(self, request: TransformRequest) -> list[Transform]:
        self.kept.append(object())
        return [Named("Fuse", repr(self.kept[-1]))]


class NegatedTwice(GraphPass):
    """Puts two negations behind each lookup in a table."""

    name, version = "NegatedTwice", "1"
    says: ClassVar[bool] = True
    only_once: ClassVar[bool] = True

    def run(self, model: onnx_ir.Model) -> bool:
        gathers = [node for node in model.graph if node.op_type == "Gather"]
        changed = False
        for node in gathers:
            if self.only_once and any(user.op_type == "Neg" for user, _ in node.outputs[0].uses()):
                continue
            table = node.inputs[0].const_value if node.inputs[0] is not None else None
            if table is None or table.dtype != onnx_ir.DataType.FLOAT:
                continue
            self.negate(model, node)
            changed = True
        return changed and self.says

    def negate(self, model: onnx_ir.Model, node: onnx_ir.Node) -> None:
        first = onnx_ir.node("Neg", [node.outputs[0]])
        second = onnx_ir.node("Neg", [first.outputs[0]])
        users = [(user, index) for user, index in node.outputs[0].uses() if user is not first]
        for user, index in users:
            user.replace_input_with(index, second.outputs[0])
        model.graph.insert_after(node, [first, second])


@mutant("transforms", "says_what_it_did")
class DeniesItsChange(NegatedTwice):
    """Says that it has changed nothing."""

    says = False


@mutant("transforms", "idempotent")
class AgainAndAgain(NegatedTwice):
    """Each application adds to the graph."""

    only_once = False


@mutant("transforms", "idempotent", "says_what_it_did")
class BoastsOfNothing(GraphPass):
    """Says that it has changed a graph that it has not touched."""

    name, version = "BoastsOfNothing", "1"

    def run(self, model: onnx_ir.Model) -> bool:
        return True


@mutant("transforms", "repeatable")
class AnotherGraphEachTime(NegatedTwice):
    """A name in the graph is counted up over all graphs."""

    calls: ClassVar[list[int]] = []

    def negate(self, model: onnx_ir.Model, node: onnx_ir.Node) -> None:
        self.calls.append(1)
        super().negate(model, node)
        node.outputs[0].name = f"looked_up_{len(self.calls)}"


@mutant("transforms", "interface", "idempotent")
class RenamesAnInput(GraphPass):
    """Gives an input the name that its compiler likes."""

    name, version = "RenamesAnInput", "1"

    def run(self, model: onnx_ir.Model) -> bool:
        value = next(iter(model.graph.inputs))
        value.name = f"{value.name}_0"
        return True
