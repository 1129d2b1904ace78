"""The weights of a GGUF file as deferred tensors, by the names and in the form that Transformers gives them.

Transformers says which weight of the model a tensor is, and what llama.cpp has done to it: rows of queries and keys in another
order, one added to the weights of norms, the experts' products joined. It does so with the numbers of one tensor at a time; here
it is asked once without numbers, for names and shapes, and again with the numbers of one weight when that is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qeff_framework.gguf_blocks import FORMATS
from qeff_framework.seam.deferred import ComputedTensor, DeferredTensor, StoredBlocks, StoredTensor
from qeff_framework.sources.gguf_header import PLAIN, GGUFHeader, GGUFTensorPlace, quick_reading
from qeff_framework.sources.stand_ins import StandIn

Array = NDArray[Any]

#: Numbers that are dequantised at a time, a multiple of every type's block: the package's intermediate arrays stay in a
#: processor's cache.
_NUMBERS = 1 << 17

_MATRIX_AXES = 2
_PLAIN = {number: getattr(torch, name) for number, name in PLAIN.items()}


@contextmanager
def deferring_gguf(path: Path, read_from: Path) -> Iterator[None]:
    """While the body runs, this thread's loading of the GGUF file `path` through Transformers makes deferred tensors.

    Their numbers are read from `read_from`, another name of the file.
    """
    from transformers import modeling_gguf_pytorch_utils

    token = _deferred.set((path.resolve(), read_from))
    try:
        with _LOADER.installed(modeling_gguf_pytorch_utils), quick_reading():
            yield
    finally:
        _deferred.reset(token)


_deferred: ContextVar[tuple[Path, Path] | None] = ContextVar("deferred", default=None)


def _load_gguf_checkpoint(original: Any, gguf_checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
    """Transformers' function of this name, with deferred tensors where tensors are asked for."""
    places, model = _deferred.get(), kwargs.get("model_to_load")
    wanted = kwargs.get("return_tensors") and model is not None and not args
    if places is None or not wanted or Path(gguf_checkpoint_path).resolve() != places[0]:
        return original(gguf_checkpoint_path, *args, **kwargs)
    parsed = original(gguf_checkpoint_path, return_tensors=False)
    parsed["tensors"] = _weights(places[1], parsed["config"], model)
    return parsed


@contextmanager
def loading_gguf() -> Iterator[None]:
    """While the body runs, this thread's loading of GGUF files through Transformers repeats nothing for words and modules."""
    with quick_reading(with_data=True), _names_once():
        yield


@contextmanager
def _names_once() -> Iterator[None]:
    try:
        import gguf
    except ImportError:
        yield
        return
    token = _name_maps.set({})
    try:
        with _NAMER.installed(gguf):
            yield
    finally:
        _name_maps.reset(token)


_name_maps: ContextVar[dict[Any, Any] | None] = ContextVar("name_maps", default=None)


def _name_map(original: Any, *args: Any) -> Any:
    """The gguf package's map of names, made once: Transformers asks for the same one with each module of a model."""
    known = _name_maps.get()
    if known is None:
        return original(*args)
    if args not in known:
        known[args] = original(*args)
    return known[args]


_NAMER = StandIn("get_tensor_name_map", _name_map)
_LOADER = StandIn("load_gguf_checkpoint", _load_gguf_checkpoint)


