"""What Transformers computes in float32."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Numbers = NDArray[np.float32]


#: What `forward` of a model calls its cache; the first name is that of Transformers 5.
_CACHE_NAMES = ("cache", "past_key_values")


class Reference:
    """A causal language model of Transformers in float32."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module: Any = module

    def continuation(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The greedy tokens behind a prompt, without an end, and without what a generation config says."""
        from qeff_framework.coverage.reference import reference_greedy

        return reference_greedy(self._module, [prompt], new_tokens)[0]

    def read(self, tokens: Sequence[int]) -> tuple[Numbers, dict[int, tuple[Numbers, Numbers]]]:
        """The logits behind each of `tokens`, ``[T, V]``, and the keys and values ``[H, T, D]`` that each layer has stored.

        Layers that store something else, or not for each token, are left out.
        """
        import torch

        parameters = inspect.signature(self._module.forward).parameters
        name = next((name for name in _CACHE_NAMES if name in parameters), None)
        ids = torch.tensor([list(tokens)])
        cache: Any = None
        with torch.inference_mode():
            if name is not None and not self._is_hybrid:
                from transformers import DynamicCache

                # Without a config no layer forgets what is behind its window; the masks hide it all the same.
                cache = DynamicCache()
                output = self._module(ids, use_cache=True, **{name: cache})
            else:
                output = self._module(ids)
        logits: Numbers = output.logits[0].float().numpy()
        return logits, _stored(cache, len(tokens))

    @property
    def _is_hybrid(self) -> bool:
        """Layers of other kinds than attention store something else, which a plain cache cannot hold."""
        kinds = getattr(self._module.config, "layer_types", None) or ()
        return any("attention" not in kind or "linear" in kind for kind in kinds)


def _stored(cache: Any, length: int) -> dict[int, tuple[Numbers, Numbers]]:
    found = {}
    for number, layer in enumerate(getattr(cache, "layers", ())):
        tensors = [getattr(layer, name, None) for name in ("keys", "values")]
        if all(tensor is not None and tensor.ndim == 4 and tensor.shape[2] == length for tensor in tensors):
            keys, values = (tensor[0].float().numpy() for tensor in tensors if tensor is not None)
            found[number] = (keys, values)
    return found
