"""Lowering and compiling the programs of an artifact, and what every artifact carries whatever backend made it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.artifacts import create_and_dump_qconfigs
from qeff_framework.contracts import (
    COMPANIONS,
    PACKAGE,
    CompiledModel,
    CompileRequest,
    ExportedModel,
    Specialization,
    Task,
    Transform,
    has_changed,
)
from qeff_framework.errors import OptionError, QEFFError
from qeff_framework.key_parts import transform_part
from qeff_framework.options import CompileOptions
from qeff_framework.parallel import check_stopped, run_parts
from qeff_framework.plans import Program
from qeff_framework.progress import report

if TYPE_CHECKING:
    import onnx_ir

    from qeff_framework.relay import Relay


def check_capabilities(relay: Relay, task: Task, shapes: object, options: CompileOptions, *, dry_run: bool) -> None:
    """Refuses, before any work, what the backend says it cannot do."""
    can = relay.capabilities_for(options)
    asked = {
        f"task '{task}'": task in can.tasks,
        "full_batch_size": can.continuous_batching or getattr(shapes, "full_batch_size", None) is None,
        "num_speculative_tokens": can.speculative_decoding or getattr(shapes, "num_speculative_tokens", None) is None,
        "comp_ctx_lengths_prefill, comp_ctx_lengths_decode, ccl_enabled": can.compute_contexts
        or not getattr(shapes, "has_compute_contexts", False),
        "include_sampler": can.on_device_sampling or not getattr(shapes, "include_sampler", False),
        f"num_devices={options.num_devices}": can.multi_device or options.num_devices == 1,
        "mxfp6_matmul=True": can.mxfp6_matmul or not _asks_for(options, "mxfp6_matmul"),
        "mxint8_kv_cache=True": can.mxint8_kv_cache or not _asks_for(options, "mxint8_kv_cache"),
        "dry_run=True": can.dry_run or not dry_run,
    }
    refused = [what for what, possible in asked.items() if not possible]
    if refused:
        raise OptionError(
            f"backend '{relay.name}' does not support {', '.join(refused)}{f' for {can.scope}' if can.scope else ''}; "
            "leave it out or choose another one"
        )


def _asks_for(options: CompileOptions, name: str) -> bool:
    return any(field.name == name for field in dataclasses.fields(options)) and bool(getattr(options, name))


def check_position_limits(
    exported: ExportedModel, specializations: tuple[Specialization, ...], *, given: Mapping[str, Any]
) -> None:
    """Refuses, before lowering, sizes that a table of the model has no positions for."""
    for name, limit in exported.metadata.get("position_limits", {}).items():
        asked = max((item.dims[name] for item in specializations if name in item.dims), default=0)
        if asked > limit:
            raise OptionError(
                f"{name}={asked}{'' if name in given else ' (the default)'} is more than {exported.metadata['model_name']} has "
                f"positions for: a table that it looks positions up in ends after {limit}; give {name}={limit} or less"
            )


def identity_of(program: Program, transforms: Sequence[Transform]) -> dict[str, Any]:
    """What stands in a key for one program."""
    return {
        "export": program.plan.key,
        "transforms": [transform_part(transform) for transform in transforms],
        "specializations": [dataclasses.asdict(item) for item in program.specializations],
    }


def compiled_program(
    relay: Relay,
    exported: ExportedModel,
    model: onnx_ir.Model,
    request: Callable[..., CompileRequest],
    *,
    transforms: Sequence[Transform],
) -> CompiledModel:
    """Lowers and compiles the graph of an export; `request` lacks what only the lowering tells."""
    from qeff_framework.export.short_texts import ShortTexts, without_prompt_lengths

    applied = []
    for transform in transforms:
        check_stopped()
        if has_changed(transform(model)):
            applied.append(f"{transform.name}@{transform.version}")
    shortened = f"{ShortTexts.name}@{ShortTexts.version}" in applied
    source = without_prompt_lengths(exported) if shortened else exported
    asked = request(exported=source, model=model, transforms=tuple(applied))
    compiled = relay.compile(asked)
    return dataclasses.replace(
        compiled,
        transforms=tuple(applied),
        options=dataclasses.asdict(asked.options),
        metadata={**exported.metadata, **_still_packed(model, exported), **compiled.metadata, "dry_run": asked.dry_run},
    )


def _still_packed(model: Any, exported: ExportedModel) -> dict[str, Any]:
    """Of the weights that stay in the blocks of their checkpoint, those whose levels are in a lowered model."""
    packed = exported.metadata.get("packed_weights")
    if not packed:
        return {}
    import onnx_ir

    levels = [str(name) for name, value in model.graph.initializers.items() if value.dtype == onnx_ir.DataType.UINT8]
    return {
        "packed_weights": {
            name: form for name, form in packed.items() if any(each.startswith(f"{name}.levels") for each in levels)
        }
    }


def compiled_together(
    programs: Sequence[Program],
    compile_program: Callable[[Program, Path], CompiledModel],
    backend: str,
    task: Task,
    directory: Path,
    *,
    parallel: bool,
) -> CompiledModel:
    """Compiles each program into a directory of its own, and describes all of them."""
    places = {program.name: f"programs/{program.name}" for program in programs}

    def compile_there(program: Program) -> CompiledModel:
        place = directory / places[program.name]
        place.mkdir(parents=True)
        with _program_named(program.name):
            compiled = compile_program(program, place)
        compiled.save()
        return compiled

    parts = {program.name: functools.partial(compile_there, program) for program in programs}
    done = run_parts(parts, on_end=_tell_end) if parallel else {name: part() for name, part in parts.items()}
    compiled = done[programs[-1].name]
    return CompiledModel(
        directory=directory,
        backend=backend,
        task=task,
        specializations=(),
        inputs=(),
        outputs=(),
        programs=places,
        dry_run_result=f"{places[programs[-1].name]}/{compiled.dry_run_result}" if compiled.dry_run_result else "",
        qconfig=compiled.qconfig,
        transforms=compiled.transforms,
        options=compiled.options,
        metadata=compiled.metadata,
    )


def _tell_end(left: list[str]) -> None:
    report("; not yet: ".join(["compiled", *([", ".join(left)] if left else [])]))


@contextlib.contextmanager
def _program_named(name: str) -> Iterator[None]:
    """Lets errors say which of several programs they are about."""
    try:
        yield
    except QEFFError as error:
        error.args = (f"program '{name}': {error}",)
        raise


def finish_artifact(
    compiled: CompiledModel,
    exported: ExportedModel,
    specializations: tuple[Specialization, ...],
    relay: Relay,
    final_dir: Path,
    *,
    name: str,
) -> None:
    """Adds what every artifact carries, whatever backend made it."""
    directory = compiled.directory
    for companion in COMPANIONS:
        origin = exported.directory / companion
        if origin.is_dir():
            shutil.copytree(origin, directory / companion)
        elif origin.is_file():
            shutil.copy2(origin, directory / companion)
    # The export may have been made for another model that shares it.
    metadata = {**compiled.metadata, "model_name": name, PACKAGE: relay.package}
    dataclasses.replace(compiled, metadata=metadata).save()
    fingerprint = relay.fingerprint()
    create_and_dump_qconfigs(
        directory,
        huggingface_config=_read_config(exported.directory),
        export_dir=exported.directory,
        compile_dir=final_dir,
        torch_transforms=exported.transforms,
        onnx_transforms=compiled.transforms,
        specializations=specializations,
        onnx_path=exported.model_path,
        compiler_options=compiled.options,
        backend={
            "name": relay.name,
            "distribution": relay.distribution,
            "version": relay.version,
            "fingerprint": fingerprint,
        },
        sdk_versions=fingerprint,
        qpc_config=compiled.qconfig,
    )


def _read_config(directory: Path) -> Mapping[str, Any]:
    path = directory / "config.json"
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
