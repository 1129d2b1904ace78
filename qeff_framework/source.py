"""Where a model comes from: a checkpoint (local folder, hub id, GGUF file) or a torch module in memory.

A source knows its identity, which goes into cache keys, without loading the weights. Weights are loaded when an export
needs them, so that a second run with a finished artifact imports neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qeff_framework.artifacts import cache_key, content_digest, store_root
from qeff_framework.errors import CheckpointError, OptionError, UnsupportedModelError
from qeff_framework.progress import report

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

#: Keyword arguments of `from_pretrained` that say where and how to fetch, and never change what is loaded.
_FETCH_ONLY = frozenset(
    {"cache_dir", "force_download", "local_files_only", "proxies", "token", "use_auth_token", "low_cpu_mem_usage"}
)
#: File types of a checkpoint folder that decide what is loaded.
_CONTENT_SUFFIXES = frozenset({".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py", ".gguf"})
#: Conventions of sentence-transformers: which pooling an embedding checkpoint was trained with.
_POOLING_FILE = "1_Pooling/config.json"
_POOLING_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


class ModelSource(Protocol):
    """What `QEFFBaseModel` needs to know about the origin of its module."""

    #: For people: names artifact directories.
    name: str

    def identity(self) -> Mapping[str, Any]:
        """Everything that decides the weights and the structure, as JSON. Never a path."""

    def config(self) -> Mapping[str, Any]:
        """The Hugging Face config as a dictionary."""

    def load(self, auto_class: str) -> torch.nn.Module:
        """Returns the module in eval mode, float32, on the CPU. `auto_class`: the Transformers class that loads it."""

    def release(self) -> None:
        """Drops a module that can be loaded again."""

    def save_companions(self, directory: Path) -> None:
        """Writes ``config.json``, ``generation_config.json`` and ``tokenizer/``, as far as there are such."""

    def pooling(self) -> str | None:
        """The pooling that the checkpoint asks for."""


class ModuleSource:
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
        """Class, configs and a digest over every parameter and buffer."""
        import torch

        digest = hashlib.sha256()
        for name, tensor in sorted(self._module.state_dict().items()):
            plain = tensor.detach().cpu().contiguous()
            digest.update(f"{name}|{plain.dtype}|{tuple(plain.shape)}|".encode())
            digest.update(plain.flatten().view(torch.uint8).numpy().data)
        return {
            "class": type(self._module).__qualname__,
            "config": _content_of(self.config()),
            # An artifact carries it, as it carries the file of a checkpoint.
            "generation_config": _content_of(_generation_config(self._module) or {}),
            "weights": digest.hexdigest(),
        }

    def config(self) -> Mapping[str, Any]:
        """The module's own config, made serialisable."""
        return _plain_config(self._module.config)

    def load(self, auto_class: str) -> torch.nn.Module:
        """The module itself; it must be float32 already."""
        del auto_class  # the module is loaded
        return _checked_module(self._module)

    def release(self) -> None:
        """Keeps the module: it belongs to the caller."""

    def save_companions(self, directory: Path) -> None:
        """A module carries config and generation config, and no tokenizer."""
        _write_json(directory / "config.json", self.config())
        _save_generation_config(self._module, directory)

    def pooling(self) -> str | None:
        """A module says nothing about pooling."""
        return None


