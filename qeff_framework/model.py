"""`QEFFBaseModel`: what every task has in common. It holds the module and drives transform, export, compile and
execute.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from qeff_framework.artifacts import (
    Store,
    StoredArtifact,
    cache_key,
    link_equal_files,
    shared_digests,
)
from qeff_framework.compilation import (
    check_capabilities,
    check_position_limits,
    compiled_program,
    compiled_together,
    finish_artifact,
    identity_of,
)
from qeff_framework.contracts import (
    CompiledModel,
    CompileRequest,
    ExportedModel,
    ExportRequest,
    Specialization,
    Task,
    TransformRequest,
    has_changed,
)
from qeff_framework.errors import BackendUnavailableError, ExecutionError, OptionError
from qeff_framework.key_parts import (
    backend_part,
    extensions_part,
    inputs_part,
    libraries_part,
    options_part,
    replacements_part,
    source_part,
    transform_part,
)
from qeff_framework.options import OF_THE_RUNTIME, check_switches, misplaced_options, parse_options
from qeff_framework.plans import CompilationPlan, ExportPlan, Program
from qeff_framework.plugin_api import Backend
from qeff_framework.progress import report
from qeff_framework.rare_collections import rare_collections
from qeff_framework.registry import registry
from qeff_framework.sources import CheckpointSource, ModelSource, ModuleSource
from qeff_framework.sources.code_digests import core_digest
from qeff_framework.sources.configs import for_inference
from qeff_framework.sources.torch_defaults import standard_torch_defaults
from qeff_framework.window_programs import compile_windows, layers_per_program

if TYPE_CHECKING:
    import torch

    from qeff_framework.relay import Relay
    from qeff_framework.runtime import CompiledRunner

logger = logging.getLogger(__name__)

#: Held while `runner` loads a program. A lock of the model itself could not be copied with it.
_LOADING = threading.RLock()


class Shapes(Protocol):
    """The sizes of a task; see `qeff_framework.shapes`."""

    def specializations(self) -> tuple[Specialization, ...]:
        """The static shape sets to compile."""

    def extra_inputs(self) -> tuple[str, ...]:
        """Inputs of the graph that these sizes need, see `contracts.EXTRA_INPUTS`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenInput:
    """What a program will be run on, as far as it can be checked before there is a program."""

    #: There are texts, which only a tokenizer makes tokens of.
    texts: bool = False
    #: There are conversations, which a chat template renders.
    conversations: bool = False
    #: The texts and conversations themselves, and variables of the chat template.
    prompts: Sequence[Any] = ()
    chat_template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: Settings of a generation config.
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: The images of each prompt.
    images: Sequence[Sequence[Any]] = ()
    #: The videos of each prompt, opened.
    videos: Sequence[Sequence[Any]] = ()
    #: How long each clip of sound is, in seconds.
    clips: Sequence[float] = ()
    #: What is spoken, and what to do with it.
    language: str | None = None
    speech_task: str | None = None


