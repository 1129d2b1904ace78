"""Pictures and videos from texts, with pipelines of diffusers."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from qeff_framework.auto.joined_programs import joined
from qeff_framework.contracts import BASE_ADAPTER, AdapterRoom, CompiledModel, ExportedModel, Specialization, Task
from qeff_framework.diffusion.arguments import (
    PICTURES_OF_A_PROMPT,
    SIZES,
    scales_of,
    takes_time_steps,
)
from qeff_framework.diffusion.loading import check_components, check_folder, load_pipeline
from qeff_framework.errors import InputError, OptionError, UnsupportedModelError
from qeff_framework.model import QEFFBaseModel
from qeff_framework.options import check_switches
from qeff_framework.parallel import run_parts
from qeff_framework.plans import Program
from qeff_framework.progress import report
from qeff_framework.registry import registry
from qeff_framework.shapes import PipelineShapes
from qeff_framework.sources.arguments import switch_problems
from qeff_framework.sources.diffusers_library import require_diffusers
from qeff_framework.sources.pipeline import PipelineSource
from qeff_framework.tasks import task_specs

if TYPE_CHECKING:
    import torch

    from qeff_framework.contracts import LowRankDelta
    from qeff_framework.diffusion.adapters import PipelineAdapter
    from qeff_framework.diffusion.calls import Call
    from qeff_framework.plans import CompilationPlan, ExportPlan
    from qeff_framework.plugin_api import Backend
    from qeff_framework.relay import Relay
    from qeff_framework.runtime import CompiledRunner
    from qeff_framework.sources.pipeline_files import StoredComponent

#: The classes of diffusers that make a pipeline of another one's components.
_FORMS = {
    "text-to-image": "AutoPipelineForText2Image",
    "image-to-image": "AutoPipelineForImage2Image",
    "inpainting": "AutoPipelineForInpainting",
}
#: Arguments of `from_pretrained` of other tasks, which diffusers would ignore.
_OF_OTHER_MODELS = ("gguf_file", "keep_quantized")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Group:
    """Components that are compiled together."""

    backend: Any
    #: Of these components alone.
    options: Mapping[str, Any]
    components: frozenset[str]


class QEFFDiffusionPipeline(QEFFBaseModel):
    """A diffusers pipeline, as a program for each of its components with weights: text encoders, denoiser, VAE decoder.

    The loop and the scheduler are those of diffusers, on the host; running an artifact needs torch and diffusers. ``compile``
    takes ``height`` and ``width`` (several are lists), ``batch_size=1``, ``guidance=True``, and for pipelines that have them
    ``num_frames`` and ``max_sequence_length``. The compiled pipeline is called as the diffusers pipeline is.

    Args:
        pipeline: a pipeline of diffusers in memory, on the CPU.
        name: for people.
        stored: the components whose parameters point into files, see `sources.pipeline_files`; `from_pretrained` finds them.

    Raises:
        UnsupportedModelError: it has a safety checker, or lacks a component.

    Example::

        pipeline = QEFFDiffusionPipeline.from_pretrained(
            "stable-diffusion-v1-5/stable-diffusion-v1-5", safety_checker=None
        )
        pipeline.compile(backend="ort_sim", height=512, width=512)
        pipeline("a lighthouse", num_inference_steps=20).images[0].save("out.png")
    """

    task: ClassVar[Task] = "text-to-image"
    #: Diffusers loads its components.
    transformers_class = ""
    shapes = PipelineShapes

    def __init__(
        self, pipeline: Any, *, name: str | None = None, stored: Mapping[str, StoredComponent] | None = None
    ) -> None:
        require_diffusers()
        from diffusers import DiffusionPipeline

        if not isinstance(pipeline, DiffusionPipeline):
            raise UnsupportedModelError(f"{type(pipeline).__name__} is no pipeline of diffusers")
        check_components(pipeline)
        self._pipeline_source = PipelineSource(pipeline, name or type(pipeline).__name__, stored)
        super().__init__(self._pipeline_source)
        self._pipeline: Any = pipeline
        #: See `compile`.
        self._call: dict[str, Any] = {}
        #: The components that are compiled; `None` for all.
        self._chosen: frozenset[str] | None = None
        self._saving = threading.Lock()
        self._adapters: dict[str, PipelineAdapter] = {}
        #: The scale of each adapter that takes part, see `set_adapters`.
        self._scales: dict[str, Any] = {}
        #: Places of each component's programs for adapters that are written into them; `None` where they are a part of these.
        self._rooms: dict[str, AdapterRoom] | None = None
        #: The runner and the adapters that were written last.
        self._written: tuple[Any, ...] = ()
        #: The adapters that the programs hold, and what the components were when they were compiled, see `_note_contents`.
        self._held: dict[str, PipelineAdapter] = {}
        self._facts: dict[str, Mapping[str, Any]] = {}
        #: The schedulers that programs begin with, and a runner with those that it was given last.
        self._schedulers: dict[str, Any] = {}
        self._handed: tuple[Any, dict[str, Any]] = (None, {})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | Any,
        *,
        adapter: str | os.PathLike[str] | None = None,
        **hf_kwargs: Any,
    ) -> Self:
        """Takes a folder or an id of the hub, as `DiffusionPipeline.from_pretrained` does, or a pipeline in memory.

        The weights of a folder's denoiser and VAE are not read where they are safetensors files: exports refer to the files.

        Args:
            pretrained_model_name_or_path: a folder with a ``model_index.json``, a hub id, or a pipeline.
            adapter: folder, file or hub id of a LoRA adapter, which is merged into the weights; `load_lora_weights` loads those
                that can be switched.
            **hf_kwargs: arguments of diffusers' ``from_pretrained`` (``revision``, ``variant``, ``safety_checker=None``, ...).

        Raises:
            InputError: diffusers is not installed.
            OptionError: an argument that a pipeline has no use for.
            CheckpointError: it, or the adapter, is missing, incomplete or damaged.
            UnsupportedModelError: it has a safety checker, or lacks a component.
        """
        require_diffusers()
        if problems := switch_problems(hf_kwargs):
            raise OptionError(f"from_pretrained: {'; '.join(problems)}")
        options = {name for spec in task_specs() for name in spec.model_options}
        unknown = [name for name in (*_OF_OTHER_MODELS, *sorted(options)) if hf_kwargs.get(name) is not None]
        if unknown:
            raise OptionError(f"{' and '.join(unknown)} is for other models than pipelines of diffusers; leave it out")
        if not isinstance(pretrained_model_name_or_path, (str, os.PathLike)):
            if adapter is not None:
                raise OptionError(
                    "adapter is for a folder or an id of the hub; merge it into a pipeline in memory yourself: "
                    "pipe.load_lora_weights(...), pipe.fuse_lora(), pipe.unload_lora_weights()"
                )
            return cls(pretrained_model_name_or_path)
        place = os.fspath(pretrained_model_name_or_path)
        check_folder(Path(place), hf_kwargs)
        pipeline, stored = load_pipeline(place, hf_kwargs)
        name = _short(place)
        if adapter is not None:
            from qeff_framework.diffusion.adapters import merge_adapter

            check_components(pipeline)
            merged = merge_adapter(pipeline, adapter, lambda part: stored[part].load() if part in stored else None)
            stored = {part: each for part, each in stored.items() if part not in merged}
            name = f"{name}-{_short(os.fspath(adapter))}"
        return cls(pipeline, name=name, stored=stored)

    @property
    def pipeline_class(self) -> type[Any]:
        """The class of diffusers."""
        return type(self._pipeline)

    def in_form(self, form: str) -> Self:
        """The same components as another pipeline of diffusers, such as one that begins with a picture.

        Args:
            form: ``"text-to-image"``, ``"image-to-image"`` or ``"inpainting"``.

        Raises:
            OptionError: there is no such form.
            UnsupportedModelError: diffusers has no pipeline of that form for these components.
        """
        import diffusers

        if form not in _FORMS:
            raise OptionError(f"in_form: there is no form {form!r}; there are {', '.join(_FORMS)}")
        try:
            pipeline = getattr(diffusers, _FORMS[form]).from_pipe(self._pipeline)
        except ValueError as error:
            raise UnsupportedModelError(
                f"diffusers has no pipeline for {form} with the components of {type(self._pipeline).__name__}: {error}"
            ) from error
        made = type(self)(pipeline, name=self.name, stored=self._pipeline_source.stored)
        vars(made).update(_adapters=dict(self._adapters), _scales=dict(self._scales))
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the compiled pipeline; see `qeff_framework.runtime.pipeline.CompiledDiffusionPipeline`."""
        return self.generate(*args, **kwargs)

    @property
    def scheduler(self) -> Any:
        """The scheduler of diffusers; another one is for the next picture, and nothing is compiled again."""
        return self._pipeline.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self._pipeline.scheduler = scheduler

    # --- adapters -----------------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""
        return tuple(self._adapters)

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, torch.Tensor],
        adapter_name: str = "default",
        **kwargs: Any,
    ) -> None:
        """Loads a LoRA adapter, which can be switched after ``compile``; as in diffusers, it alone takes part then.

        The next programs hold it beside the weights; those that were compiled with ``max_loras`` take it as they are.

        Args:
            pretrained_model_name_or_path_or_dict: what diffusers' ``load_lora_weights`` takes: a folder, a file, a hub id, or
                tensors by name.
            adapter_name: a name for it.
            **kwargs: as there (``weight_name``, ``subfolder``, ``revision``, ...).

        Raises:
            OptionError: the name is taken, or the programs have room for adapters but not for this one.
            CheckpointError: it is no LoRA adapter, it is for another architecture, or it changes more than sums of low rank can.
            UnsupportedModelError: diffusers has no adapters for the pipeline.
        """
        from qeff_framework.diffusion.adapters import check_room, read_adapter

        if adapter_name == BASE_ADAPTER or adapter_name in self._adapters:
            what = "is the pipeline alone" if adapter_name == BASE_ADAPTER else "is loaded already; delete it first"
            raise OptionError(f"load_lora_weights: '{adapter_name}' {what}; choose another name")
        adapter = read_adapter(self._pipeline, pretrained_model_name_or_path_or_dict, **kwargs)
        if self._rooms is not None:
            check_room(adapter_name, adapter, self._rooms, count=len(self._adapters) + 1)
        self._adapters[adapter_name] = adapter
        self._scales = {adapter_name: 1.0}

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """Says which adapters take part, and what each is multiplied with; nothing is compiled again.

        Args:
            adapter_names: of adapters that are loaded; ``"base"`` or ``[]`` is the pipeline alone.
            adapter_weights: a number for all or one for each, 1 by default. A number may be one for each component by its name.

        Raises:
            OptionError: there is no such adapter, or there are fewer or more numbers than names.
        """
        self._scales = scales_of(adapter_names, adapter_weights, self._adapters, self.component_names)

    def get_active_adapters(self) -> list[str]:
        """The adapters that take part."""
        return list(self._scales)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forgets adapters. Programs that hold them keep them; the next ones do not.

        Raises:
            OptionError: there is no such adapter.
        """
        for name in scales_of(adapter_names, None, self._adapters, ()):
            del self._adapters[name]
            self._scales.pop(name, None)

    def unload_lora_weights(self) -> None:
        """Forgets all adapters."""
        self._adapters, self._scales = {}, {}

    def generate(self, *args: Any, adapter: Any = None, adapter_weights: Any = None, **kwargs: Any) -> Any:
        """See `qeff_framework.runtime.pipeline.CompiledDiffusionPipeline`; by default with the adapters of `set_adapters`.

        Raises:
            InputError: beside what it is raised for there, a component was changed since ``compile``.
            OptionError: the programs hold no such adapter.
        """
        if adapter is None and adapter_weights is not None:
            raise OptionError(
                "adapter_weights is for the adapters that are named: give adapter as well, or call set_adapters"
            )
        scales = (
            self._scales
            if adapter is None
            else scales_of(adapter, adapter_weights, self._adapters, self.component_names)
        )
        self._check_contents(scales)
        self._hand_over_schedulers()
        if not scales:
            return super().generate(*args, **kwargs)
        return super().generate(*args, adapter=[*scales], adapter_weights=[*scales.values()], **kwargs)

    @property
    def runner(self) -> CompiledRunner:
        """The loaded programs. Those that have room for adapters hold the ones that are loaded."""
        runner = super().runner
        wanted = (runner, *self._adapters.items())
        if self._rooms is not None and self._written != wanted:
            factors = {
                component: [adapter.factors.get(component, {}) for adapter in self._adapters.values()]
                for component in self._rooms
            }
            rank = next(iter(self._rooms.values())).rank
            runner.write_adapters(tuple(self._adapters), factors, rank)  # type: ignore[attr-defined]
            self._written = wanted
        return runner

    def _note_contents(self) -> None:
        """Remembers what the programs were made of."""
        from qeff_framework.diffusion.components import facts_of
        from qeff_framework.diffusion.folder import schedulers_of

        schedulers = schedulers_of(self._pipeline)
        self._held = dict(self._adapters)
        self._facts = {
            name: facts_of(each) for name, each in self._pipeline.components.items() if name not in schedulers
        }
        self._schedulers = schedulers

    def _check_contents(self, scales: Mapping[str, Any]) -> None:
        """Refuses what the programs were not made of."""
        from qeff_framework.diffusion.components import changed_facts

        other = [name for name in scales if self._rooms is None and self._held.get(name) is not self._adapters[name]]
        if self.compiled is not None and other:
            raise OptionError(
                f"the adapter '{other[0]}' was loaded after compile, and the programs hold those of before: compile again, or "
                "with max_loras=N, which leaves room for adapters that come later"
            )
        changed = changed_facts(self._facts, self._pipeline)
        if changed is not None:
            raise InputError(
                f"the {changed[0]} of the pipeline was changed since compile ({changed[1]}), and its programs do not know that; "
                "compile again"
            )

    def _hand_over_schedulers(self) -> None:
        """Gives the programs' pipeline the schedulers that this one has by now."""
        from qeff_framework.diffusion.folder import schedulers_of

        if self.compiled is None:
            return
        runner: Any = self.runner
        given = self._handed[1] if self._handed[0] is runner else self._schedulers
        now = schedulers_of(self._pipeline)
        for name, scheduler in now.items():
            if scheduler is not given.get(name):
                setattr(runner.pipeline, name, copy.deepcopy(scheduler))
        self._handed = (runner, now)

    def _export_key(self) -> Mapping[str, object]:
        component = self._pipeline_source.exported
        if self._rooms is not None:
            room = self._rooms.get(component)
            return {"adapter_room": dataclasses.asdict(room)} if room else {}
        held = {name: adapter.digest(component) for name, adapter in self._adapters.items()}
        # Their order gives them their numbers.
        return {"adapters": list(held.items())} if self._factors_of(component) else {}

    def _export_arguments(self) -> Mapping[str, Any]:
        component = self._pipeline_source.exported
        if self._rooms is not None:
            return {"adapter_room": self._rooms.get(component)}
        return {"adapters": self._factors_of(component)}

    def _factors_of(self, component: str) -> Mapping[str, Mapping[str, LowRankDelta]]:
        """What each adapter adds to a component; nothing where none adds anything."""
        factors = {name: adapter.factors.get(component, {}) for name, adapter in self._adapters.items()}
        return factors if any(factors.values()) else {}

    # --- programs -----------------------------------------------------------------------------------------------------

    def export(
        self,
        export_dir: str | os.PathLike[str] | None = None,
        *,
        extensions: Sequence[str] | None = None,
        use_onnx_subfunctions: bool = False,
    ) -> ExportedModel:
        """Raises `OptionError`: a pipeline has a graph for each component and size, which `compile` exports."""
        del export_dir, extensions, use_onnx_subfunctions
        raise OptionError(
            f"{self.name} is a pipeline of several programs, whose sizes belong to its graphs; call compile()"
        )

    def compile(
        self,
        backend: str | Backend | type[Backend] | Mapping[str, str] | None = None,
        *,
        call: Mapping[str, Any] | None = None,
        compile_config: Mapping[str, Mapping[str, Any]] | str | os.PathLike[str] | None = None,
        compile_dir: str | os.PathLike[str] | None = None,
        dry_run: bool = False,
        rebuild: bool = False,
        extensions: Sequence[str] | None = None,
        parallel: bool = False,
        **options: Any,
    ) -> CompiledModel:
        """As `QEFFBaseModel.compile`, for calls of some form and, if wanted, for several backends.

        Args:
            backend: as there, or a backend for each component: ``{"denoiser": "qaic", "vae": "ort_sim"}``. ``"denoiser"`` is
                every component that takes a time step. A component that is not named is compiled for the backend that `None`
                selects.
            call: arguments of the pipeline that decide about sizes (``prompt``, ``use_resolution_binning``, ``strength``) or
                about what is computed (``image``, ``control_image``): the run that finds the programs gets them. A pipeline
                that cannot be called without a picture gets a grey one of the size asked for.
            compile_config: options of the backend for single components, which go before those for all:
                ``{"denoiser": {"num_cores": 16}, "vae": {"num_cores": 4}}``; or a JSON file with the same.
            compile_dir: as there.
            dry_run: as there; of several backends each must be able to.
            rebuild: as there.
            extensions: as there.
            parallel: compile as many programs at a time as there are processors, two at least, once all components are exported.
                The artifact is the same. What compiling takes in memory and on the disk adds up; a program that fails stops
                the others.
            **options: as there; of several backends each gets the options that it has.

        Raises:
            OptionError: beside what it is raised for there, an argument that the pipeline does not take, or a backend or options
                for a component that it does not have.
        """
        check_switches("compile", dry_run=dry_run, rebuild=rebuild, parallel=parallel)
        self._told.clear()
        self._call = dict(call or {})
        common: dict[str, Any] = {"dry_run": dry_run, "rebuild": rebuild, "extensions": extensions}
        config = _component_options(compile_config)
        before = self._rooms, self._written
        try:
            if isinstance(backend, Mapping) or config:
                backends = backend if isinstance(backend, Mapping) else self._one_for_all(backend)
                compiled = self._compile_for_several(
                    backends, config, compile_dir, common, options, parallel=bool(parallel)
                )
            else:
                destination = Path(compile_dir) if compile_dir is not None else None
                plan = self._plan_compilation(backend, options, destination=destination, **common)
                compiled = self._carry_out(plan, parallel=bool(parallel))
        except BaseException:
            self._rooms, self._written = before
            raise
        self._note_contents()
        return compiled

    def _compile_for_several(
        self,
        backends: Mapping[str, Any],
        config: Mapping[str, Mapping[str, Any]],
        compile_dir: str | os.PathLike[str] | None,
        common: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        parallel: bool,
    ) -> CompiledModel:
        groups = self._groups(backends, config)
        known = [
            {each.name for each in dataclasses.fields(relay.backend.options)}
            for relay in (
                registry.get(each.backend, extensions=common["extensions"], stage="compile") for each in groups
            )
        ]
        known_to_one = set().union(*known)
        plans = []
        for group, its_own in zip(groups, known, strict=True):
            # What no backend has is refused by the first.
            given = {key: value for key, value in options.items() if key in its_own or key not in known_to_one}
            self._chosen = group.components
            try:
                plans.append(self._plan_compilation(group.backend, {**given, **group.options}, **common))
            finally:
                self._chosen = None
        # What one of the backends refuses is known before the first one begins.
        parts = self._carry_out_at_once(plans) if parallel else [self._carry_out(plan) for plan in plans]
        self._close_runner()
        self.compiled = joined(
            parts,
            self.name,
            destination=Path(compile_dir) if compile_dir is not None else None,
            on_wait=lambda: report(f"waiting for another process that compiles {self.name}"),
            rebuild=common["rebuild"],
        )
        return self.compiled

    def _carry_out_at_once(self, plans: Sequence[CompilationPlan]) -> list[CompiledModel]:
        exports = [self._exports(plan) for plan in plans]
        builds = {
            str(number): partial(self._build, plan, exported, parallel=True)
            for number, (plan, exported) in enumerate(zip(plans, exports, strict=True))
        }
        built = run_parts(builds, computes=False)
        return [self._adopt(plan, stored) for plan, stored in zip(plans, built.values(), strict=True)]

    @property
    def component_names(self) -> list[str]:
        """The components that have weights."""
        from qeff_framework.diffusion.folder import components_with_weights

        return list(components_with_weights(self._pipeline))

    @property
    def denoisers(self) -> list[str]:
        """The components that take a time step: UNet or transformer, and a ControlNet."""
        return [name for name in self.component_names if takes_time_steps(getattr(self._pipeline, name))]

    def _groups(self, backends: Mapping[str, Any], config: Mapping[str, Mapping[str, Any]]) -> list[_Group]:
        """The components that have a backend and options in common; those of the denoiser are last, which is the main one."""
        components, denoisers = self.component_names, self.denoisers
        chosen = self._for_components(backends, "a backend")
        if len(chosen) < len(components):
            default = registry.get(None, extensions=(), stage="compile").name
            chosen = {name: chosen.get(name, default) for name in components}
        given = self._for_components(config, "options")
        groups: list[_Group] = []
        for name in sorted(components, key=lambda name: (name in denoisers, denoisers[-1:] == [name])):
            one = _Group(backend=chosen[name], options=given.get(name, {}), components=frozenset({name}))
            alike = next((each for each in groups if (each.backend, each.options) == (one.backend, one.options)), None)
            if alike is not None:
                groups.remove(alike)
                one = dataclasses.replace(one, components=alike.components | one.components)
            groups.append(one)
        return groups

    def _one_for_all(self, backend: str | Backend | type[Backend] | None) -> dict[str, Any]:
        """Nothing is named where the default is meant, which is chosen once for all then."""
        return {} if backend is None else dict.fromkeys(self.component_names, backend)

    def _for_components(self, given: Mapping[str, Any], what: str) -> dict[str, Any]:
        """By the names of components; one that is named itself goes before ``"denoiser"``."""
        components, denoisers = self.component_names, self.denoisers
        unknown = [name for name in given if name not in components and name != "denoiser"]
        if unknown:
            raise OptionError(
                f"{type(self._pipeline).__name__} has no {' and no '.join(unknown)}; name {what} for one of "
                f"{', '.join(components)}, or for the denoiser ({', '.join(denoisers)})"
            )
        found = {name: given["denoiser"] for name in denoisers if "denoiser" in given}
        return found | {name: each for name, each in given.items() if name != "denoiser"}

    def _export(
        self, plan: ExportPlan, export_dir: str | os.PathLike[str] | None = None, *, rebuild: bool = False
    ) -> ExportedModel:
        self._pipeline_source.exported = plan.program_inputs["call"]["component"]
        return super()._export(plan, export_dir, rebuild=rebuild)

    def _artifact_key(self) -> Mapping[str, object]:
        return {"pipeline": self._pipeline_source.host_identity()}

    def _complete_artifact(self, directory: Path) -> None:
        # Libraries that save configs need not be ready for several threads.
        with self._saving:
            self._pipeline_source.save_host_part(directory)

    def _programs(self, relay: Relay, options: object, shapes: PipelineShapes) -> list[Program]:
        from qeff_framework.diffusion.adapters import adapter_rooms
        from qeff_framework.diffusion.short_runs import short_runs

        self._pipeline_source.look_again()
        self._written = ()
        self._rooms = None
        if shapes.max_loras is not None:
            self._rooms = adapter_rooms(self._adapters, slots=shapes.max_loras, rank=shapes.max_lora_rank)
        names: Counter[str] = Counter()
        programs = []
        runs = short_runs(self._pipeline, shapes, self._call)
        self._pipeline_source.host_weights = runs.host_weights
        calls = runs.calls
        if shapes.enable_first_block_cache:
            calls = self._cut(calls)
        if shapes.guidance_runs > 1:
            each = next((int(self._call[name]) for name in PICTURES_OF_A_PROMPT if name in self._call), 1)
            calls = self._in_halves(calls, shapes.batch_size * each)
        for call, number in calls:
            if self._chosen is not None and call.component not in self._chosen:
                continue
            name = _name_of(call)
            names[name] += 1
            self._pipeline_source.exported = call.component
            plan = self._plan_export(relay, options, program=name, program_inputs={"call": call.as_json()})
            height, width = shapes.image_sizes[number]
            asked = {"height": height, "width": width, **runs.arguments[number]}
            sizes = {size: int(value) for size, value in asked.items() if size in SIZES and value is not None}
            dims = {"batch_size": shapes.batch_size, "guidance": int(shapes.guidance), **sizes}
            entry = Specialization(name=name, dims=dims)
            title = name if names[name] == 1 else f"{name}-{names[name]}"
            programs.append(Program(name=title, plan=plan, specializations=(entry,)))
        return programs

    def _in_halves(self, calls: list[tuple[Call, int]], rows: int) -> list[tuple[Call, int]]:
        """The calls of the programs, with the denoiser's for half of their rows."""
        from qeff_framework.diffusion.halves import half_of

        denoisers = self.denoisers
        found: list[tuple[Call, int]] = []
        for call, number in calls:
            half = half_of(call, rows) if call.component in denoisers else None
            found.append((half or call, number))
        if found == calls:
            raise OptionError(
                f"{type(self._pipeline).__name__} computes with and without the prompt in calls of their own, or has no "
                "guidance: there is no batch to take apart; leave guidance_runs out"
            )
        return found

    def _cut(self, calls: list[tuple[Call, int]]) -> list[tuple[Call, int]]:
        """The calls of the programs, with three for each of a denoiser that has caches."""
        from qeff_framework.diffusion.first_block import calls_of_parts, is_cut

        components = {name: getattr(self._pipeline, name) for name in self.denoisers}
        cut = {name: each for name, each in components.items() if is_cut(each)}
        if not cut:
            kinds = ", ".join(type(each).__name__ for each in components.values()) or "no denoiser"
            raise UnsupportedModelError(
                f"enable_first_block_cache does not go with {type(self._pipeline).__name__}: diffusers has no caches for "
                f"{kinds}; leave it out"
            )
        return [
            (part, number)
            for call, number in calls
            for part in (calls_of_parts(cut[call.component], call) if call.component in cut else [call])
        ]