@dataclass(frozen=True)
class _Blocks:
    """A tensor of the file."""

    place: GGUFTensorPlace
    #: Bytes: ``[rows, bytes of a row]``.
    stored: StoredTensor

    @classmethod
    def of(cls, path: Path, place: GGUFTensorPlace) -> _Blocks:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, width = GGML_QUANT_SIZES[GGMLQuantizationType(place.kind)]
        columns = place.shape[-1] if place.shape else 1
        shape = (math.prod(place.shape[:-1]), columns // block * width)
        return cls(place, StoredTensor(path=path, offset=place.offset, shape=shape, dtype=torch.uint8))

    def rows(self, start: int, stop: int) -> Array:
        """float32 of some rows; a row is the last dimension."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType(self.place.kind)
        block, width = GGML_QUANT_SIZES[kind]
        content = self.stored.read_rows(start, stop).numpy().reshape(-1)
        found: Array = np.empty(len(content) // width * block, np.float32)
        step = _NUMBERS // block * width
        for first, number in zip(range(0, len(content), step), range(0, len(found), _NUMBERS), strict=True):
            found[number : number + _NUMBERS] = dequantize(content[first : first + step], kind)
        return found.reshape(-1, self._columns)

    @property
    def _columns(self) -> int:
        return self.place.shape[-1] if self.place.shape else 1

    def whole(self) -> Array:
        """float32 in the tensor's shape."""
        return self.rows(0, self.stored.shape[0]).reshape(self.place.shape)

    def first_dimension(self, start: int, stop: int) -> torch.Tensor:
        """float32 ``[start:stop]`` of the tensor's first dimension."""
        inner = math.prod(self.place.shape[1:-1])
        return torch.from_numpy(self.rows(start * inner, stop * inner).reshape(stop - start, *self.place.shape[1:]))

    def deferred(self) -> DeferredTensor:
        """The tensor as it stands in the file."""
        shape, kind = self.place.shape, _PLAIN.get(self.place.kind)
        if kind is not None:
            return DeferredTensor.of_file(
                StoredTensor(path=self.stored.path, offset=self.place.offset, shape=shape, dtype=kind)
            )
        return DeferredTensor.of_computed(
            ComputedTensor(
                shape=shape,
                dtype=torch.float32,
                compute=lambda: torch.from_numpy(self.whole()),
                compute_rows=self.first_dimension if len(shape) > 1 else None,
                parts=(self.place.name,),
                is_part=True,
                blocks=self._blocks(),
            )
        )

    def _blocks(self) -> StoredBlocks | None:
        kind = FORMATS.get(self.place.kind)
        if kind is None or len(self.place.shape) < _MATRIX_AXES:
            return None
        shape = (*self.place.shape[:-1], self.stored.shape[-1])
        return StoredBlocks(stored=replace(self.stored, shape=shape), format=self.place.kind)


class _Processor:
    """What Transformers does to the tensors of a file."""

    def __init__(self, config: Mapping[str, Any], architecture: str, model: Any) -> None:
        from transformers import modeling_gguf_pytorch_utils as library

        kinds: Any = library.TENSOR_PROCESSORS
        self._processor = kinds.get(architecture, library.TensorProcessor)(config=config)
        with _names_once():
            self._names: Mapping[str, str] = library.get_gguf_hf_weights_map(model, self._processor)

    def processed(self, name: str, weights: Array, taken: dict[str, Any]) -> dict[str, Any]:
        """Puts what becomes of a tensor of the file into `taken`, by the model's names, and returns that.

        A weight that is joined from several tensors is begun by the first, and completed in place by the others.
        """
        result = self._processor.process(
            weights=weights, name=name, tensor_key_mapping=self._names, parsed_parameters={"tensors": taken}
        )
        if result.name in self._names:
            taken[self._names[result.name]] = result.weights
        return taken


def unread_tensors(path: Path, model: Any) -> list[str]:
    """The tensors of a file that belong to no weight of the model.

    Those of an architecture that Transformers reads in its newer way are told by its loader.
    """
    header = GGUFHeader.of(path)
    architecture = header.values["general.architecture"].items[0].decode()
    if _has_newer_loader(architecture):
        return []
    processor = _Processor(model.config.to_dict(), architecture, model)
    return [name for name, place in header.tensors.items() if not processor.processed(name, _blank(place), {})]


def _has_newer_loader(architecture: str) -> bool:
    try:
        from transformers.integrations.gguf import utils as library
    except ImportError:
        return False
    return bool(library.is_gguf_arch_supported(architecture))


def _blank(place: GGUFTensorPlace) -> Array:
    """One number in the shape of all; what only moves numbers makes no copy of it."""
    return np.broadcast_to(np.zeros((), np.float32), place.shape)


def _weights(path: Path, config: Mapping[str, Any], model: Any) -> dict[str, torch.Tensor]:
    header = GGUFHeader.of(path)
    architecture = header.values["general.architecture"].items[0].decode()
    processor = _Processor(config, architecture, model)
    found: dict[str, DeferredTensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, list[_Blocks]] = {}
    for name, place in header.tensors.items():
        blocks = _Blocks.of(path, place)
        blank = _blank(place)
        for key, value in processor.processed(name, blank, {}).items():
            shapes[key] = tuple(value.shape)
            parts.setdefault(key, []).append(blocks)
            if value is blank:
                found[key] = blocks.deferred()
    for key, blocks_of_key in parts.items():
        if key in found and len(blocks_of_key) == 1:
            continue
        computed = ComputedTensor(
            shape=shapes[key],
            dtype=torch.float32,
            compute=partial(_processed, processor, key, blocks_of_key),
            sources=tuple(blocks.stored for blocks in blocks_of_key),
            parts=tuple(blocks.place.name for blocks in blocks_of_key),
        )
        found[key] = DeferredTensor.of_computed(computed)
    return dict(found)


def _processed(processor: _Processor, key: str, parts: list[_Blocks]) -> torch.Tensor:
    taken: dict[str, Any] = {}
    for blocks in parts:
        taken = processor.processed(blocks.place.name, blocks.whole(), taken)
    value = taken[key]
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(value))
