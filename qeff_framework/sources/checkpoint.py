"""A checkpoint: a local folder, a hub id, or a GGUF file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.artifacts import cache_key, content_digest, store_root
from qeff_framework.errors import CheckpointError
from qeff_framework.progress import report
from qeff_framework.sources.configs import checked_module, content_of, plain_config, save_generation_config, write_json
from qeff_framework.sources.described import described_config
from qeff_framework.sources.hub import optional_hub_file
from qeff_framework.sources.quiet import first_line, quiet_hub, quiet_transformers
from qeff_framework.sources.sentence_transformers import SentenceTransformersFolder, transformer_subfolder
from qeff_framework.thread_quiet import swallowed_stderr

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

#: Keyword arguments of `from_pretrained` that say where and how to fetch, and never change what is loaded.
_FETCH_ONLY = frozenset(
    {"cache_dir", "force_download", "local_files_only", "proxies", "token", "use_auth_token", "low_cpu_mem_usage"}
)
#: File types of a checkpoint folder that decide what is loaded.
_CONTENT_SUFFIXES = frozenset({".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py", ".gguf"})


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
            if not {"gguf_file", "subfolder"} & {*arguments} and not (path / "config.json").exists():
                # The older layout of sentence-transformers, in which the Transformer lies in a folder of its own.
                arguments.update({"subfolder": inner} if (inner := transformer_subfolder(path)) else {})
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

    def sentence_transformers(self) -> SentenceTransformersFolder | None:
        """What follows the Transformer in a sentence-transformers checkpoint; `None` for any other checkpoint."""
        subfolder = self._arguments.get("subfolder") or ""
        return SentenceTransformersFolder.find(self.name, self._optional_file, subfolder=subfolder)

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
                with quiet_transformers(), swallowed_stderr():
                    module = getattr(transformers, auto_class).from_pretrained(self._location, **arguments)
            except Exception as error:
                raise CheckpointError(f"{self.name} cannot be loaded as {auto_class}: {first_line(error)}") from error
            self._module = checked_module(module)
        return self._module

    def release(self) -> None:
        """The weights can be loaded again: give their memory back."""
        self._module = None

    def save_companions(self, directory: Path) -> None:
        """Config, generation config and tokenizer, so that an artifact runs without the checkpoint."""
        # What was loaded tells more than the file: arguments of from_pretrained replace fields of the config.
        write_json(directory / "config.json", self.config() if self._module is None else described_config(self._module))
        if self._module is not None:
            save_generation_config(self._module, directory)
        self._save_tokenizer(directory / "tokenizer")

    def _save_tokenizer(self, directory: Path) -> None:
        import transformers

        report(f"reading the tokenizer of {self.name}")
        names = ("gguf_file", "revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "subfolder")
        arguments = {key: self._arguments[key] for key in names if key in self._arguments}
        try:
            with quiet_transformers():
                tokenizer = transformers.AutoTokenizer.from_pretrained(self._location, **arguments)
        except Exception as error:  # noqa: BLE001 - Transformers has no one error for "there is no tokenizer"
            logger.info("%s has no tokenizer that Transformers can load: %s", self.name, first_line(error))
            return
        # Some classes alone know which inputs their model reads; the artifact is read without them.
        tokenizer.init_kwargs["model_input_names"] = list(tokenizer.model_input_names)
        with quiet_transformers():
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
        content = plain_config(self._config_object())
        memo.parent.mkdir(parents=True, exist_ok=True)
        draft = memo.with_suffix(f".{os.getpid()}")
        write_json(draft, content)
        draft.replace(memo)
        return content

    def _config_object(self) -> Any:
        import transformers

        report(f"reading the metadata of {self._arguments['gguf_file']}")
        arguments = {key: value for key, value in self._arguments.items() if key not in ("dtype", "config")}
        try:
            with quiet_transformers():
                return transformers.AutoConfig.from_pretrained(self._location, **arguments)
        except Exception as error:
            raise CheckpointError(f"the metadata of {self.name} cannot be read: {first_line(error)}") from error

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
            with quiet_hub():
                return Path(hf_hub_download(self._id, name, subfolder=subfolder, **arguments))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
            raise CheckpointError(
                f"'{self._id}' is neither a local folder nor a model that the hub gives: {first_line(error)}; check the "
                "spelling, the network, or the access rights of your token"
            ) from error

    def _optional_file(self, name: str) -> Path | None:
        """A file relative to the root of the checkpoint, or `None` if the checkpoint has none of that name."""
        if self._folder is not None:
            path = self._folder / name
            return path if path.is_file() else None
        # All files of one checkpoint come from one commit, also when the branch moves meanwhile.
        return optional_hub_file(self._id, name, revision=self._commit(), arguments=self._arguments)

    def _commit(self) -> str:
        """The hub's commit: cached files lie in ``snapshots/<commit>/``."""
        path = self._file(self._arguments.get("gguf_file") or "config.json")
        parts = path.parts
        return parts[parts.index("snapshots") + 1] if "snapshots" in parts else content_digest(path)


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text or text.endswith(".gguf")


def _jsonable_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in arguments.items():
        if hasattr(value, "to_dict"):
            plain[name] = content_of(plain_config(value))
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
