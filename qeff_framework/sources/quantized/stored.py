"""The tensors of a checkpoint's files by name, read one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from qeff_framework.errors import CheckpointError
from qeff_framework.seam.deferred import StoredTensor
from qeff_framework.sources import torch_files
from qeff_framework.sources.references import stored_tensors


class StoredTensors:
    """Tensors in safetensors files, or in files that torch has written; nothing is read before it is asked for."""

    def __init__(self, files: Iterable[Path], name: str) -> None:
        """`name` is that of the checkpoint, for messages. Files that hold no weights (an index of shards) are passed over."""
        from safetensors import safe_open

        self.name = name
        self._opened: dict[str, Any] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._places: dict[str, StoredTensor] = {}
        #: The free text in the files' headers.
        self.metadata: dict[str, str] = {}
        for path in files:
            if path.suffix == ".safetensors":
                opened: Any = safe_open(path, framework="pt")
                self._opened.update(dict.fromkeys(opened.keys(), opened))
                self._places.update(stored_tensors(path))
                self.metadata.update(opened.metadata() or {})
            elif path.suffix != ".json":
                content = _loaded(path, name)
                self._tensors.update({key: value for key, value in content.items() if isinstance(value, torch.Tensor)})
                if torch_files.has_places(path):
                    self._places.update(torch_files.stored_tensors(path))

    def __iter__(self) -> Iterator[str]:
        yield from self._opened
        yield from self._tensors

    def __contains__(self, key: str) -> bool:
        return key in self._opened or key in self._tensors

    def require(self, key: str) -> None:
        """Raises `CheckpointError` where there is no tensor of this name."""
        if key not in self:
            raise CheckpointError(
                f"{self.name} lacks {key}, which its quantised weights need; download the checkpoint again"
            )

    def read(self, key: str) -> torch.Tensor:
        """The tensor.

        Raises:
            CheckpointError: there is none of this name.
        """
        if key in self._places:
            # Not through a map of the file, which ends the process where the file has become shorter.
            return self._places[key].read()
        if key in self._tensors:
            return self._tensors[key]
        self.require(key)
        tensor: torch.Tensor = self._opened[key].get_tensor(key)
        return tensor

    def read_rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """The part ``[start:stop]`` of the first dimension; nothing else is read of a tensor that has a place."""
        place = self._places.get(key)
        return self.read(key)[start:stop] if place is None else place.read_rows(start, stop)

    def place(self, key: str) -> StoredTensor | None:
        """Where the tensor lies; `None` for one that does not lie in a file as it is."""
        return self._places.get(key)

    def is_float8(self, key: str) -> bool:
        """Whether the tensor holds 8-bit floating-point numbers."""
        return self.dtype(key).startswith("F8_E4M3") or self.dtype(key) == "F8_E5M2"

    def dtype(self, key: str) -> str:
        """Type of the numbers, in the terms of safetensors."""
        if key in self._opened:
            return str(self._opened[key].get_slice(key).get_dtype())
        return _SAFETENSORS_NAMES.get(self._tensors[key].dtype, str(self._tensors[key].dtype))

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the tensor."""
        if key in self._opened:
            return tuple(self._opened[key].get_slice(key).get_shape())
        return tuple(self._tensors[key].shape)


def _loaded(path: Path, name: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} of {name} holds more than plain tensors, such as tensors of torchao's classes; save the checkpoint as "
            f"safetensors ({type(error).__name__})"
        ) from error
    return content


_SAFETENSORS_NAMES = {
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
}
