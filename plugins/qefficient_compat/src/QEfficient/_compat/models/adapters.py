"""Text generation with LoRA adapters."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from qeff_framework.plugin_api import OptionError
from QEfficient._compat.keywords import GENERATE
from QEfficient._compat.models.causal_lm import GeneratingModel, QEFFAutoModelForCausalLM
from QEfficient._compat.notices import NotSupportedError, logger, say_once
from QEfficient._compat.results import padded
from QEfficient._compat.translation import translate

#: Adapters that a program has room for at least.
_ROOM = 4


class _WithAdapters(QEFFAutoModelForCausalLM):
    """A causal language model with LoRA adapters; what both forms of QEfficient share."""

    core_class = "QEFFAutoPeftModelForCausalLM"

    def setup(self, core: Any) -> None:
        super().setup(core)
        #: Arguments of the last `compile`.
        self._compiled_with: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        #: An adapter was loaded for which the program has no room.
        self._is_outgrown = False

    def compile(self, *args: Any, max_loras: int | None = None, **kwargs: Any) -> Path:
        """See `QEFFBaseModel.compile`; adapters that are loaded later are written into the program.

        Args:
            *args: as there.
            max_loras: adapters that the program has room for; by default those that are loaded, and four at least. The room is
                for the layers and ranks of those that are loaded.
            **kwargs: as there.
        """
        self._compiled_with = args, {**kwargs, "max_loras": max_loras}
        if self._core.adapters:
            kwargs["max_loras"] = max(max_loras or _ROOM, len(self._core.adapters))
        path = super().compile(*args, **kwargs)
        self._is_outgrown = False
        return path

    def _load(self, device_ids: Sequence[int] | int | None) -> Any:
        if self._compiled_with is not None and self._is_outgrown:
            say_once(
                "an adapter has other layers or a greater rank than those that were loaded at compile(), or there are too many: "
                "the program is compiled again"
            )
            args, kwargs = self._compiled_with
            self.compile(*args, **{name: value for name, value in kwargs.items() if name != "compile_dir"})
        super()._load(device_ids)
        return self._core.runner

    def _load_core_adapter(self, model_id: str | os.PathLike[str], adapter_name: str) -> None:
        is_first = not self._core.adapters
        try:
            self._core.load_adapter(model_id, adapter_name)
        except OptionError:
            if self._compiled_with is None or adapter_name in ("base", *self._core.adapters):
                raise
            # The next program is made for the adapters that are loaded then.
            self._core.export()
            self._core.load_adapter(model_id, adapter_name)
            self._is_outgrown = True
        self._is_outgrown |= is_first and self._compiled_with is not None


class QEffAutoPeftModelForCausalLM(_WithAdapters):
    """A model and LoRA adapters, one of which is active; ``generate`` takes tokens and returns token ids ``[N, max_new_tokens]``.

    Neither ``set_adapter`` nor ``load_adapter`` needs another program, unless an adapter does not fit into the room that
    `compile` has made.
    """

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the name of the first adapter stands second
        cls,
        pretrained_name_or_path: str | os.PathLike[str],
        adapter_name: str = "default",
        *,
        finite_adapters: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Takes the folder or hub id of an adapter, whose base model is loaded.

        With ``finite_adapters=True`` the result is a `QEffAutoLoraModelForCausalLM`.
        """
        wanted: type[_WithAdapters] = QEffAutoLoraModelForCausalLM if finite_adapters else cls
        return wanted.open_checkpoint(pretrained_name_or_path, {**kwargs, "adapter_name": adapter_name})

    own_keywords: ClassVar[tuple[str, ...]] = (*GeneratingModel.own_keywords, "adapter_name")

    @classmethod
    def core_arguments(cls, own: Mapping[str, Any]) -> dict[str, Any]:
        return {"adapter_name": own["adapter_name"]} if "adapter_name" in own else {}

    @property
    def active_adapter(self) -> str:
        """The adapter of ``generate``."""
        return str(self._core.active_adapter)

    def load_adapter(self, model_id: str | os.PathLike[str], adapter_name: str) -> None:
        """Loads an adapter under a name."""
        self._load_core_adapter(model_id, adapter_name)

    def set_adapter(self, adapter_name: str) -> None:
        """Makes an adapter the active one."""
        self._core.set_adapter(adapter_name)

    def unload_adapter(self, adapter_name: str) -> None:
        """Forgets an adapter that is not active."""
        self._core.unload_adapter(adapter_name)

    def disable_adapter(self) -> None:
        """Makes the base model alone the active one."""
        self._core.set_adapter("base")

    def generate(  # type: ignore[override]  # another form than that of the base class, as there
        self,
        inputs: Any = None,
        device_ids: Sequence[int] | int | None = None,
        generation_config: Any = None,
        stopping_criteria: Any = None,
        streamer: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Generates with the active adapter, as Transformers' ``generate``: returns new token ids, filled with zeros."""
        tensors: dict[str, Any] = {
            name: kwargs.pop(name) for name in ("input_ids", "attention_mask", "token_type_ids") if name in kwargs
        }
        settings = translate("generate", GENERATE, kwargs)
        program = self._load(device_ids)
        given = {"inputs": inputs} if inputs is not None else tensors
        output = program.generate(
            **given,
            generation_config=generation_config,
            stopping_criteria=stopping_criteria,
            streamer=streamer,
            prompt_to_adapter_mapping=self.active_adapter,
            **settings,
        )
        stated = settings.get("max_new_tokens") or settings.get("generation_len")
        width = stated or getattr(generation_config, "max_new_tokens", None)
        return padded(output.generated_ids, 0, width)


class QEffAutoLoraModelForCausalLM(_WithAdapters):
    """A model and LoRA adapters among which each prompt chooses: ``generate(..., prompt_to_adapter_mapping=["a", "base"])``."""

    own_keywords: ClassVar[tuple[str, ...]] = (*GeneratingModel.own_keywords, "adapter_name", "finite_adapters")

    @classmethod
    def core_arguments(cls, own: Mapping[str, Any]) -> dict[str, Any]:
        return {"adapter_name": own["adapter_name"]} if "adapter_name" in own else {}

    @property
    def active_adapter_to_id(self) -> dict[str, int]:
        """The number of each adapter that is loaded; 0 is the base model."""
        return {name: index + 1 for index, name in enumerate(self._core.adapters)}

    def get_adapter_id(self, adapter_name: str) -> int:
        """The number of an adapter that is loaded."""
        return self.active_adapter_to_id[adapter_name]

    def download_adapter(self, adapter_model_id: str, adapter_name: str, **weights: Any) -> None:
        """Does nothing but check: `load_adapter` downloads."""
        self._refuse_tensors(weights)
        say_once(
            f"download_adapter: '{adapter_name}' is downloaded by load_adapter({adapter_model_id!r}, '{adapter_name}')"
        )

    def load_adapter(self, adapter_model_id: str | os.PathLike[str], adapter_name: str, **weights: Any) -> int:
        """Loads an adapter under a name, and returns its number."""
        self._refuse_tensors(weights)
        if adapter_name in self.active_adapter_to_id:
            logger.warning("load_adapter: '%s' is loaded already", adapter_name)
        else:
            self._load_core_adapter(adapter_model_id, adapter_name)
        return self.active_adapter_to_id[adapter_name]

    def unload_adapter(self, adapter_name: str) -> bool:
        """Forgets an adapter; says whether there was one."""
        if adapter_name not in self.active_adapter_to_id:
            return False
        if self._core.active_adapter == adapter_name:
            self._core.set_adapter("base")
        self._core.unload_adapter(adapter_name)
        return True

    def set_adapter(self, adapter_name: str) -> None:
        """Refused: each prompt names its adapter."""
        raise NotSupportedError(
            f"set_adapter('{adapter_name}') is not for finite adapters; give generate(..., prompt_to_adapter_mapping=[...])"
        )

    @staticmethod
    def _refuse_tensors(weights: Mapping[str, Any]) -> None:
        given = [name for name, value in weights.items() if value is not None]
        if given:
            raise NotSupportedError(
                f"load_adapter: {', '.join(given)} is not supported; save the adapter with peft and give its folder"
            )
