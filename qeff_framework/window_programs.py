"""Compiling a model as several programs of some of its layers each: an artifact whose steps run all of them in a chain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import (
    PROMPT_LENGTHS,
    CompiledModel,
    CompileRequest,
    ExportedModel,
    Specialization,
    TensorSpec,
)
from qeff_framework.errors import CompileError
from qeff_framework.options import CompileOptions, LayerWindowOptions

if TYPE_CHECKING:
    import functools

    import onnx_ir


def layers_per_program(options: CompileOptions) -> int | None:
    """How many layers a program is to have; `None` for all of them."""
    return options.num_layers_per_program if isinstance(options, LayerWindowOptions) else None


def compile_windows(
    exported: ExportedModel,
    num_layers: int,
    request: functools.partial[CompileRequest],
    compile_part: Callable[[ExportedModel, onnx_ir.Model, Callable[..., CompileRequest]], CompiledModel],
) -> CompiledModel:
    """Compiles an export as programs of `num_layers` layers; one that has no more of them becomes an ordinary program.

    Args:
        exported: the whole model.
        num_layers: of each program but the last, which has what is left.
        request: makes the request for the whole model; it lacks what only the lowering tells.
        compile_part: compiles one graph with its description.

    Raises:
        CompileError: the model cannot be cut, or a program not be compiled.
    """
    from qeff_framework.lowering.layer_windows import layer_windows
    from qeff_framework.lowering.stored_weights import load_portable

    given: dict[str, Any] = request.keywords
    specializations: tuple[Specialization, ...] = given["specializations"]
    model = load_portable(exported.model_path)
    windows = layer_windows(model, exported, num_layers, sizes=_common_sizes(specializations))
    if len(windows) == 1:
        return compile_part(exported, model, request)
    compiled: dict[str, CompiledModel] = {}
    for number, window in enumerate(windows):
        part = window.exported(exported)
        place = {"number": number, "of": len(windows), "key": given["key"]}
        part = dataclasses.replace(part, metadata={**part.metadata, "window": place})
        directory = given["output_dir"] / "programs" / window.name
        directory.mkdir(parents=True)
        given["progress"](f"compiling the layers {window.first} to {window.last}")
        asked = _distinct(part, specializations)

        def ask(*, place: Any = directory, entries: Any = asked, **lowered: Any) -> CompileRequest:
            return request(**lowered, output_dir=place, specializations=entries)

        compiled[window.name] = compile_part(part, window.model, ask)
        compiled[window.name].save()
    return _chained(exported, compiled, request)


def _chained(
    exported: ExportedModel, compiled: dict[str, CompiledModel], request: Callable[..., CompileRequest]
) -> CompiledModel:
    """Describes the programs as one: what the host feeds and reads, and every state once."""
    parts = [*compiled.values()]
    last = parts[-1]
    states = list({state.input: state for part in parts for state in part.states}.values())
    retained = {name for state in states for name in (state.input, state.output)}
    fed = {spec.name for part in parts for spec in part.inputs}
    # An input that no layer reads is one of the whole model yet, unless the lowering has removed it.
    inputs = [spec for spec in _host(exported, exported.inputs) if spec.name in fed or spec.name != PROMPT_LENGTHS]
    outputs = _host(exported, exported.outputs)
    held_inputs = {spec.name: spec for part in parts for spec in part.inputs if spec.name in retained}
    held_outputs = {spec.name: spec for part in parts for spec in part.outputs if spec.name in retained}
    known = {**held_inputs, **held_outputs}
    for part in parts:
        # One window is read for all that have the state.
        unequal = [spec.name for spec in (*part.inputs, *part.outputs) if known.get(spec.name, spec) != spec]
        if unequal:
            raise CompileError(
                f"num_layers_per_program: {part.backend} keeps {unequal[0]} in unequal forms in several programs; choose another "
                "number of layers, or leave num_layers_per_program out"
            )
    packed = {name: form for part in parts for name, form in part.metadata.get("packed_weights", {}).items()}
    asked = request(exported=exported, model=None, transforms=last.transforms)
    places = {name: f"programs/{name}" for name in compiled}
    return asked.result(
        backend=last.backend,
        program={},
        programs=places,
        chained=True,
        inputs=(*inputs, *held_inputs.values()),
        outputs=(*outputs, *held_outputs.values()),
        states=tuple(states),
        dry_run_result=f"{places[next(reversed(places))]}/{last.dry_run_result}" if last.dry_run_result else "",
        qconfig=last.qconfig,
        transforms=last.transforms,
        metadata={
            **{name: value for name, value in last.metadata.items() if name not in ("window", "packed_weights")},
            **({"packed_weights": packed} if packed else {}),
        },
    )


def _host(exported: ExportedModel, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    retained = {name for state in exported.states for name in (state.input, state.output)}
    return [spec for spec in specs if spec.name not in retained]


def _common_sizes(specializations: Sequence[Specialization]) -> dict[str, int]:
    """The dimensions that have the same value in all specializations."""
    first = specializations[0].dims
    return {name: size for name, size in first.items() if all(item.dims.get(name) == size for item in specializations)}


def _distinct(exported: ExportedModel, specializations: Sequence[Specialization]) -> tuple[Specialization, ...]:
    """Those that give the inputs of a program different shapes: the first of several that differ in other programs alone."""
    from qeff_framework.sessions import resolve_shape

    found: dict[object, Specialization] = {}
    for item in specializations:
        found.setdefault(tuple(resolve_shape(spec, item.dims) for spec in exported.inputs), item)
    return tuple(found.values())
