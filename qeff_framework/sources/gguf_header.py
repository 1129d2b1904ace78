"""The header of a GGUF file: its values and where its tensors lie, read in one pass.

The reader of the gguf package makes several NumPy arrays of each word of the vocabulary, which takes seconds and hundreds of
megabytes, and Transformers reads each file three times. `quick_reading` gives Transformers this one instead, and its own reader
of the vocabulary the bytes of the file without a NumPy array for each word.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qeff_framework.gguf_blocks import FORMATS
from qeff_framework.sources.stand_ins import StandIn

#: Numbers of the types of values, and how a value of fixed size is stored.
_STRING, _ARRAY = 8, 9
#: No type of GGUF. Transformers leaves values of a type that it does not know as they are.
_UNPARSED = -1
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_ALIGNMENT = "general.alignment"
_MAGIC = b"GGUF"
#: Types of tensors whose numbers are stored as such, with torch's names for them.
PLAIN = {0: "float32", 1: "float16", 30: "bfloat16"}
#: Where the entries of the vocabulary are, which the weights and most of the config have no use for.
_VOCABULARY = "tokenizer."
_TOKENS = "tokenizer.ggml.tokens"
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True)
class GGUFValue:
    """A value of the header; those of an array one by one. Texts are bytes, numbers tuples of one."""

    types: tuple[int, ...]
    items: list[Any]


@dataclass(frozen=True, kw_only=True)
class GGUFTensorPlace:
    """A tensor of the file."""

    name: str
    #: As torch counts dimensions.
    shape: tuple[int, ...]
    #: Number of the type of its blocks.
    kind: int
    #: Bytes from the start of the file.
    offset: int


class GGUFHeader:
    """Values and tensors by name.

    Args:
        path: a little-endian file.
        with_vocabulary: read the texts and numbers of the vocabulary as well; otherwise its tokens are one item, a list of
            as many zeros, whose length some configs are made from, and its other arrays have no items.

    Raises:
        ValueError: the file is none of GGUF, is cut in its header, or has two tensors of one name.
    """

    def __init__(self, path: Path, *, with_vocabulary: bool = False) -> None:
        self.values: dict[str, GGUFValue] = {}
        self.tensors: dict[str, GGUFTensorPlace] = {}
        self._with_vocabulary = with_vocabulary
        self._place = len(_MAGIC)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as self._content:
            if self._content[: self._place] != _MAGIC:
                raise ValueError(f"{path} does not begin with {_MAGIC.decode()}")
            try:
                self._read()
            except (struct.error, IndexError, KeyError) as error:
                raise ValueError(f"the header of {path} is cut or damaged: {error}") from error

    @classmethod
    def of(cls, path: Path) -> GGUFHeader:
        """Without the vocabulary, and read once: an export asks for it again and again. Raises as the class does."""
        found = path.stat()
        # Not the path: in an export the file has a second name.
        facts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        known = _last_read.get(facts)
        if known is None:
            known = cls(path)
            _last_read.clear()
            _last_read[facts] = known
        return known

    def _read(self) -> None:
        version, tensor_count, value_count = self._take("IQQ")
        if version & 0xFFFF == 0:
            raise ValueError("it is written for machines of the other byte order")
        for _ in range(value_count):
            name = self._text().decode()
            (kind,) = self._take("I")
            keeps = self._with_vocabulary or not name.startswith(_VOCABULARY)
            self.values[name] = self._value(kind, keeps=keeps, counts=name == _TOKENS)
        found = []
        for _ in range(tensor_count):
            name = self._text().decode()
            (rank,) = self._take("I")
            sizes = self._take(f"{rank}Q")
            found.append((name, tuple(reversed(sizes)), *self._take("IQ")))
        alignment = int(self.values[_ALIGNMENT].items[0][0]) if _ALIGNMENT in self.values else 32
        start = -(-self._place // alignment) * alignment
        for name, shape, kind, offset in found:
            if name in self.tensors:
                raise ValueError(f"two of its tensors are named {name}")
            self.tensors[name] = GGUFTensorPlace(name=name, shape=shape, kind=kind, offset=start + offset)

    def _value(self, kind: int, *, keeps: bool, counts: bool) -> GGUFValue:
        if kind == _STRING:
            return GGUFValue(types=(kind,), items=[self._text()])
        if kind != _ARRAY:
            return GGUFValue(types=(kind,), items=[self._take(_FORMS[kind])])
        inner, count = self._take("IQ")
        if inner == _STRING and not keeps:
            self._pass_texts(count)
            # Only their number is asked for, and Transformers would parse item by item.
            return GGUFValue(types=(_UNPARSED,), items=[[0] * count] if counts else [])
        if inner == _STRING:
            return GGUFValue(types=(kind, inner), items=[self._text() for _ in range(count)])
        form = f"<{count}{_FORMS[inner]}"
        numbers = struct.unpack_from(form, self._content, self._place) if keeps else ()
        self._place += struct.calcsize(form)
        return GGUFValue(types=(kind, inner), items=[(number,) for number in numbers])

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self._content, self._place)
        self._place += struct.calcsize(f"<{form}")
        return values

    def _pass_texts(self, count: int) -> None:
        """Goes behind texts: a vocabulary has hundreds of thousands, and each header is read several times."""
        place, content, length_at = self._place, self._content, _LENGTH.unpack_from
        for _ in range(count):
            place += length_at(content, place)[0] + _LENGTH.size
        if place > len(content):
            raise IndexError("a text ends behind the end of the file")
        self._place = place

    def _text(self) -> bytes:
        (length,) = self._take("Q")
        self._place += length
        if self._place > len(self._content):
            raise IndexError("a text ends behind the end of the file")
        return self._content[self._place - length : self._place]


#: One header at most, by what tells files apart.
_last_read: dict[tuple[int, int, int, int], GGUFHeader] = {}


def has_stored_form(path: Path) -> bool:
    """Whether a graph can refer to most matrices of the file. Raises `ValueError` where the header cannot be read."""
    sizes = {True: 0, False: 0}
    for place in GGUFHeader.of(path).tensors.values():
        if len(place.shape) > 1:
            sizes[place.kind in PLAIN or place.kind in FORMATS] += math.prod(place.shape)
    return sizes[True] >= sizes[False]


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What is read for Transformers, beside the header."""

    with_vocabulary: bool
    with_data: bool


