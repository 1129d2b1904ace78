"""The files of a checkpoint folder: which ones Transformers reads, and whether they are what their names say.

Nothing here imports torch or Transformers: a finished artifact is found without them.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from qeff_framework.contracts import CompiledModel, ExportedModel
from qeff_framework.errors import CheckpointError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
#: The components of a pipeline of diffusers, each in a folder of its own.
PIPELINE_INDEX = "model_index.json"
#: The folder of an artifact that holds its tokenizer.
TOKENIZER = "tokenizer"
#: Further JSON files that Transformers reads, each an object.
_OBJECTS = ("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")

_SAFETENSORS, _SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
_TORCH, _TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
#: Files of weights. Only those that `weight_files` names are read.
_WEIGHT_SUFFIXES = frozenset(
    {
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".gguf",
        ".h5",
        ".msgpack",
        ".ot",
        ".onnx",
        ".onnx_data",
        ".tflite",
    }
)
#: Notes for people, and what a training run writes about itself.
_NOTE_SUFFIXES = frozenset({".md", ".rst", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".log", ".lock"})
_NOTE_NAMES = frozenset({"LICENSE", "NOTICE", "trainer_state.json", "all_results.json"})
#: Chat templates beside the main one.
_TEMPLATES = "additional_chat_templates"

_POINTER = b"version https://git-lfs.github.com/spec/"
_AGAIN = "restore the file or download it again"


# --- which files are read ---------------------------------------------------------------------------------------------


def weight_files(
    root: Path, *, variant: str | None = None, use_safetensors: bool | None = None, explicit: str | None = None
) -> tuple[Path, ...]:
    """The files that Transformers reads the weights from, an index before its shards.

    The order of preference is Transformers' own: ``model.safetensors``, its index, ``pytorch_model.bin``, its index, each with
    `variant` in its name. `use_safetensors` leaves only one of the two formats. `explicit` is a config's
    ``transformers_weights``, which replaces the search.

    Raises:
        CheckpointError: there are no such files, the index is damaged, or a shard that it names is absent.
    """
    if explicit is not None:
        return _with_shards(root, _present(root / explicit))
    names = _weight_names(variant, use_safetensors)
    for name in names:
        if (root / name).is_file():
            return _with_shards(root, root / name)
    broken = next((root / name for name in names if (root / name).is_symlink() or (root / name).exists()), None)
    if broken is not None:
        return (_present(broken),)
    raise CheckpointError(f"{root} holds no weights: none of {', '.join(names)}{_other_weights(root, names)}")


def safetensors_names(variant: str | None = None) -> tuple[str, str]:
    """Names of the one file of weights, and of an index of several, that Transformers looks for first."""
    return _with_variant(_SAFETENSORS, variant), _with_variant(_SAFETENSORS_INDEX, variant)


def shard_names(index: Path) -> list[str]:
    """The shards that an index names.

    Raises:
        CheckpointError: it is no index, or names files outside of the checkpoint.
    """
    content = read_json(index)
    shards = content.get("weight_map")
    if not isinstance(shards, dict) or not shards or not isinstance(content.get("metadata"), dict):
        raise CheckpointError(f"{index} is no index of shards: it lacks 'metadata' or 'weight_map'; {_AGAIN}")
    names = sorted({str(name) for name in shards.values()})
    outside = [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside:
        raise CheckpointError(f"{index} names {outside[0]}, which lies outside of the checkpoint; {_AGAIN}")
    return names


def fetched_weight_files(
    find: Callable[[str], Path | None],
    fetch: Callable[[str], Path],
    *,
    variant: str | None,
    use_safetensors: bool | None,
    explicit: str | None,
) -> tuple[Path, ...]:
    """Like `weight_files`, for a place whose files are fetched one by one: `find` returns `None` for a name that is not there.

    Raises:
        CheckpointError: there are no such files, or the index is damaged.
    """
    names = [explicit] if explicit is not None else _weight_names(variant, use_safetensors)
    for name in names:
        path = find(name)
        if path is not None:
            return (path, *(fetch(shard) for shard in (shard_names(path) if _is_index(path) else ())))
    raise CheckpointError(
        f"there are no weights: none of {', '.join(names)}; give a checkpoint as Transformers saves it"
    )


def companion_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of the files beside the weights that configs and tokenizers are read from.

    A tokenizer class chooses the names of its files by itself. So every file counts that is neither a weight nor a note.
    """
    for path in sorted(root.iterdir()):
        if path.is_file() and not _is_note(path) and path.suffix not in _WEIGHT_SUFFIXES and not _is_index(path):
            yield path.name, path
    for path in sorted((root / _TEMPLATES).glob("*.jinja")):
        yield f"{_TEMPLATES}/{path.name}", path


def code_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of the Python files of a checkpoint, those of its packages included."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix(), path


def has_tokenizer_files(names: Iterable[str]) -> bool:
    """Whether a checkpoint with these files comes with a tokenizer."""
    stems = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece", "sentencepiece", "tekken")
    suffixes = (".model", ".tiktoken", ".spm")
    return any(name.startswith(stems) or name.endswith(suffixes) for name in names)


def _weight_names(variant: str | None, use_safetensors: bool | None) -> list[str]:
    candidates = [
        *([] if use_safetensors is False else [_SAFETENSORS, _SAFETENSORS_INDEX]),
        *([] if use_safetensors else [_TORCH, _TORCH_INDEX]),
    ]
    return [_with_variant(name, variant) for name in candidates]


def _with_variant(name: str, variant: str | None) -> str:
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}" if variant else name