class QEFFFluxPipeline(QEFFDiffusionPipeline):
    """The class under a name that users of the Qualcomm stack know; it takes every pipeline, as the other does."""


class QEFFWanPipeline(QEFFDiffusionPipeline):
    """The class under a name that users of the Qualcomm stack know; it takes every pipeline, as the other does."""


def _component_options(
    given: Mapping[str, Mapping[str, Any]] | str | os.PathLike[str] | None,
) -> dict[str, dict[str, Any]]:
    """See `compile_config` of `QEFFDiffusionPipeline.compile`."""
    if isinstance(given, (str, os.PathLike)):
        try:
            found = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OptionError(f"compile_config={os.fspath(given)} cannot be read as JSON: {error}") from error
    else:
        found = given or {}
    if not isinstance(found, Mapping) or not all(isinstance(each, Mapping) for each in found.values()):
        raise OptionError(
            'compile_config is options by component: {"denoiser": {"num_cores": 16}, "vae": {"num_cores": 4}}'
        )
    sizes = {field.name for field in dataclasses.fields(PipelineShapes)}
    for component, options in found.items():
        if of_all := sorted(sizes & set(options)):
            raise OptionError(
                f"compile_config: {', '.join(of_all)} of {component} is for all components; give it to compile() itself"
            )
    return {component: dict(options) for component, options in found.items()}


def _short(place: str) -> str:
    return os.path.basename(os.path.normpath(place))  # noqa: PTH119 - it may be the id of a hub


def _name_of(call: Call) -> str:
    name = call.component if call.method in ("forward", "decode") else f"{call.component}-{call.method}"
    return f"{name}-{call.part}" if call.part else name
