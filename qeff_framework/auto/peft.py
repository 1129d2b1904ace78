"""Causal language models with LoRA adapters that requests choose among."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from qeff_framework.artifacts import content_digest
from qeff_framework.auto.causal_lm import QEFFAutoModelForCausalLM
from qeff_framework.contracts import BASE_ADAPTER, AdapterRoom
from qeff_framework.errors import CheckpointError, OptionError
from qeff_framework.shapes import PeftShapes
from qeff_framework.sources import CheckpointSource
from qeff_framework.sources.adapters import base_of_folder, is_adapter_folder, open_adapter
from qeff_framework.sources.lora import LoraAdapter

if TYPE_CHECKING:
    from qeff_framework.contracts import ExportedModel, LowRankDelta
    from qeff_framework.plans import Program
    from qeff_framework.relay import Relay
    from qeff_framework.runtime import CompiledRunner

logger = logging.getLogger(__name__)


class QEFFAutoPeftModelForCausalLM(QEFFAutoModelForCausalLM):
    """A causal language model and LoRA adapters beside its weights, all in one program.

    ``compile`` puts every adapter that is loaded into the program; `set_adapter` and the argument `prompt_to_adapter_mapping` of
    ``generate`` then choose among them without compiling again. An adapter that is loaded later needs another program, unless
    ``compile(max_loras=...)`` has made room for it. For one adapter that never changes, `QEFFAutoModelForCausalLM` merges it into
    the weights.

    Example::

        model = QEFFAutoPeftModelForCausalLM.from_pretrained("lora-a", adapter_name="a")
        model.load_adapter("lora-b", "b")
        model.compile(backend="ort_sim", batch_size=3)
        model.generate(prompts=["x", "y", "z"], prompt_to_adapter_mapping=["a", "b", "base"])
    """

    shapes = PeftShapes

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._adapters: dict[str, LoraAdapter] = {}
        self._active = BASE_ADAPTER
        #: Those that are a part of the last program.
        self._compiled_in: Mapping[str, LoraAdapter] = {}
        #: Places of the program for adapters that are written into it; `None` where they are a part of it.
        self._room: AdapterRoom | None = None
        #: What every adapter of such a program adds, and the runner and the adapters that were written last.
        self._factors: dict[str, Mapping[str, LowRankDelta]] = {}
        self._written: tuple[Any, ...] = ()
        #: The arguments of `from_pretrained`, of which those about fetching hold for adapters as well.
        self._hf_kwargs: Mapping[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        adapter_name: str = "default",
        *,
        adapter: str | os.PathLike[str] | None = None,
        **hf_kwargs: Any,
    ) -> Self:
        """Takes the folder of an adapter, whose config names the base model; or a base model, and its first adapter as `adapter`.

        The adapter is loaded as `adapter_name`, and active. A tokenizer that was saved with it is taken in place of the model's.
        The other arguments are those of `QEFFBaseModel.from_pretrained`, for the base model.

        Raises:
            CheckpointError: see `QEFFBaseModel.from_pretrained`; or the base of the adapter is not there.
        """
        path = os.fspath(pretrained_model_name_or_path)
        named_by = path if is_adapter_folder(path) else None
        if named_by is not None:
            (path, revision), adapter = base_of_folder(path, given=adapter), path
            if revision is not None and not os.path.isdir(path):  # noqa: PTH112 - it may be the id of a hub
                hf_kwargs.setdefault("revision", revision)
        source = CheckpointSource(path, hf_kwargs)
        source.refers_to_files = False
        first = None if adapter is None else open_adapter(adapter, hf_kwargs)
        if first is not None:
            source.take_tokenizer_of(first, named_by=named_by)
        cls._check_architecture(source)
        model = cls(source)
        model._hf_kwargs = hf_kwargs
        if adapter is not None:
            model.load_adapter(adapter, adapter_name)
            model.set_adapter(adapter_name)
        return model

    @property
    def active_adapter(self) -> str:
        """The adapter of prompts for which ``generate`` is given none; "base" is the model alone."""
        return self._active

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""
        return tuple(self._adapters)

    def load_adapter(self, model_id: str | os.PathLike[str], adapter_name: str) -> None:
        """Loads the adapter in a folder, or on the hub, under a name. The next program holds it, or this one where it has room.

        Raises:
            OptionError: the name is taken, or the program has room for adapters but not for this one.
            CheckpointError: it is no LoRA adapter, or one of a classifier.
        """
        if not isinstance(adapter_name, str) or not adapter_name.strip():
            raise OptionError(f"load_adapter: {adapter_name!r} is no name for an adapter; give a text")
        if adapter_name == BASE_ADAPTER or adapter_name in self._adapters:
            what = "is the model alone" if adapter_name == BASE_ADAPTER else "is loaded already; unload it first"
            raise OptionError(f"load_adapter: '{adapter_name}' {what}; choose another name")
        adapter = open_adapter(model_id, self._hf_kwargs)
        if adapter.architecture_mapping is not None:
            raise CheckpointError(
                f"the adapter {adapter.name} is for a classifier (task_type {adapter.config['task_type']}), and rows of a "
                "language model cannot choose it; give it alone: QEFFAutoModel.from_pretrained(ADAPTER, num_labels=...)"
            )
        if self._room is not None:
            factors = adapter.factors(self._loaded_module())
            self._check_room(adapter_name, factors, self._room, count=len(self._adapters) + 1)
            self._factors[adapter_name] = factors
        if isinstance(self._source, CheckpointSource) and not self._source.reads_texts_as(adapter):
            logger.warning(
                "the tokenizer that was saved with the adapter %s has other tokens, or another chat template, than that of "
                "the program, which reads all texts: give its prompts as token ids, or give it to from_pretrained as the first "
                "adapter",
                adapter_name,
            )
        self._adapters[adapter_name] = adapter

    def set_adapter(self, adapter_name: str) -> None:
        """Makes an adapter that is loaded, or "base", the active one.

        Raises:
            OptionError: there is none of this name.
        """
        self._check_loaded("set_adapter", adapter_name)
        self._active = adapter_name

    def unload_adapter(self, adapter_name: str) -> None:
        """Forgets an adapter. A program that holds it keeps it; the next one does not.

        Raises:
            OptionError: there is none of this name, or it is active.
        """
        self._check_loaded("unload_adapter", adapter_name)
        if adapter_name in (BASE_ADAPTER, self._active):
            what = (
                "is the model alone" if adapter_name == BASE_ADAPTER else "is active; set_adapter to another one first"
            )
            raise OptionError(f"unload_adapter: '{adapter_name}' {what}")
        del self._adapters[adapter_name]
        self._factors.pop(adapter_name, None)

    def generate(
        self, *args: Any, prompt_to_adapter_mapping: str | Sequence[str | None] | None = None, **kwargs: Any
    ) -> Any:
        """See `qeff_framework.runtime.CompiledCausalLM.generate`; prompts without an adapter of their own take the active one."""
        mapping = self._active if prompt_to_adapter_mapping is None else prompt_to_adapter_mapping
        self._check_compiled_in([mapping] if isinstance(mapping, str) else mapping)
        return super().generate(*args, prompt_to_adapter_mapping=mapping, **kwargs)

    @property
    def runner(self) -> CompiledRunner:
        """The loaded program. One that has room for adapters holds those that are loaded."""
        runner = super().runner
        if self._room is not None:
            self._write_adapters(self._room, runner)
        return runner

    def _check_compiled_in(self, names: Any) -> None:
        """Raises `OptionError` for a name under which another adapter was loaded since the program was compiled."""
        if self._room is not None or not isinstance(names, list | tuple):
            return
        for name in filter(lambda each: isinstance(each, str), names):
            held, loaded = self._compiled_in.get(name), self._adapters.get(name)
            if held is not None and loaded is not None and held is not loaded:
                raise OptionError(
                    f"'{name}' was another adapter when the program was compiled; call compile() again, or load this one under a "
                    "name of its own"
                )

    def _check_loaded(self, asked: str, name: str) -> None:
        if name != BASE_ADAPTER and name not in self._adapters:
            known = ", ".join([*self._adapters, BASE_ADAPTER])
            raise OptionError(f"{asked}: there is no adapter '{name}'; there are {known}")

    def export(
        self,
        export_dir: str | os.PathLike[str] | None = None,
        *,
        extensions: Sequence[str] | None = None,
        use_onnx_subfunctions: bool = False,
    ) -> ExportedModel:
        """See `QEFFBaseModel.export`; the adapters that are loaded are a part of the graph."""
        self._room = None
        return super().export(export_dir, extensions=extensions, use_onnx_subfunctions=use_onnx_subfunctions)

    def _programs(self, relay: Relay, options: object, shapes: Any) -> list[Program]:
        self._room, self._factors, self._written = None, {}, ()
        self._compiled_in = dict(self._adapters)
        if shapes.max_loras is not None:
            if not self._adapters:
                raise OptionError(
                    f"max_loras={shapes.max_loras}: load an adapter first, which says for which layers there must be room"
                )
            factors: dict[str, Mapping[str, LowRankDelta]] = {
                name: adapter.factors(self._loaded_module()) for name, adapter in self._adapters.items()
            }
            deltas = [delta for of_adapter in factors.values() for delta in of_adapter.values()]
            room = AdapterRoom(
                slots=shapes.max_loras,
                rank=shapes.max_lora_rank or max(delta.down.shape[0] for delta in deltas),
                weights=tuple(sorted({name for of_adapter in factors.values() for name in of_adapter})),
            )
            for name, of_adapter in factors.items():
                self._check_room(name, of_adapter, room, count=len(factors))
            self._room, self._factors = room, factors
        return super()._programs(relay, options, shapes)

    def _check_room(self, name: str, factors: Mapping[str, LowRankDelta], room: AdapterRoom, *, count: int) -> None:
        rank = max((delta.down.shape[0] for delta in factors.values()), default=0)
        foreign = sorted(set(factors) - set(room.weights))
        problem = ""
        if count > room.slots:
            problem = f"is adapter number {count}; unload another one, or compile with max_loras={count}"
        elif rank > room.rank:
            problem = f"has the rank {rank}; compile with max_lora_rank={rank}"
        elif foreign:
            problem = f"adds to {foreign[0]}; load an adapter for all layers before compile"
        if problem:
            raise OptionError(
                f"the program has room for {room.slots} adapters of rank {room.rank} for {len(room.weights)} weights, and "
                f"'{name}' {problem}"
            )

    def _write_adapters(self, room: AdapterRoom, runner: Any) -> None:
        """Brings the adapters that are loaded into the program, unless they are there."""
        from qeff_framework.export.adapter_products import adapter_stacks

        wanted = (runner, *self._adapters.items())
        if self._written == wanted:
            return
        shapes = {spec.name: tuple(map(int, spec.shape)) for spec in runner.compiled.inputs if _is_stack(spec.name)}
        if not shapes:
            return
        ids = {name: number for number, name in enumerate(self._adapters, start=1)}
        runner.write_adapters(ids, adapter_stacks(self._factors, room, shapes))
        self._written = wanted

    def _export_key(self) -> Mapping[str, object]:
        if self._room is not None:
            return {**super()._export_key(), "adapter_room": asdict(self._room)}
        named = {
            name: {path.name: content_digest(path) for path in adapter.files()}
            for name, adapter in self._adapters.items()
        }
        # Their order gives them their ids.
        return {**super()._export_key(), "adapters": list(named.items())}

    def _export_arguments(self) -> Mapping[str, Any]:
        if self._room is not None:
            return {**super()._export_arguments(), "adapter_room": self._room}
        factors = {name: adapter.factors(self._loaded_module()) for name, adapter in self._adapters.items()}
        return {**super()._export_arguments(), "adapters": factors}


def _is_stack(name: str) -> bool:
    return name.startswith(("lora_down.", "lora_up."))
