"""Text generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from qeff_framework.plugin_api import OptionError
from QEfficient._compat.execution import generate_texts
from QEfficient._compat.models.base import QEFFBaseModel
from QEfficient._compat.notices import logger, say_once
from QEfficient._compat.results import CloudAI100ExecInfo
from QEfficient._compat.translation import of_qaic_config

if TYPE_CHECKING:
    import torch


class GeneratingModel(QEFFBaseModel):
    """What models that generate text share: continuous batching, ``qaic_config``."""

    own_keywords: ClassVar[tuple[str, ...]] = ("continuous_batching", "full_batch_size", "qaic_config", "is_tlm")

    def setup(self, core: Any) -> None:
        super().setup(core)
        self.continuous_batching = False
        #: Whether it checks drafts: a target of speculative decoding.
        self.is_tlm = False
        self._configured: dict[str, Any] = {}

    def take_over(self, own: Mapping[str, Any]) -> None:
        if own.get("full_batch_size"):
            say_once("from_pretrained: full_batch_size is an old name, use continuous_batching=True")
        self.continuous_batching = bool(own.get("continuous_batching") or own.get("full_batch_size"))
        config = own.get("qaic_config")
        self.is_tlm = bool(own.get("is_tlm") or (config and config.get("speculative_model_type")))
        self._configured = of_qaic_config(config, self.core_type().shapes)
        self.ccl_enabled = bool(self._configured.get("ccl_enabled"))

    def __init__(self, model: torch.nn.Module | Any, **kwargs: Any) -> None:
        own = self._take_own(kwargs)
        super().__init__(model, **kwargs)
        self.take_over(own)

    def _sized(self, given: dict[str, Any]) -> dict[str, Any]:
        sizes = dict(self._configured)
        for name in ("num_kv_blocks", "replicate_kv_heads"):
            if name in sizes:
                # Options of the backend. What compile is given wins over the config.
                given.setdefault(name, sizes.pop(name))
        for name in ("full_batch_size", "kv_cache_batch_size"):
            value = given.pop(name, None)
            if value is None:
                continue
            if self.continuous_batching:
                sizes[name] = value
            else:
                logger.warning(
                    "compile: %s=%s is left out: the model was opened without continuous_batching=True", name, value
                )
        if self.continuous_batching and "full_batch_size" not in sizes:
            raise OptionError(
                "compile: continuous_batching=True needs full_batch_size=..., the prompts that decode together"
            )
        drafts = given.pop("num_speculative_tokens", None)
        drafts = [drafts] if isinstance(drafts, int) else list(drafts or ())
        if self.is_tlm and not drafts:
            raise OptionError(
                "compile: speculative_model_type='target' needs num_speculative_tokens=..., one or several"
            )
        if any(drafts):
            sizes["num_speculative_tokens"] = drafts[0] if len(drafts) == 1 else tuple(drafts)
        for name in list(sizes):
            if name in given:
                # What compile is given wins over the config.
                given_value = given.pop(name)
                sizes[name] = given_value or sizes[name]
        super()._sized(given)
        return sizes


class QEFFAutoModelForCausalLM(GeneratingModel):
    """Text generation; ``generate`` returns `CloudAI100ExecInfo`.

    ``compile`` takes ``prefill_seq_len=32``, ``ctx_len=128``, ``batch_size=1``, and ``full_batch_size`` where the model was
    opened with ``continuous_batching=True``.
    """

    core_class = "QEFFAutoModelForCausalLM"

    def generate(
        self,
        tokenizer: Any = None,
        prompts: str | Sequence[str] | None = None,
        device_id: Sequence[int] | int | None = None,
        runtime_ai100: bool = True,
        *,
        device_ids: Sequence[int] | int | None = None,
        **kwargs: Any,
    ) -> CloudAI100ExecInfo:
        """Generates text for any number of prompts; prints it while it is generated, unless ``stream=False``."""
        program = self._load(device_id if device_id is not None else device_ids)
        return generate_texts(program, tokenizer, prompts=prompts, runtime_ai100=runtime_ai100, **kwargs)
