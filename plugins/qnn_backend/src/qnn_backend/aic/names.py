"""Tensor names that are C identifiers.

Names of a QNN graph are: other characters of an ONNX name become underscores on the way into the DLC, and the files of the later
step, and the program, have the new names (``past_key.0`` is ``past_key_0`` there). Renaming the graph's inputs and outputs first
makes every stage call them the same.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import onnx_ir as ir

from qeff_framework.plugin_api import StateSpec, TensorSpec


def identifier(name: str) -> str:
    """``past_key.0`` becomes ``past_key_0``."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"_{plain}" if plain[:1].isdigit() else plain


def renamed_tensors(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs under their new names."""
    return tuple(dataclasses.replace(spec, name=identifier(spec.name)) for spec in specs)


def renamed_states(states: Iterable[StateSpec]) -> tuple[StateSpec, ...]:
    """Retained states under their new names."""
    return tuple(
        dataclasses.replace(state, input=identifier(state.input), output=identifier(state.output)) for state in states
    )


class IdentifierNames:
    """Renames inputs and outputs of the graph."""

    name = "IdentifierNames"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a name was changed. Raises `ValueError` when two would be the same."""
        values = [*model.graph.inputs, *model.graph.outputs]
        renamed = {value: identifier(value.name or "") for value in values}
        if len(set(renamed.values())) != len(renamed):
            raise ValueError("two inputs or outputs have the same name when special characters are underscores")
        taken = {name for value, name in renamed.items() if value.name != name}
        if not taken:
            return False
        _free(model, taken, keep=set(values))
        for value, name in renamed.items():
            value.name = name
        return True


def _free(model: ir.Model, names: set[str], *, keep: set[ir.Value]) -> None:
    """Gives values inside the graph that have one of `names` another name."""
    inner = [output for node in model.graph.all_nodes() for output in node.outputs]
    for value in (*inner, *model.graph.initializers.values()):
        if value not in keep and value.name in names:
            value.name = f"{value.name}_inner"