class _QuickReader:
    """What Transformers uses of the reader of the gguf package."""

    def __init__(self, path: Any, reading: _Reading) -> None:
        import numpy as np
        from gguf import ReaderField

        header = GGUFHeader(Path(path), with_vocabulary=True) if reading.with_vocabulary else GGUFHeader.of(Path(path))
        self.tensors = _tensors_with_data(Path(path), header) if reading.with_data else _tensors(Path(path), header)
        self.fields: dict[str, Any] = {}
        for name, value in header.values.items():
            # Single numbers as the package has them; of an array, whatever holds one number does.
            is_number = value.types[0] not in (_STRING, _ARRAY, _UNPARSED)
            items = [np.asarray(value.items[0])] if is_number else value.items
            self.fields[name] = ReaderField(0, name, items, list(range(len(items))), list(value.types))


@dataclass(frozen=True, kw_only=True)
class _QuickTensor:
    name: str
    tensor_type: Any
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _QuickTensorWithData(_QuickTensor):
    #: uint8 ``[..., bytes of a row]``, mapped: what the package's ``dequantize`` takes for every type.
    data: Any


def _tensors(path: Path, header: GGUFHeader) -> list[_QuickTensor]:
    """Raises `ValueError` where the file ends before they do."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size, found = path.stat().st_size, []
    for name, place in header.tensors.items():
        kind = GGMLQuantizationType(place.kind)
        block, width = GGML_QUANT_SIZES[kind]
        if place.offset + math.prod(place.shape) // block * width > size:
            raise ValueError(f"the file ends before the numbers of {name} do")
        found.append(_QuickTensor(name=name, tensor_type=kind, shape=place.shape[::-1]))
    return found


def _tensors_with_data(path: Path, header: GGUFHeader) -> list[_QuickTensor]:
    """As `_tensors`."""
    import numpy as np
    from gguf.quants import quant_shape_to_byte_shape

    content, found = np.asarray(np.memmap(path, np.uint8, "r")), list[_QuickTensor]()
    for tensor in _tensors(path, header):
        shape = quant_shape_to_byte_shape(tensor.shape[::-1] or (1,), tensor.tensor_type)
        start = header.tensors[tensor.name].offset
        data = content[start : start + math.prod(shape)].reshape(shape)
        found.append(_QuickTensorWithData(**vars(tensor), data=data))
    return found


_reading: ContextVar[_Reading | None] = ContextVar("reading", default=None)


@contextmanager
def quick_reading(*, with_vocabulary: bool = False, with_data: bool = False) -> Iterator[None]:
    """While the body runs, Transformers reads GGUF files with `GGUFHeader` in this thread.

    Args:
        with_vocabulary: as for `GGUFHeader`.
        with_data: tensors have their bytes, mapped.

    Without the gguf package nothing changes.
    """
    try:
        import gguf
    except ImportError:
        yield
        return
    library = _library_reader()
    token = _reading.set(_Reading(with_vocabulary=with_vocabulary, with_data=with_data))
    try:
        with ExitStack() as stack:
            stack.enter_context(_READER.installed(gguf))
            if library is not None:
                stack.enter_context(_MAPPER.installed(library))
            yield
    finally:
        _reading.reset(token)


def _opened(original: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
    reading = _reading.get()
    return original(path, *args, **kwargs) if reading is None else _QuickReader(path, reading)


def library_reads_vocabulary() -> bool:
    """Whether the installed Transformers makes tokenizers with a reader of its own, and not from `GGUFHeader`."""
    return _library_reader() is not None


def _library_reader() -> Any | None:
    """The module of Transformers that reads GGUF files without the gguf package; `None` in releases without one."""
    try:
        from transformers.integrations.gguf import reader
    except ImportError:
        return None
    return reader if hasattr(reader, "_mapped") else None


def _mapped(original: Any, path: Any) -> Any:
    """The bytes of a file, mapped. Transformers takes a slice for each word, and one of a `numpy.memmap` takes microseconds."""
    if _reading.get() is None:
        return original(path)
    with Path(path).open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


_READER = StandIn("GGUFReader", _opened)
_MAPPER = StandIn("_mapped", _mapped)
