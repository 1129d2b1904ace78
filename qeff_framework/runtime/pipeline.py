"""Pictures from texts, with loaded programs. The loop is that of diffusers, which needs torch on the host."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import LORA_SCALES, ExecutionSession
from qeff_framework.diffusion.arguments import guidance_argument, picture_sizes, scales_of
from qeff_framework.errors import InputError, OptionError
from qeff_framework.progress import report
from qeff_framework.runtime.program_sessions import ProgramSessions
from qeff_framework.runtime.runner import CompiledRunner
from qeff_framework.session_use import use_of

if TYPE_CHECKING:
    import torch

    from qeff_framework.contracts import LowRankDelta
    from qeff_framework.diffusion.calls import Call
    from qeff_framework.diffusion.first_block import KeptBlocks

#: Methods of diffusers that change several components one after the other, or their weights, which are not there.
_CHANGES = (
    "load_textual_inversion", "unload_textual_inversion", "load_lora_weights", "fuse_lora", "load_ip_adapter",
    "fuse_qkv_projections",
)  # fmt: skip


class CompiledDiffusionPipeline(CompiledRunner):
    """A pipeline of diffusers whose components run programs. Call it as the pipeline is called."""

    def __init__(self, session: ExecutionSession) -> None:
        super().__init__(session)
        if not isinstance(session, ProgramSessions):
            raise InputError(f"{session.compiled.directory} holds no programs of a pipeline")
        self._programs = list(session.sessions.values())
        #: See `__call__`.
        self._threshold: float | None = None
        #: The scale of each adapter in the running call, by name.
        self._scales: Mapping[str, Any] = {}
        #: The numbers of adapters that were written into the programs, by name.
        self._written: Mapping[str, int] = {}
        #: Of the components as they were loaded, see `diffusion.components.structure`; and those that were looked at since the
        #: picture was begun: `None` where somebody calls the pipeline itself.
        self._structures: Mapping[str, Any] = {}
        self._components: Mapping[str, Any] = {}
        #: Of what else the programs were made with, such as tokenizers, see `diffusion.components.facts_of`.
        self._host_facts: Mapping[str, Mapping[str, Any]] = {}
        self._looked_at: set[str] | None = None
        #: See `cached_steps`.
        self._computed = self._reused = 0

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline, of the class of the checkpoint. Its components have no weights.

        Raises:
            InputError: diffusers is not installed.
        """
        directory = self.compiled.directory / "pipeline"
        if not directory.is_dir():
            raise InputError(f"{self.compiled.directory} carries no pipeline; compile it again")
        from qeff_framework.sources.diffusers_library import require_diffusers

        require_diffusers()
        from qeff_framework.diffusion.components import facts_of, structure
        from qeff_framework.diffusion.folder import components_with_weights, load_with_handler, schedulers_of

        loaded = load_with_handler(directory, self._run)
        self._components = components_with_weights(loaded)
        self._structures = {name: structure(each) for name, each in self._components.items()}
        free = {*self._components, *schedulers_of(loaded)}
        self._host_facts = {name: facts_of(each) for name, each in loaded.components.items() if name not in free}
        for name in _CHANGES:
            if hasattr(loaded, name):
                setattr(loaded, name, partial(_refuse_change, name))
        return loaded

    @property
    def scheduler(self) -> Any:
        """The scheduler of diffusers; another one is for the next picture."""
        return self.pipeline.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.pipeline.scheduler = scheduler

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As calling it."""
        return self(*args, **kwargs)

    @property
    def adapters(self) -> Mapping[str, int]:
        """The adapters that the programs hold, by name: their numbers, the first is 1."""
        held = (each.compiled.metadata.get("adapters", {}) for each in self._programs)
        return self._written or next((dict(found) for found in held if found), {})

    def write_adapters(
        self, names: Sequence[str], factors: Mapping[str, Sequence[Mapping[str, LowRankDelta]]], rank: int
    ) -> None:
        """Fills programs that have room for adapters of `rank`; `QEFFDiffusionPipeline` does this.

        `factors`: what each of them adds to each component.
        """
        from qeff_framework.export.scaled_adapters import room_states

        for each in self._programs:
            states = {state.input for state in each.compiled.states if state.kind == "adapter"}
            if states:
                specs = {spec.name: spec for spec in each.compiled.inputs if spec.name in states}
                shapes = {name: tuple(map(int, spec.shape)) for name, spec in specs.items()}
                arrays = room_states(factors[each.compiled.metadata["call"]["component"]], rank, shapes)
                session: Any = each  # that of a backend whose states can be written
                session.write_states({name: array.astype(specs[name].dtype) for name, array in arrays.items()})
        self._written = {name: number for number, name in enumerate(names, start=1)}

    def __call__(
        self,
        *args: Any,
        cache_threshold: float | None = None,
        adapter: str | Sequence[str] | None = None,
        adapter_weights: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Takes what the diffusers pipeline takes (``prompt``, ``generator``, ...) and returns its output.

        Args:
            *args: arguments of the pipeline.
            cache_threshold: of programs that were compiled with ``enable_first_block_cache``: the relative change of what the
                first block adds up to which a step uses what the other blocks added before. By default diffusers' own, 0.05; 0
                computes every step.
            adapter: the adapters that take part, of those that the programs hold: a name or several. By default none.
            adapter_weights: what they are multiplied with: a number for all or one for each, 1 by default. A number may be one
                for each component by its name (``{"unet": 0.5}``).
            **kwargs: arguments of the pipeline by name.

        Raises:
            OptionError: the programs hold no such adapter.
            InputError: a component is called with sizes that no program was compiled for, or `cache_threshold` is given for
                programs without a cache.
        """
        if cache_threshold is not None and not self._is_cut:
            raise InputError("cache_threshold needs programs that were compiled with enable_first_block_cache=True")
        if cache_threshold is not None and not (isinstance(cache_threshold, (int, float)) and cache_threshold >= 0):
            raise InputError(f"cache_threshold={cache_threshold!r} is out of range: it is a number, at least 0")
        if adapter is None and adapter_weights is not None:
            raise OptionError("adapter_weights is for the adapters that are named: give adapter as well")
        signature = inspect.signature(self.pipeline.__call__)
        scales = scales_of([] if adapter is None else adapter, adapter_weights, self.adapters, self._components)
        self._refuse_replaced()
        given = signature.bind_partial(*args, **kwargs).arguments
        defaults: dict[str, Any] = {**self.sizes, **self._size_of_pictures(given)}
        guidance = guidance_argument(dict(signature.parameters))
        if not self._dims["guidance"] and guidance is not None:
            defaults[guidance] = 1.0
            ignored = [name for name in given if name.startswith("negative_prompt") and given[name] is not None]
            if ignored and guidance not in given:
                raise InputError(
                    f"{ignored[0]} has no part in a picture without guidance, and the programs have guidance=False; "
                    f"leave it out, or give {guidance} above 1"
                )
        further = {
            name: value for name, value in defaults.items() if name in signature.parameters and name not in given
        }
        # The schedulers of diffusers, and what is kept of the first block, are those of one picture at a time.
        with use_of(self.session).turn:
            self._computed = self._reused = 0
            self._scales, self._threshold, self._looked_at = scales, cache_threshold, set()
            try:
                result = self.pipeline(*args, **kwargs, **further)
                if self._is_cut:
                    report(
                        f"calls of the denoiser: {self._computed} computed, {self._reused} from the cache of the first block"
                    )
                return result
            finally:
                # What a call has chosen is not for those who call the pipeline itself.
                self._scales, self._threshold, self._looked_at = {}, None, None
                self._forget_blocks()

    def _size_of_pictures(self, given: Mapping[str, Any]) -> dict[str, int]:
        """The default of a call that begins with pictures, which would be made smaller or larger for another one."""
        dims = [item.dims for each in self._programs for item in each.compiled.specializations]
        known = {(each["height"], each["width"]) for each in dims if "height" in each and "width" in each}
        found = sorted(picture_sizes(given))
        if not known or not found or "height" in given or "width" in given:
            return {}
        for height, width in found:
            if (height, width) not in known:
                programs = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(known))
                raise InputError(
                    f"a picture has {height} x {width} pixels (height x width), and the programs are for {programs}: resize it, "
                    "give the height and width that diffusers is to resize it to, or compile for its size"
                )
        return {"height": found[0][0], "width": found[0][1]} if len(found) == 1 else {}

    def _refuse_replaced(self) -> None:
        """A component that somebody puts in the place of one that runs programs would be computed by torch.

        A tokenizer with other tokens would ask for embeddings that the programs do not have.
        """
        from qeff_framework.diffusion.components import changed_facts

        replaced = [name for name in self._components if getattr(self.pipeline, name) is not self._components[name]]
        if replaced:
            raise InputError(
                f"the {replaced[0]} was replaced since the artifact was loaded, and its programs are those of another one; put "
                "it into the pipeline of diffusers and compile that"
            )
        changed = changed_facts(self._host_facts, self.pipeline)
        if changed is not None:
            raise InputError(
                f"the {changed[0]} was changed ({changed[1]}) since the artifact was loaded, and its programs do not know that; "
                "make the change to the pipeline of diffusers and compile that"
            )

    @property
    def cached_steps(self) -> tuple[int, int]:
        """Calls of the denoiser for the last picture that were computed, and those that used what was kept."""
        return self._computed, self._reused

    @property
    def _is_cut(self) -> bool:
        return any(each.compiled.metadata["call"].get("part") for each in self._programs)

    def _forget_blocks(self) -> None:
        from qeff_framework.diffusion.components import reset_kept_blocks

        calls = [each.compiled.metadata["call"] for each in self._programs]
        for name in {call["component"] for call in calls if call.get("part")}:
            reset_kept_blocks(getattr(self.pipeline, name))

    @property
    def batch_size(self) -> int:
        """Prompts that the programs compute together."""
        return self._dims["batch_size"]

    @property
    def sizes(self) -> dict[str, int]:
        """What was compiled: ``height``, ``width``, ...; of several sizes the first. They are the defaults of a call."""
        return {name: value for name, value in self._dims.items() if name not in ("batch_size", "guidance")}

    @property
    def _dims(self) -> Mapping[str, int]:
        return self._programs[0].compiled.specializations[0].dims

    def _run(
        self, name: str, method: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        from qeff_framework.diffusion.calls import call_of, rebuilt, tensor_specs, with_real_times
        from qeff_framework.diffusion.components import kept_blocks
        from qeff_framework.diffusion.halves import half_of, rows_of_halves

        self._refuse_changed(name, getattr(function, "__self__", None))
        exact, tensors = call_of(name, method, function, args, kwargs)
        # Another scheduler than that of the recorded run may count its time steps.
        forms = [(exact, tensors), with_real_times(exact, tensors)]
        call, tensors = next((form for form in forms if self._parts_of(form[0])), forms[0])
        parts = self._parts_of(call)
        if not parts:
            for form, its_tensors in forms:
                for rows in rows_of_halves(form):
                    half = half_of(form, rows)
                    session = None if half is None else self._parts_of(half).get("")
                    if half is not None and session is not None:
                        return self._in_halves(session, half, its_tensors, rows)
            raise InputError(self._not_compiled(name, method, [form for form, _ in forms]))
        if "" in parts:
            returned, result = self._returned(parts[""], call, tensors)
            return rebuilt(result, iter(returned))
        names = [path for path, _ in tensor_specs(call.arguments)]
        feeds = {path: _array(tensor) for path, tensor in zip(names, tensors, strict=True)}
        outputs, result = self._run_parts(parts, feeds, kept_blocks(getattr(function, "__self__", None)))
        return rebuilt(result, iter(_tensors(outputs, result)))

    def _in_halves(self, session: ExecutionSession, half: Call, tensors: Sequence[torch.Tensor], rows: int) -> Any:
        """The result of a call of twice as many rows as `half`, which has `rows`."""
        import torch

        from qeff_framework.diffusion.calls import rebuilt
        from qeff_framework.diffusion.halves import halves

        runs = [self._returned(session, half, each) for each in halves(tensors, rows)]
        pairs = zip(*(each for each, _ in runs), strict=True)
        return rebuilt(runs[0][1], (torch.cat(pair) for pair in pairs))

    def _refuse_changed(self, name: str, component: Any) -> None:
        """Programs compute what they were compiled for, whatever becomes of the component that stands for them."""
        from qeff_framework.diffusion.components import changed_parts, structure

        if self._looked_at is not None:
            if name in self._looked_at:
                return
            self._looked_at.add(name)
        changed = changed_parts(self._structures[name], structure(component))
        if changed:
            raise InputError(
                f"the {name} was changed ({changed}) since the artifact was loaded, and its programs do not know that; make the "
                "change to the pipeline of diffusers and compile that"
            )

    def _parts_of(self, call: Call) -> dict[str, ExecutionSession]:
        """The programs of a call by the part that they compute; of a whole call one."""
        wanted = call.as_json()
        found = {}
        for each in self._programs:
            told = each.compiled.metadata["call"]
            if all(told[key] == value for key, value in wanted.items()):
                found[told.get("part", "")] = each
        return found

    def _returned(
        self, session: ExecutionSession, call: Call, tensors: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], Mapping[str, Any]]:
        """The tensors that a program returns, and what they are part of."""
        from qeff_framework.diffusion.calls import tensor_specs

        names = [path for path, _ in tensor_specs(call.arguments)]
        feeds = {path: _array(tensor) for path, tensor in zip(names, tensors, strict=True)}
        outputs = session.run({**feeds, **self._scales_for(session)})
        result = session.compiled.metadata["result"]
        return _tensors(outputs, result), result

    def _run_parts(
        self, parts: Mapping[str, ExecutionSession], feeds: Mapping[str, Any], kept: KeptBlocks
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Runs the first block, and what its result asks for. The outputs and the description of the call's result."""
        import torch

        from qeff_framework.diffusion.first_block import DEFAULT_THRESHOLD, FIRST, REST, SKIP

        threshold = DEFAULT_THRESHOLD if self._threshold is None else self._threshold
        first = _unprefixed(parts[FIRST].run({**feeds, **self._scales_for(parts[FIRST])}))
        residual = torch.from_numpy(first.pop("residual"))
        if not kept.must_compute(residual, threshold):
            self._reused += 1
            skip = parts[SKIP]
            given = {**feeds, **first, **(kept.tail or {}), **self._scales_for(skip)}
            return skip.run(given), skip.compiled.metadata["result"]
        self._computed += 1
        kept.residual = residual.clone()
        outputs = _unprefixed(parts[REST].run({**feeds, **first, **self._scales_for(parts[REST])}))
        kept.tail = {name: np.array(value) for name, value in outputs.items() if name.partition(".")[0] == "tail"}
        renamed = {f"result{name.removeprefix('value')}": value for name, value in outputs.items()}
        return renamed, parts[REST].compiled.metadata["result"]["dict"]["value"]

    def _scales_for(self, session: ExecutionSession) -> dict[str, Any]:
        """The input that chooses adapters, for a program that has it."""
        spec = next((each for each in session.compiled.inputs if each.name == LORA_SCALES), None)
        if spec is None:
            return {}
        component = session.compiled.metadata["call"]["component"]
        scales = np.zeros([int(size) for size in spec.shape], dtype=spec.dtype)
        for name, scale in self._scales.items():
            scales[self.adapters[name] - 1] = scale.get(component, 1.0) if isinstance(scale, Mapping) else scale
        return {LORA_SCALES: scales}

    def _not_compiled(self, name: str, method: str, forms: Sequence[Call]) -> str:
        """`forms`: of a call that no program computes."""
        from qeff_framework.diffusion.calls import Call

        calls = [each.compiled.metadata["call"] for each in self._programs]
        same = [call for call in calls if (call["component"], call["method"]) == (name, method)]
        known = "; ".join(Call(**call).told for call in same) or "none of it"
        # Of the program that is nearest: several sizes differ from each other in more than this call from one of them.
        differ: list[str] = min((_different(call, form) for call in same for form in forms), key=len, default=[])
        told_apart = f" (different: {', '.join(differ)})" if differ else ""
        return (
            f"the pipeline calls {forms[0].told}, and the artifact has programs for {known}"
            f"{told_apart}; call it with the height, width, number of prompts and guidance that it was compiled with, or compile "
            "it for these; what else this call has is told with compile(call={...})"
        )


def _refuse_change(method: str, *args: Any, **kwargs: Any) -> None:
    """Takes the place of a method that would have changed a part of what it changes before it finds no weights."""
    del args, kwargs
    raise InputError(
        f"{method}() changes components, and those of an artifact are compiled: call it on the pipeline of diffusers and compile "
        "that, or for LoRA adapters call load_lora_weights of QEFFDiffusionPipeline before compile"
    )


def _different(told: Mapping[str, Any], form: Call) -> list[str]:
    """The arguments that a program's call does not have in common with another one."""
    ours, arguments = told["arguments"], form.as_json()["arguments"]
    return sorted(name for name in {*ours, *arguments} if ours.get(name) != arguments.get(name))


def _tensors(outputs: Mapping[str, Any], result: Mapping[str, Any]) -> list[torch.Tensor]:
    """Copies, in the order of the description: arrays of a session are valid until its next call."""
    import torch

    from qeff_framework.diffusion.calls import tensor_specs

    return [torch.from_numpy(np.array(outputs[path])) for path, _ in tensor_specs({"result": result})]


def _unprefixed(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs by the names of the inputs that they are for."""
    return {name.removeprefix("result."): value for name, value in outputs.items()}


def _array(tensor: torch.Tensor) -> Any:
    # NumPy's own function would give a number one axis.
    return tensor.detach().cpu().contiguous().numpy()
