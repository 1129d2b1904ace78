"""A torch module that is in memory already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import InputError, UnsupportedModelError
from qeff_framework.sources.configs import (
    check_float32,
    content_of,
    generation_config,
    plain_config,
    save_generation_config,
    write_json,
)
from qeff_framework.sources.described import described_config
from qeff_framework.sources.fingerprint import (
    CONFIG_BOOKKEEPING,
    structure_fingerprint,
    tensors_fingerprint,
)
from qeff_framework.sources.in_memory import InMemorySource
from qeff_framework.sources.libraries import is_own_code
from qeff_framework.sources.uncached import identity_or_nonce

if TYPE_CHECKING:
    import torch


class ModuleSource(InMemorySource):
    """A torch module that the caller has built or loaded."""

    def __init__(self, module: torch.nn.Module) -> None:
        if not hasattr(module, "config") or not hasattr(module.config, "to_dict"):
            raise UnsupportedModelError(
                f"{type(module).__name__} has no Transformers config; pass a Transformers model, or use from_pretrained()"
            )
        self._module = module
        config: Any = module.config
        self.name = str(getattr(config, "name_or_path", "") or config.model_type)

    def identity(self) -> Mapping[str, Any]:
        """Class, configs, code and state of the module, and digests over every parameter and buffer.

        Where the module refers to something that cannot be told from another (an open file, an object of compiled code), the
        identity is a new one at every call: nothing that was built before is found for it. A warning says so.
        """
        return {
            "class": type(self._module).__qualname__,
            "config": {name: value for name, value in self.config().items() if name not in CONFIG_BOOKKEEPING},
            # An artifact carries it, as it carries the file of a checkpoint.
            "generation_config": content_of(generation_config(self._module) or {}),
            "code": identity_or_nonce(lambda: structure_fingerprint(self._module, self.name), self.name),
            "weights": identity_or_nonce(lambda: tensors_fingerprint(self._module), self.name),
        }

    def config(self) -> Mapping[str, Any]:
        """The module's own config, made serialisable."""
        return plain_config(self._module.config)

    def load(self, auto_class: str) -> torch.nn.Module:
        """The module itself, as its owner has left it; it must be float32 already."""
        del auto_class  # the module is loaded
        _refuse_own_attention(self._module)
        check_float32(self._module)
        return self._module

    def save_companions(self, directory: Path) -> None:
        """A module carries config and generation config, and no tokenizer."""
        write_json(directory / "config.json", described_config(self._module))
        save_generation_config(self._module, directory)

    def require_tokenizer(self) -> None:
        """Raises `InputError`: a module carries no tokenizer."""
        raise InputError(f"{self.name} is a module in memory, which carries no tokenizer; pass one to generate()")

    def tokenizer(self) -> Any:
        """See `require_tokenizer`."""
        raise InputError(f"{self.name} carries no tokenizer of its own")

    def has_chat_template(self) -> bool:
        """A module carries no tokenizer."""
        return False


def _refuse_own_attention(module: Any) -> None:
    """Raises `UnsupportedModelError` for attention that the caller has registered with Transformers: the export replaces it."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = getattr(module.config, "_attn_implementation", None)
    function = ALL_ATTENTION_FUNCTIONS.get(name) if name in ALL_ATTENTION_FUNCTIONS else None
    if function is not None and is_own_code(function):
        raise UnsupportedModelError(
            f"{type(module).__name__} runs with the attention function '{name}', which is none of Transformers' own: an export "
            "would compute ordinary attention in its place; call set_attn_implementation('eager') if that is what it computes"
        )