class QEFFBaseModel:
    """A Transformers model on its way to a device.

    Subclasses name their task; everything else is here. Weights are loaded when an export needs them, so that a model
    whose artifacts exist starts at once.

    Args:
        model: a Transformers module in float32, or a source that can load one.
    """

    task: ClassVar[Task]
    #: The Transformers class that loads a checkpoint for this task.
    transformers_class: ClassVar[str]
    #: Dataclass of the sizes that `compile` takes for this task.
    shapes: ClassVar[type[Any]]
    #: Names of the programs that can be cut between their layers: what runs in front of these and behind them reads tokens and
    #: gives logits.
    cut_programs: ClassVar[frozenset[str]] = frozenset()
    #: Whether all of the module is in one program, so that the numbers of its weights are the program's.
    has_one_program: ClassVar[bool] = False

    def __init__(self, model: torch.nn.Module | ModelSource) -> None:
        if isinstance(model, str | os.PathLike):
            raise OptionError(
                f"{type(self).__name__}({os.fspath(model)!r}) takes a Transformers module; a checkpoint is given with "
                f"{type(self).__name__}.from_pretrained({os.fspath(model)!r})"
            )
        self._source: ModelSource = ModuleSource(model) if hasattr(model, "state_dict") else model  # type: ignore[arg-type]
        self._runner: CompiledRunner | None = None
        #: What the running `compile` or `export` has warned about.
        self._told: set[str] = set()
        #: What `require_input` was called with, until it is checked.
        self._given: tuple[GivenInput, Mapping[str, Any]] | None = None
        self.compiled: CompiledModel | None = None
        #: The backend that was passed to `compile` as an object, which no name leads to.
        self._backend: Backend | type[Backend] | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **hf_kwargs: Any) -> Self:
        """Takes a checkpoint from a local folder, the hub, or a GGUF file.

        Args:
            pretrained_model_name_or_path: folder with a ``config.json``, hub id, or path of a ``.gguf`` file.
            **hf_kwargs: arguments of Transformers' ``from_pretrained`` (``gguf_file``, ``revision``, ``token``, ``variant``,
                ``trust_remote_code``, off by default, ...) and fields of the checkpoint's config that are to be replaced
                (``num_hidden_layers=1``).

        Raises:
            OptionError: an argument that neither Transformers' loader nor the config has.
            CheckpointError: the checkpoint is missing, incomplete or damaged, is an adapter, or needs code of its own that was
                not trusted. What only the weights tell is raised when they are loaded, by `export` and `compile`.
            UnsupportedModelError: its architecture does not fit the task.
        """
        source = CheckpointSource(pretrained_model_name_or_path, hf_kwargs)
        cls._check_architecture(source)
        return cls(source)

    def require_tokenizer(self) -> None:
        """Raises `CheckpointError` with the reason where the artifact would carry no tokenizer to read texts with."""
        self._source.require_tokenizer()

    def require_chat_template(self) -> None:
        """Raises `CheckpointError` as `require_tokenizer` does, and `InputError` where there is no chat template."""
        self._source.require_tokenizer()
        if not self._source.has_chat_template():
            from qeff_framework.tokenization.chat import without_chat_template

            raise without_chat_template(self.name)

    def require_input(self, given: GivenInput, sizes: Mapping[str, Any]) -> None:
        """Raises for input that the programs would refuse, or that nothing here could prepare, before anything is exported.

        Args:
            given: what they will be run on.
            sizes: keywords of `compile`; what belongs to the backend is left aside.
        """
        if given.texts:
            self.require_tokenizer()
        if given.conversations:
            self.require_chat_template()
        self._given = given, sizes

    def _check_given(self) -> None:
        """Checks how long the given input is, when something is about to be exported or compiled for it."""
        if self._given is None:
            return
        given, sizes = self._given
        self._given = None
        self._require_room(given, self._sizes_among(sizes))

    def _sizes_among(self, options: Mapping[str, Any]) -> Any:
        """The task's sizes among the keywords of `compile`."""
        names = {field.name for field in dataclasses.fields(self.shapes)}
        sizes = {name: _plain_size(value) for name, value in options.items() if name in names}
        return parse_options(self.shapes, sizes, owner=f"task '{self.task}'")

    def _require_room(self, given: GivenInput, shapes: Any) -> None:
        """Raises `InputError` for input that is too long or too short for programs of these sizes.

        Reading it may take seconds, which a program that is there already must not cost.
        """

    @classmethod
    def _check_architecture(cls, source: ModelSource) -> None:
        """Refuses a checkpoint of another task. The base accepts what Transformers can load."""

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the checkpoint, for people."""
        return self._source.name

    @property
    def config(self) -> Mapping[str, Any]:
        """The Hugging Face config as a dictionary."""
        return self._source.config()

    @property
    def module(self) -> torch.nn.Module:
        """The torch module; loads the weights. It may be changed: the next `compile` or `export` takes it as it is then."""
        if isinstance(self._source, CheckpointSource):
            with standard_torch_defaults():
                return self._source.lend(self._loading_class())
        return self._loaded_module()

    def _loaded_module(self) -> torch.nn.Module:
        """The torch module for use here, which leaves it as it is."""
        with standard_torch_defaults():
            return self._source.load(self._loading_class())

    def _loading_class(self) -> str:
        """The Transformers class that loads this checkpoint."""
        return self.transformers_class

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    # --- export -------------------------------------------------------------------------------------------------------

    @rare_collections()
    def export(
        self,
        export_dir: str | os.PathLike[str] | None = None,
        *,
        extensions: Sequence[str] | None = None,
        use_onnx_subfunctions: bool = False,
    ) -> ExportedModel:
        """Exports to portable ONNX, or finds the export that exists.

        Args:
            export_dir: put the export there instead of into the artifact store.
            extensions: names of extensions; `None` reads ``QEFF_EXTENSIONS``.
            use_onnx_subfunctions: layers that are alike stand in the graph as calls of one ONNX function for each kind. A
                backend gets the flat graph either way; what its compiler reads is decided by options of its own.

        Raises:
            ExportError, UnsupportedModelError: the model cannot be expressed.
            ArtifactError: the store or `export_dir` cannot be used.
        """
        check_switches("export", use_onnx_subfunctions=use_onnx_subfunctions)
        self._told.clear()
        plan = self._plan_export(
            registry.core(extensions=extensions), None, use_onnx_subfunctions=use_onnx_subfunctions
        )
        return self._export(plan, export_dir)

    # It may load the tokenizer.
    @rare_collections()
    def _plan_export(
        self,
        relay: Relay,
        options: object,
        *,
        extra_inputs: tuple[str, ...] = (),
        extra_outputs: tuple[str, ...] = (),
        program: str = "",
        program_inputs: Mapping[str, Any] | None = None,
        use_onnx_subfunctions: bool = False,
    ) -> ExportPlan:
        """Everything about an export that is known before any work."""
        if program_inputs is None:
            program_inputs = self._program_inputs()
        transforms = relay.transform(TransformRequest(stage="torch", task=self.task, options=options))
        takes_part = bool(transforms) or relay.has_export
        # An artifact without the tokenizer must not be found again where the tokenizer can be loaded.
        problem = self._source.tokenizer_problem()
        identity = self._source.identity()
        parts = {
            "core": core_digest(),
            "task": self.task,
            "model": identity,
            **({"tokenizer": "not loaded"} if problem else {}),
            "transforms": [transform_part(transform) for transform in transforms],
            "libraries": libraries_part(self.config),
            **(backend_part(relay, options) if takes_part else {}),
            **extensions_part(relay, "export"),
            **replacements_part(self.config),
            **self._export_key(),
            **({"extra_inputs": list(extra_inputs)} if extra_inputs else {}),
            **({"extra_outputs": list(extra_outputs)} if extra_outputs else {}),
            **({"program": program} if program else {}),
            **({"program_inputs": inputs_part(program_inputs)} if program or program_inputs else {}),
            **({"use_onnx_subfunctions": True} if use_onnx_subfunctions else {}),
        }
        return ExportPlan(
            relay=relay,
            options=options,
            transforms=transforms,
            extra_inputs=extra_inputs,
            extra_outputs=extra_outputs,
            program=program,
            program_inputs=program_inputs,
            use_onnx_subfunctions=use_onnx_subfunctions,
            identity=identity,
            tokenizer_problem=problem,
            takes_part=takes_part,
            parts=parts,
            key=cache_key(parts),
        )

    def _export(
        self, plan: ExportPlan, export_dir: str | os.PathLike[str] | None = None, *, rebuild: bool = False
    ) -> ExportedModel:
        transforms, problem = plan.transforms, plan.tokenizer_problem

        @rare_collections()
        @standard_torch_defaults()
        def build(output_dir: Path) -> Mapping[str, str]:
            self._check_given()
            # A transform may do anything with a module, so that it gets one with numbers.
            source, loader = self._source, self._loading_class()
            module = source.load(loader) if transforms else source.load_for_export(loader, output_dir)
            if isinstance(source, CheckpointSource):
                source.refuse_changed(plan.identity)
            is_callers = isinstance(source, ModuleSource) or getattr(source, "is_lent", False)
            with for_inference(module) if is_callers else contextlib.nullcontext():
                # The module belongs to the caller, and the next backend must find it as it was.
                return export(copy.deepcopy(module) if transforms and is_callers else module, output_dir)

        def export(module: torch.nn.Module, output_dir: Path) -> Mapping[str, str]:
            applied = [f"{t.name}@{t.version}" for t in transforms if has_changed(t(module))]
            packed = self._source.packed_matrices(module)
            if plan.options is not None and self.has_one_program and not packed:
                plan.relay.check_weights(plan.options, sum(weight.numel() for weight in module.parameters()))
            report(f"exporting {self.name} to portable ONNX{f': {plan.program}' if plan.program else ''}")
            request = ExportRequest(
                module=module,
                task=self.task,
                output_dir=output_dir,
                extra_inputs=plan.extra_inputs,
                extra_outputs=plan.extra_outputs,
                unloaded=self._source.unloaded(),
                program=plan.program,
                program_inputs=plan.program_inputs,
                use_onnx_subfunctions=plan.use_onnx_subfunctions,
                key=plan.key,
                packed_matrices=packed,
                progress=report,
                **self._export_arguments(),
            )
            exported = plan.relay.export(request)
            digests = self._source.keep_weights(exported.metadata.get("weight_files", ()))
            metadata = {
                "model_name": self.name,
                "pad_token_id": self.config.get("pad_token_id"),
                **_stated(tokenizer_problem=problem),
                **exported.metadata,
                **_stated(notes=[*self._source.notes(), *exported.metadata.get("notes", ())]),
            }
            self._source.save_companions(output_dir)
            metadata |= self._complete_export(output_dir)
            dataclasses.replace(exported, transforms=tuple(applied), metadata=metadata).save()
            return digests

        try:
            stored = Store().get_or_build(
                "exports",
                self.name,
                plan.key,
                plan.parts,
                build,
                destination=Path(export_dir) if export_dir is not None else None,
                on_wait=lambda: report(f"waiting for another process that exports {self.name}"),
                # An export in which the backend has no part is the same for every backend.
                rebuild=rebuild and plan.takes_part,
            )
        finally:
            self._source.release()
        exported = ExportedModel.load(stored.path)
        # Told on every run: what is wrong stays wrong when the export is found again. Once, however many programs there are.
        notes = [
            *exported.metadata.get("notes", ()),
            *([f"the artifact carries no tokenizer: {problem}"] if problem else []),
        ]
        for note in notes:
            if note not in self._told:
                logger.warning("%s", note)
                self._told.add(note)
        return exported

    def _program_inputs(self) -> Mapping[str, Any]:
        """What the graph of a model of one program is made for, see `contracts.ExportRequest`; nothing that must be said."""
        return {}

    def _export_key(self) -> Mapping[str, object]:
        """What a task adds to the export's key."""
        return {}

    def _export_arguments(self) -> Mapping[str, Any]:
        """What a task adds to the export request."""
        return {}

    def _complete_export(self, directory: Path) -> Mapping[str, Any]:  # noqa: ARG002 - for tasks that override it
        """Adds to an export what a task needs when it runs; returns entries of its metadata."""
        return {}

    def _artifact_key(self) -> Mapping[str, object]:
        """What a task adds to the key of a compiled artifact beside its exports."""
        return {}

    def _complete_artifact(self, directory: Path) -> None:
        """Adds to a compiled artifact what a task needs when it runs and no export carries."""

    # --- compile ------------------------------------------------------------------------------------------------------

    def compile(
        self,
        backend: str | Backend | type[Backend] | None = None,
        *,
        compile_dir: str | os.PathLike[str] | None = None,
        dry_run: bool = False,
        rebuild: bool = False,
        extensions: Sequence[str] | None = None,
        **options: Any,
    ) -> CompiledModel:
        """Compiles for a backend, exporting first if needed; finds the program that exists.

        Args:
            backend: name of an installed backend; `None` takes ``QEFF_BACKEND`` or the best one that works here.
            compile_dir: put the artifact there instead of into the artifact store.
            dry_run: write every input file of the compiler and run nothing; for backends that can.
            rebuild: compile even if the program exists, and export again where the backend has a part in the export. What
                exists is replaced once the new program is complete.
            extensions: names of extensions; `None` reads ``QEFF_EXTENSIONS``.
            **options: the task's sizes (``prefill_seq_len``, ``ctx_len``, ``batch_size``, ... or ``seq_len``) and the
                backend's options (``num_cores``, ...). Unknown names fail before any work starts.

        Returns:
            The program; its ``directory`` is the artifact that `load_compiled` and ``qeff generate`` take.

        Raises:
            OptionError: unknown, misspelt or contradictory options, or sizes beyond the model's table of positions.
            BackendError: the backend cannot be selected, or its compiler is not on this machine.
            CompileError: the compiler refused.
        """
        check_switches("compile", dry_run=dry_run, rebuild=rebuild)
        self._told.clear()
        plan = self._plan_compilation(
            backend,
            options,
            destination=Path(compile_dir) if compile_dir is not None else None,
            dry_run=dry_run,
            rebuild=rebuild,
            extensions=extensions,
        )
        return self._carry_out(plan)

    def _plan_compilation(
        self,
        backend: str | Backend | type[Backend] | None,
        options: Mapping[str, Any],
        *,
        destination: Path | None = None,
        dry_run: bool,
        rebuild: bool,
        extensions: Sequence[str] | None,
    ) -> CompilationPlan:
        """What is to be compiled, with its key. Everything that can be refused before an export is refused here."""
        relay = registry.get(backend, extensions=extensions, stage="compile")
        shapes, compile_options = self._parse(relay, options)
        check_capabilities(relay, self.task, shapes, compile_options, dry_run=dry_run)
        layers = layers_per_program(compile_options)
        if layers is not None and (problem := self._cut_problem(shapes)):
            raise OptionError(f"num_layers_per_program={layers} {problem}; leave it out")
        # What is known of the input was checked with it.
        if self._given is None and (note := self._advice(shapes)):
            logger.warning("%s", note)
        key_of_options, fingerprint_of_backend = options_part(compile_options), relay.fingerprint()
        store = Store()
        if destination is not None:
            store.check_destination("compiled", destination)
        programs = self._programs(relay, compile_options, shapes)
        transforms = {
            program.name: relay.transform(
                TransformRequest(
                    stage="onnx",
                    task=self.task,
                    options=compile_options,
                    specializations=program.specializations,
                )
            )
            for program in programs
        }
        identities = {program.name: identity_of(program, transforms[program.name]) for program in programs}
        parts = {
            "core": core_digest(),
            "backend": relay.name,
            # Two packages may give their backends one name.
            "package": relay.package,
            "fingerprint": fingerprint_of_backend,
            **source_part(relay),
            **extensions_part(relay, "compile"),
            "options": key_of_options,
            "dry_run": dry_run,
            **self._artifact_key(),
            **identities.get("", {"programs": identities}),
        }
        label, key = f"{relay.name}-{self.name}", cache_key(parts)
        if destination is not None:
            store.check_destination("compiled", destination, key)
        if not dry_run:
            try:
                relay.check_compiler(compile_options)
            except BackendUnavailableError:
                # A program that was compiled elsewhere is found without a compiler.
                if rebuild or not store.holds("compiled", key, destination):
                    raise
        return CompilationPlan(
            backend=backend,
            relay=relay,
            given=options,
            options=compile_options,
            layers=layers,
            programs=programs,
            transforms=transforms,
            parts=parts,
            label=label,
            key=key,
            destination=destination,
            dry_run=dry_run,
            rebuild=rebuild,
        )

    def _carry_out(self, plan: CompilationPlan, *, parallel: bool = False) -> CompiledModel:
        """Exports and compiles what is not there yet; programs at the same time if `parallel`."""
        return self._adopt(plan, self._build(plan, self._exports(plan), parallel=parallel))

    def _exports(self, plan: CompilationPlan) -> dict[str, ExportedModel]:
        """The exports of all programs, made one after the other where they are not there: tracing changes the whole process."""
        exports = {program.name: self._export(program.plan, rebuild=plan.rebuild) for program in plan.programs}
        for program in plan.programs:
            check_position_limits(exports[program.name], program.specializations, given=plan.given)
        return exports

    def _build(
        self, plan: CompilationPlan, exports: Mapping[str, ExportedModel], *, parallel: bool = False
    ) -> StoredArtifact:
        """Compiles the programs, or finds them. Changes nothing of this object, so that several plans can be built at a time."""
        store, relay, programs = Store(), plan.relay, plan.programs

        def build(output_dir: Path) -> Mapping[str, str]:
            self._check_given()
            from qeff_framework.lowering.stored_weights import load_portable

            def compile_program(program: Program, directory: Path) -> CompiledModel:
                request = functools.partial(
                    CompileRequest,
                    specializations=program.specializations,
                    options=plan.options,
                    output_dir=directory,
                    dry_run=plan.dry_run,
                    key=plan.key,
                    log_dir=store.root / "logs",
                    progress=report,
                )
                # Of programs that are compiled at the same time every message names its own.
                told = f": {program.name}" if program.name and not parallel else ""
                report(f"compiling {self.name} for {relay.name}{told}")
                exported = exports[program.name]
                if plan.layers is not None and program.name in self.cut_programs:
                    compile_part = functools.partial(compiled_program, relay, transforms=plan.transforms[program.name])
                    return compile_windows(exported, plan.layers, request, compile_part)
                return compiled_program(
                    relay,
                    exported,
                    load_portable(exported.model_path),
                    request,
                    transforms=plan.transforms[program.name],
                )

            final_dir = plan.destination or store.path_of("compiled", plan.label, plan.key)
            if programs[0].name == "":
                compiled = compile_program(programs[0], output_dir)
            else:
                compiled = compiled_together(
                    programs, compile_program, relay.name, self.task, output_dir, parallel=parallel
                )
            # The last program is the one that the others work for.
            main = programs[-1]
            self._complete_artifact(output_dir)
            finish_artifact(compiled, exports[main.name], main.specializations, relay, final_dir, name=self.name)
            equal = link_equal_files(output_dir) if len(programs) > 1 else {}
            return {**equal, **shared_digests(output_dir, [exported.directory for exported in exports.values()])}

        return store.get_or_build(
            "compiled",
            plan.label,
            plan.key,
            plan.parts,
            build,
            destination=plan.destination,
            on_wait=lambda: report(f"waiting for another process that compiles {self.name}"),
            rebuild=plan.rebuild,
        )

    def _adopt(self, plan: CompilationPlan, stored: StoredArtifact) -> CompiledModel:
        """Takes the artifact for what `generate` runs."""
        self._close_runner()
        self.compiled = CompiledModel.load(stored.path)
        self._backend = None if plan.backend is None or isinstance(plan.backend, str) else plan.backend
        return self.compiled

    def _programs(self, relay: Relay, options: object, shapes: Any) -> list[Program]:
        """The programs of the artifact: one without a name, unless a task has several. The last is the main one."""
        plan = self._plan_export(
            relay, options, extra_inputs=shapes.extra_inputs(), extra_outputs=getattr(shapes, "extra_outputs", tuple)()
        )
        return [Program(name="", plan=plan, specializations=shapes.specializations())]

    def _advice(self, shapes: Any) -> str:  # noqa: ARG002 - for tasks that override it
        """What ``generate`` would refuse of programs of these sizes unless it is told otherwise; "" where it refuses nothing."""
        return ""

    def _cut_problem(self, shapes: Any) -> str:  # noqa: ARG002 - for tasks that override it
        """Why no program can be cut between its layers; "" where one can."""
        if self.cut_programs:
            return ""
        return (
            f"is for programs that generate text token by token, and {self.name} was loaded for the task '{self.task}'"
        )

    def _parse(self, relay: Relay, options: Mapping[str, Any]) -> tuple[Any, Any]:
        """Splits the keywords into the task's sizes and the backend's options; reports every problem of both at once."""
        size_names = {field.name for field in dataclasses.fields(self.shapes)}
        sizes = {name: _plain_size(value) for name, value in options.items() if name in size_names}
        others = {name: value for name, value in options.items() if name not in size_names}
        problems: list[str] = []
        parsed: list[Any] = []
        misplaced = misplaced_options(relay.backend.runtime_options, OF_THE_RUNTIME)
        for schema, values, owner in (
            (self.shapes, sizes, f"task '{self.task}'"),
            (relay.backend.options, others, f"backend '{relay.name}'"),
        ):
            try:
                parsed.append(parse_options(schema, values, owner=owner, also_known=size_names, misplaced=misplaced))
            except OptionError as error:
                problems.append(str(error))
        if problems and any(name not in {f.name for f in dataclasses.fields(relay.backend.options)} for name in others):
            # Other backends are looked at only to improve the message, and only when there is one.
            problems = [problem for problem in problems if not problem.startswith("backend ")]
            try:
                parse_options(
                    relay.backend.options,
                    others,
                    owner=f"backend '{relay.name}'",
                    also_known=size_names,
                    elsewhere=registry.options_elsewhere(relay.name),
                    misplaced=misplaced,
                )
            except OptionError as error:
                problems.append(str(error))
        if problems:
            raise OptionError("; ".join(problems))
        return parsed[0], parsed[1]

    # --- execute ------------------------------------------------------------------------------------------------------

    def load(self, **runtime_options: Any) -> CompiledRunner:
        """Loads the compiled program on its device. `generate` does it by itself with the defaults."""
        from qeff_framework.runtime import load_compiled

        if self.compiled is None:
            raise ExecutionError(f"{self.name} is not compiled; call compile(backend=...) first")
        self._close_runner()
        self._runner = load_compiled(self.compiled.directory, backend=self._backend, **runtime_options)
        return self._runner

    @property
    def runner(self) -> CompiledRunner:
        """The loaded program; it is loaded with the defaults where `load` has not been called."""
        if self._runner is None:
            # The first calls of several threads share one program.
            with _LOADING:
                return self._runner or self.load()
        return self._runner

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the compiled program; see the task's class for arguments and results."""
        return self.runner.generate(*args, **kwargs)

    def _close_runner(self) -> None:
        # Forgotten first: one that cannot be closed must not stand in the way of the next.
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()


def _stated(**facts: Any) -> dict[str, Any]:
    """The facts that there are."""
    return {name: value for name, value in facts.items() if value}


def _plain_size(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