class CheckpointSource:
    """A checkpoint in a local folder or on the hub, with the keyword arguments of ``from_pretrained``."""

    def __init__(self, name_or_path: str | os.PathLike[str], load_arguments: Mapping[str, Any]) -> None:
        arguments = dict(load_arguments)
        text = os.fspath(name_or_path)
        path = Path(text).expanduser()
        if path.suffix == ".gguf" and path.is_file():
            arguments.setdefault("gguf_file", path.name)
            path = path.parent
            text = str(path)
        self._arguments = arguments
        self._folder: Path | None = None
        if path.is_dir():
            self._folder = path.resolve()
            self._check_folder(self._folder)
        elif _looks_like_path(text):
            raise CheckpointError(
                f"model folder {text} does not exist; give a folder with a config.json, a .gguf file, or a hub id like "
                "'organisation/name'"
            )
        self.name = self._display_name(text)
        self._id = text
        self._module: torch.nn.Module | None = None

    # --- identity -----------------------------------------------------------------------------------------------------

    def identity(self) -> Mapping[str, Any]:
        """Digests of a local checkpoint's files, or the hub's commit; and every argument that changes what is loaded."""
        arguments = {key: value for key, value in self._arguments.items() if key not in _FETCH_ONLY}
        if self._folder is None:
            return {"hub": self._id, "commit": self._commit(), "arguments": _jsonable_arguments(arguments)}
        files = {name: content_digest(path) for name, path in sorted(self._content_files(self._folder))}
        return {"files": files, "arguments": _jsonable_arguments(arguments)}

    def config(self) -> Mapping[str, Any]:
        """Read from ``config.json``; for a GGUF file through Transformers, once, since that takes many seconds."""
        if self._arguments.get("gguf_file"):
            return self._gguf_config()
        return self._config_file()

    def pooling(self) -> str | None:
        """The pooling of a sentence-transformers checkpoint."""
        try:
            content = json.loads(self._file(_POOLING_FILE).read_text(encoding="utf-8"))
        except (CheckpointError, OSError, ValueError):
            return None
        chosen = [ours for theirs, ours in _POOLING_MODES.items() if content.get(theirs) is True]
        return chosen[0] if len(chosen) == 1 else None

    # --- loading ------------------------------------------------------------------------------------------------------

    def load(self, auto_class: str) -> torch.nn.Module:
        """Loads the weights through Transformers."""
        if self._module is None:
            import transformers

            report(f"loading the weights of {self.name}")
            arguments: dict[str, Any] = {"dtype": "float32", **self._arguments}
            if arguments.get("gguf_file"):
                # Handing the config over saves Transformers one more pass over the file's metadata, which takes long.
                content = dict(self.config())
                arguments.setdefault("config", transformers.CONFIG_MAPPING[content["model_type"]].from_dict(content))
            try:
                # The GGUF reader draws a progress bar that no setting turns off.
                with _quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
                    module = getattr(transformers, auto_class).from_pretrained(self._location, **arguments)
            except Exception as error:
                raise CheckpointError(f"{self.name} cannot be loaded as {auto_class}: {_first_line(error)}") from error
            self._module = _checked_module(module)
        return self._module

    def release(self) -> None:
        """The weights can be loaded again: give their memory back."""
        self._module = None

    def save_companions(self, directory: Path) -> None:
        """Config, generation config and tokenizer, so that an artifact runs without the checkpoint."""
        _write_json(directory / "config.json", self.config())
        if self._module is not None:
            _save_generation_config(self._module, directory)
        self._save_tokenizer(directory / "tokenizer")

    def _save_tokenizer(self, directory: Path) -> None:
        import transformers

        report(f"reading the tokenizer of {self.name}")
        names = ("gguf_file", "revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "subfolder")
        arguments = {key: self._arguments[key] for key in names if key in self._arguments}
        try:
            with _quiet_transformers():
                tokenizer = transformers.AutoTokenizer.from_pretrained(self._location, **arguments)
        except Exception as error:  # noqa: BLE001 - Transformers has no one error for "there is no tokenizer"
            logger.info("%s has no tokenizer that Transformers can load: %s", self.name, _first_line(error))
            return
        # Some classes alone know which inputs their model reads; the artifact is read without them.
        tokenizer.init_kwargs["model_input_names"] = list(tokenizer.model_input_names)
        with _quiet_transformers():
            tokenizer.save_pretrained(directory)

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _location(self) -> str:
        return self._id if self._folder is None else str(self._folder)

    def _display_name(self, text: str) -> str:
        gguf = self._arguments.get("gguf_file")
        if gguf:
            return Path(gguf).stem
        return self._folder.name if self._folder else text

    def _check_folder(self, folder: Path) -> None:
        gguf = self._arguments.get("gguf_file")
        if gguf:
            if not (folder / gguf).is_file():
                raise CheckpointError(f"{folder} has no file {gguf}; name a GGUF file of that folder")
            return
        if not (folder / self._arguments.get("subfolder", "") / "config.json").is_file():
            ggufs = sorted(path.name for path in folder.glob("*.gguf"))
            hint = f"; it holds {', '.join(ggufs)}: pass gguf_file={ggufs[0]!r}" if ggufs else ""
            raise CheckpointError(f"model folder {folder} has no config.json{hint or ': it is not a checkpoint'}")

    def _content_files(self, folder: Path) -> Iterator[tuple[str, Path]]:
        gguf = self._arguments.get("gguf_file")
        if gguf:
            yield gguf, folder / gguf
            return
        root = folder / self._arguments.get("subfolder", "")
        weights = [".safetensors"] if any(root.glob("*.safetensors")) else [".bin"]
        for path in root.iterdir():
            if path.suffix in _CONTENT_SUFFIXES and (
                path.suffix not in (".safetensors", ".bin") or path.suffix in weights
            ):
                yield path.name, path
        if (root / _POOLING_FILE).is_file():
            yield _POOLING_FILE, root / _POOLING_FILE

    def _config_file(self) -> Mapping[str, Any]:
        path = self._file("config.json")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(
                f"{path} is not valid JSON: {error}; restore the file or download it again"
            ) from error
        if not isinstance(content, dict) or not content.get("model_type"):
            raise CheckpointError(
                f"{path} names no model_type, so Transformers cannot tell the architecture; is it a Transformers checkpoint?"
            )
        return content

    def _gguf_config(self) -> Mapping[str, Any]:
        memo = store_root() / "configs" / f"{cache_key(self.identity())[:16]}.json"
        with contextlib.suppress(OSError, ValueError):
            content: dict[str, Any] = json.loads(memo.read_text(encoding="utf-8"))
            return content
        content = _plain_config(self._config_object())
        memo.parent.mkdir(parents=True, exist_ok=True)
        draft = memo.with_suffix(f".{os.getpid()}")
        _write_json(draft, content)
        draft.replace(memo)
        return content

    def _config_object(self) -> Any:
        import transformers

        report(f"reading the metadata of {self._arguments['gguf_file']}")
        arguments = {key: value for key, value in self._arguments.items() if key not in ("dtype", "config")}
        try:
            with _quiet_transformers():
                return transformers.AutoConfig.from_pretrained(self._location, **arguments)
        except Exception as error:
            raise CheckpointError(f"the metadata of {self.name} cannot be read: {_first_line(error)}") from error

    def _file(self, name: str) -> Path:
        """A file of the checkpoint, fetched from the hub when it is not local."""
        subfolder = self._arguments.get("subfolder") or None
        if self._folder is not None:
            path = self._folder / (subfolder or "") / name
            if not path.is_file():
                raise CheckpointError(f"{self._folder} has no file {name}")
            return path
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

        names = ("revision", "token", "cache_dir", "local_files_only", "force_download")
        arguments = {key: self._arguments[key] for key in names if key in self._arguments}
        report(f"fetching {name} of {self._id}")
        try:
            with _quiet_hub():
                return Path(hf_hub_download(self._id, name, subfolder=subfolder, **arguments))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
            raise CheckpointError(
                f"'{self._id}' is neither a local folder nor a model that the hub gives: {_first_line(error)}; check the "
                "spelling, the network, or the access rights of your token"
            ) from error

    def _commit(self) -> str:
        """The hub's commit: cached files lie in ``snapshots/<commit>/``."""
        path = self._file(self._arguments.get("gguf_file") or "config.json")
        parts = path.parts
        return parts[parts.index("snapshots") + 1] if "snapshots" in parts else content_digest(path)


def pooling_identity(pooling: str | Callable[..., Any] | None) -> object:
    """What stands for a pooling in a cache key: its name, or the source text of a function."""
    if pooling is None or isinstance(pooling, str):
        return pooling
    import inspect

    try:
        return {"function": inspect.getsource(pooling)}
    except (OSError, TypeError) as error:
        raise OptionError(
            f"pooling {pooling!r} has no source text, so that its result could not be told apart in the cache; define it in a "
            "file"
        ) from error


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text or text.endswith(".gguf")


def _plain_config(config: Any) -> dict[str, Any]:
    """A config as JSON. A quantization config is dropped: GGUF weights are dequantised on loading."""
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    content.pop("quantization_config", None)
    return content


def _content_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the fields that tell where it came from or which version wrote it."""
    return {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}


def _checked_module(module: torch.nn.Module) -> torch.nn.Module:
    import torch

    odd = {str(p.dtype) for p in module.parameters() if p.is_floating_point() and p.dtype != torch.float32}
    if odd:
        raise UnsupportedModelError(
            f"{type(module).__name__} has {', '.join(sorted(odd))} parameters; portable graphs are float32: load it with "
            "dtype=torch.float32 (backends choose their own precision when they compile)"
        )
    return module.eval().requires_grad_(False)


def _save_generation_config(module: Any, directory: Path) -> None:
    content = _generation_config(module)
    if content is not None:
        _write_json(directory / "generation_config.json", content)


def _generation_config(module: Any) -> dict[str, Any] | None:
    generation_config = getattr(module, "generation_config", None)
    content: dict[str, Any] | None = None if generation_config is None else generation_config.to_diff_dict()
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _jsonable_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in arguments.items():
        if hasattr(value, "to_dict"):
            plain[name] = _content_of(_plain_config(value))
        elif dataclasses.is_dataclass(value) or not _is_plain(value):
            plain[name] = str(value)
        else:
            plain[name] = value
    return plain


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keeps the hub's retries, which it tells as warnings, off the terminal: the error in the end is what counts."""
    hub_logger = logging.getLogger("huggingface_hub")
    level = hub_logger.level
    hub_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub_logger.setLevel(level)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keeps Transformers' progress bars off the terminal: ours says what goes on."""
    import transformers

    # Transformers leaves these functions without types.
    transformers_logging: Any = transformers.logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
