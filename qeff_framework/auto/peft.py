"""Causal language models with LoRA adapters that requests choose among."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

from qeff_framework.artifacts import content_digest
from qeff_framework.auto.causal_lm import QEFFAutoModelForCausalLM
from qeff_framework.contracts import BASE_ADAPTER
from qeff_framework.errors import OptionError
from qeff_framework.sources import CheckpointSource
from qeff_framework.sources.adapters import base_of_folder, is_adapter_folder, open_adapter
from qeff_framework.sources.lora import LoraAdapter


class QEFFAutoPeftModelForCausalLM(QEFFAutoModelForCausalLM):
    """A causal language model and LoRA adapters beside its weights, all in one program.

    ``compile`` puts every adapter that is loaded into the program; `set_adapter` and the argument `prompt_to_adapter_mapping` of
    ``generate`` then choose among them without compiling again. An adapter that is loaded later needs another program. For one
    adapter that never changes, `QEFFAutoModelForCausalLM` merges it into the weights.

    Example::

        model = QEFFAutoPeftModelForCausalLM.from_pretrained("lora-a", adapter_name="a")
        model.load_adapter("lora-b", "b")
        model.compile(backend="ort_sim", batch_size=3)
        model.generate(prompts=["x", "y", "z"], prompt_to_adapter_mapping=["a", "b", "base"])
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._adapters: dict[str, LoraAdapter] = {}
        self._active = BASE_ADAPTER
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

        The adapter is loaded as `adapter_name`, and active. The other arguments are those of
        `QEFFBaseModel.from_pretrained`, for the base model.

        Raises:
            CheckpointError: see `QEFFBaseModel.from_pretrained`; or the base of the adapter is not there.
        """
        path = os.fspath(pretrained_model_name_or_path)
        if is_adapter_folder(path):
            path, adapter = base_of_folder(path, given=adapter), path
        source = CheckpointSource(path, hf_kwargs)
        source.refers_to_files = False
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
        """Loads the adapter in a folder, or on the hub, under a name. The next program holds it.

        Raises:
            OptionError: the name is taken.
            CheckpointError: it is no LoRA adapter.
        """
        if adapter_name == BASE_ADAPTER or adapter_name in self._adapters:
            what = "is the model alone" if adapter_name == BASE_ADAPTER else "is loaded already; unload it first"
            raise OptionError(f"load_adapter: '{adapter_name}' {what}; choose another name")
        self._adapters[adapter_name] = open_adapter(model_id, self._hf_kwargs)

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

    def generate(
        self, *args: Any, prompt_to_adapter_mapping: str | Sequence[str | None] | None = None, **kwargs: Any
    ) -> Any:
        """See `qeff_framework.runtime.CompiledCausalLM.generate`; prompts without an adapter of their own take the active one."""
        mapping = self._active if prompt_to_adapter_mapping is None else prompt_to_adapter_mapping
        return super().generate(*args, prompt_to_adapter_mapping=mapping, **kwargs)

    def _check_loaded(self, asked: str, name: str) -> None:
        if name != BASE_ADAPTER and name not in self._adapters:
            known = ", ".join([*self._adapters, BASE_ADAPTER])
            raise OptionError(f"{asked}: there is no adapter '{name}'; there are {known}")

    def _export_key(self) -> Mapping[str, object]:
        named = {
            name: {path.name: content_digest(path) for path in adapter.files()}
            for name, adapter in self._adapters.items()
        }
        # Their order gives them their ids.
        return {**super()._export_key(), "adapters": list(named.items())}

    def _export_arguments(self) -> Mapping[str, Any]:
        factors = {name: adapter.factors(self.module) for name, adapter in self._adapters.items()}
        return {**super()._export_arguments(), "adapters": factors}