def _with_shards(root: Path, file: Path) -> tuple[Path, ...]:
    if not _is_index(file):
        return (file,)
    names = shard_names(file)
    absent = [name for name in names if not (root / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{root} is incomplete: {file.name} names {len(names)} shards, and {_some(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} not there; download what is missing"
        )
    return (file, *(root / name for name in names))


def _other_weights(root: Path, names: list[str]) -> str:
    """What to do instead, where the folder holds weights under other names, or what was made of a model."""
    for made, kind in ((CompiledModel, "a compiled program"), (ExportedModel, "an exported model")):
        if (root / made.FILE).is_file():
            return f"; it is {kind}: give the model that it was made of"
    found = sorted(
        path.name for path in root.iterdir() if path.suffix in _WEIGHT_SUFFIXES or _is_index(path) if path.is_file()
    )
    if not found:
        return "; download the checkpoint again"
    plain = {_SAFETENSORS, _SAFETENSORS_INDEX, _TORCH, _TORCH_INDEX} - set(names)
    readable = sorted(plain & set(found))
    ggufs = [name for name in found if name.endswith(".gguf")]
    if readable:
        return f"; it holds {_some(readable)}, which variant= and use_safetensors= as given leave out"
    if ggufs:
        return f"; it holds {_some(ggufs)}: pass gguf_file={ggufs[0]!r}"
    return (
        f"; it holds {_some(found)}, which Transformers does not read under these names: rename them, pass variant=, or save "
        "the model again with save_pretrained"
    )


def _present(path: Path) -> Path:
    """`path`, if it is a file. Raises `CheckpointError`, which says what stands there instead."""
    if path.is_file():
        return path
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory and should be a file; {_AGAIN}")
    if path.is_symlink():
        raise CheckpointError(
            f"{path} is a link to {path.readlink()}, which does not exist; copy the files that the links point to"
        )
    raise CheckpointError(f"{path} does not exist; {_AGAIN}")


def _is_index(path: Path) -> bool:
    return ".index" in path.name and path.suffix == ".json"


def _is_note(path: Path) -> bool:
    name = path.name
    return (
        name.startswith(".")
        or name in _NOTE_NAMES
        or path.suffix.lower() in _NOTE_SUFFIXES
        or path.suffix == ".py"
        or name.endswith("_results.json")
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


# --- whether they are whole -------------------------------------------------------------------------------------------


def read_json(path: Path, *, with_field: str = "") -> dict[str, Any]:
    """The JSON object in a file. `with_field` is what a message says that it should have.

    Raises:
        CheckpointError: it is absent, empty, a git-lfs pointer, or no JSON object.
    """
    content = _parsed(path)
    if not isinstance(content, dict):
        expected = f" with a {with_field}" if with_field else ""
        raise CheckpointError(f"{path} holds no JSON object{expected} but a {type(content).__name__}; {_AGAIN}")
    return content


def check_companions(root: Path) -> None:
    """Raises `CheckpointError` for the first damaged file of a checkpoint beside its weights, as far as they lie in `root`."""
    for name in (GENERATION_CONFIG, TOKENIZER_CONFIG, *_OBJECTS):
        if (root / name).exists() or (root / name).is_symlink():
            read_json(root / name)
    for _, path in companion_files(root):
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise _pointer(path)


def check_weight_files(files: Iterable[Path]) -> None:
    """Raises `CheckpointError` for the first file of weights that is empty, cut, a git-lfs pointer, or of another format."""
    for path in files:
        if path.suffix == ".safetensors":
            safetensors_header(path)
        elif path.suffix == ".bin":
            _check_torch_file(path)
        elif path.suffix == ".gguf":
            check_gguf_file(path)


def safetensors_header(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """``dtype``, ``shape`` and ``data_offsets`` of each tensor of a safetensors file.

    Raises:
        CheckpointError: the file is shorter than its header says, or no such file.
    """
    size = _checked_size(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise CheckpointError(
                f"{path} is cut or no safetensors file: it has {size} bytes, and its header alone should have {length}; {_AGAIN}"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        needed = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged: its header is not that of a safetensors file; {_AGAIN}") from error
    if size < needed:
        raise CheckpointError(f"{path} is cut: it has {size} of {needed} bytes; {_AGAIN}")
    return tensors


def safetensors_data_start(path: Path) -> int:
    """Where in a safetensors file the numbers begin, which ``data_offsets`` count from."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def blob_digest(path: Path) -> str | None:
    """SHA-256 of a large file in the hub's cache, which is the name of its blob; `None` for files elsewhere."""
    if not path.is_symlink():
        return None
    blob = Path(os.path.realpath(path))
    in_cache = blob.parent.name == "blobs" and "snapshots" in path.absolute().parts
    return blob.name if in_cache and blob.is_file() and re.fullmatch("[0-9a-f]{64}", blob.name) else None


def check_gguf_file(path: Path) -> None:
    """Raises `CheckpointError` for what does not begin like a GGUF file."""
    _checked_size(path)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{path} is no GGUF file: it does not begin with 'GGUF'; {_AGAIN}")


def _check_torch_file(path: Path) -> None:
    _checked_size(path)
    with path.open("rb") as file:
        start = file.read(2)
    # Since torch 1.6 a zip archive, before that a pickle.
    if zipfile.is_zipfile(path) or start[:1] == b"\x80":
        return
    what = "is cut: the end of its archive is not there" if start == b"PK" else "is no file of torch"
    raise CheckpointError(f"{path} {what}; {_AGAIN}")


def _parsed(path: Path) -> Any:
    _checked_size(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; {_AGAIN}") from error


def _checked_size(path: Path) -> int:
    """Bytes of a file that is neither empty nor a git-lfs pointer."""
    try:
        size = _present(path).stat().st_size
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty; {_AGAIN}")
    if start == _POINTER:
        raise _pointer(path)
    return size


def _pointer(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a git-lfs pointer and not the file itself; run `git lfs pull` in the checkpoint's repository, or download "
        "the file again"
    )
