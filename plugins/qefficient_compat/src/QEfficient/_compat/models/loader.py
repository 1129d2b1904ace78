"""Opening a checkpoint with the class that fits it."""

from __future__ import annotations

import os
from typing import Any

import qeff_framework
from qeff_framework.plugin_api import OptionError
from QEfficient._compat.models.base import QEFFBaseModel
from QEfficient._compat.models.causal_lm import QEFFAutoModelForCausalLM
from QEfficient._compat.models.image_text_to_text import QEFFAutoModelForImageTextToText
from QEfficient._compat.notices import NotSupportedError


class QEFFCommonLoader:
    """Opens a checkpoint with the class that fits it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        raise OptionError("QEFFCommonLoader has no instances; use QEFFCommonLoader.from_pretrained(...)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        local_model_dir: str | None = None,
        hf_token: str | None = None,
        full_batch_size: int | None = None,
        continuous_batching: bool = False,
        **kwargs: Any,
    ) -> QEFFBaseModel:
        """Opens a causal language model or a vision-language model.

        Raises:
            NotSupportedError: the checkpoint is for something else; open it with its own class.
        """
        place = local_model_dir or pretrained_model_name_or_path
        probe = {
            name: kwargs[name] for name in ("cache_dir", "trust_remote_code", "revision", "gguf_file") if name in kwargs
        }
        token = {"token": hf_token} if hf_token is not None else {}
        core = qeff_framework.QEFFAutoModel.from_pretrained(place, **probe, **token)
        found = next((each for each in _LOADED if type(core) is each.core_type()), None)
        if found is None:
            raise NotSupportedError(
                f"QEFFCommonLoader: {place} is for {type(core).__name__}, not for text generation; use QEFFAutoModel or the "
                "class for its task"
            )
        return found.from_pretrained(
            place, hf_token=hf_token, continuous_batching=continuous_batching or bool(full_batch_size), **kwargs
        )


_LOADED: tuple[type[QEFFBaseModel], ...] = (QEFFAutoModelForCausalLM, QEFFAutoModelForImageTextToText)
