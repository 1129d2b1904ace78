"""The table of formats, and the state dict of a quantised checkpoint."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from qeff_framework.seam.deferred import DeferredTensor
    from qeff_framework.sources.quantized.stored import StoredTensors
    from qeff_framework.sources.quantized.weights import LazyTensor, StoredWeight

#: By a config's ``quant_method``, the file with the function `weights` that reads it.
METHODS: Mapping[str, str] = {
    "awq": "awq",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "fbgemm_fp8": "float8",
    "fp8": "float8",
    "gptq": "gptq",
    "modelopt": "modelopt",
    "mxfp4": "mxfp4",
    "mxfp8": "float8",
    "torchao": "torchao",
}

#: Types of packed numbers, in the terms of safetensors.
_INTEGERS = ("I8", "U8", "I16", "I32")


class QuantizedCheckpoint:
    """The weights of a checkpoint in one of the formats of `METHODS`."""

    def __init__(self, settings: Mapping[str, Any], files: Iterable[Path], name: str) -> None:
        """`settings`: the ``quantization_config``. `files`: those that hold the weights. `name`: what messages call it.

        Raises:
            CheckpointError: the checkpoint is in a layout that is not read here, or is not packed at all.
        """
        from qeff_framework.sources.quantized.stored import StoredTensors

        self.name = name
        self.method = str(settings["quant_method"])
        self._stored = StoredTensors(files, name)
        module = importlib.import_module(f"{__package__}.{METHODS[self.method]}")
        read: Callable[[Mapping[str, Any], StoredTensors], Iterator[StoredWeight]] = module.weights
        self._weights = {weight.name: weight for weight in read(settings, self._stored)}
        # Some are read when the graph is written, which is late for a reason that the headers tell.
        for part in (part for weight in self._weights.values() for part in weight.needed):
            self._stored.require(part)
        is_plain: Callable[[Mapping[str, Any]], bool] = getattr(module, "leaves_weights", lambda _: False)
        self._refuse_unscaled()
        if not self._weights and not is_plain(settings):
            raise CheckpointError(
                f"the config.json of {name} states quant_method '{self.method}', and none of its weights is packed; if they "
                "are the dequantised ones, take quantization_config out of the config.json, else download the weights again"
            )

    def _refuse_unscaled(self) -> None:
        """Raises `CheckpointError` for packed numbers that no weight is made from: the loader would take them as they are."""
        used = {source for weight in self._weights.values() for source in weight.sources}
        for key in self._stored:
            if key in used or len(self._stored.shape(key)) < 2:
                continue
            dtype = self._stored.dtype(key)
            if self._stored.is_float8(key) or (dtype in _INTEGERS and key.rpartition(".")[2] == "weight"):
                raise CheckpointError(
                    f"{self.name} is quantised by {self.method}, and holds {key} as numbers of type {dtype} without the scales "
                    "that they need; download the checkpoint again, or give the model without quantisation"
                )

    def weights(self) -> tuple[StoredWeight, ...]:
        """All that are packed."""
        return tuple(self._weights.values())

    def state_dict(self, module: torch.nn.Module, *, deferred: bool = False) -> dict[str, LazyTensor | torch.Tensor]:
        """All weights as float numbers by the names of the unquantised checkpoint, each made when the loader asks for it.

        `module` is the unquantised model, with or without values: some classes keep the weights of linear layers as
        ``[in, out]``. With `deferred`, weights whose shape is known are made when they are written.
        """
        from qeff_framework.sources.quantized.weights import LazyTensor

        used = {source for weight in self._weights.values() for source in weight.sources}
        transposed = _transposed_modules(module)
        found: dict[str, LazyTensor | torch.Tensor] = {}
        for key in self._stored:
            if key not in used:
                tensor = self._deferred_plain(key) if deferred else None
                found[key] = LazyTensor(partial(self._stored.read, key)) if tensor is None else tensor
        for name, weight in self._weights.items():
            turned = _is_one_of(name, transposed)
            tensor = self._deferred_packed(weight) if deferred else None
            if tensor is not None:
                found[name] = tensor.T if turned else tensor
            else:
                found[name] = LazyTensor(partial(_read_transposed, weight) if turned else weight.read)
        return found

    def _deferred_plain(self, key: str) -> DeferredTensor | None:
        from qeff_framework.seam.deferred import DeferredTensor

        place = self._stored.place(key)
        return None if place is None else DeferredTensor.of_file(place)

    def _deferred_packed(self, weight: StoredWeight) -> DeferredTensor | None:
        import torch

        from qeff_framework.seam.deferred import ComputedTensor, DeferredTensor

        places = [self._stored.place(source) for source in weight.sources if source in self._stored]
        sources = tuple(place for place in places if place is not None)
        if weight.shape is None or len(sources) < len(places):
            return None
        return DeferredTensor.of_computed(
            # The first source holds the levels: scales and tables beside it are no numbers of the weight.
            ComputedTensor(
                shape=weight.shape,
                dtype=torch.float32,
                compute=weight.read,
                compute_rows=weight.read_rows,
                sources=sources[:1],
                parts=(weight.name,),
                is_part=True,
            )
        )


def _read_transposed(weight: StoredWeight) -> torch.Tensor:
    return weight.read().T.contiguous()


def _transposed_modules(module: torch.nn.Module) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    return [name for name, part in module.named_modules() if isinstance(part, Conv1D)]


def _is_one_of(name: str, modules: list[str]) -> bool:
    """Whether `name` is the weight of one of `modules`; one of both may lack the prefix of the model without its head."""
    owner = f".{name.removesuffix('.weight')}"
    return any(owner.endswith(f".{module}") or f".{module}".endswith(owner) for module in modules)
