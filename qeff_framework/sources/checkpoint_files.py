"""The files of a checkpoint: where they lie, which of them are read, and what stands for their content."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qeff_framework.artifacts import content_digest
from qeff_framework.errors import CheckpointError, UnsupportedModelError
from qeff_framework.sources import adapters, files, remote_code
from qeff_framework.sources import arguments as known
from qeff_framework.sources.hub import optional_hub_file
from qeff_framework.sources.places import HubRepository, LocalFolder
from qeff_framework.sources.sentence_transformers import MODULES_FILE, first_module, transformer_subfolder


class CheckpointFiles:
    """A local folder, a GGUF file, or a repository on the hub at one commit, with the arguments of ``from_pretrained``.

    Raises:
        CheckpointError: there is no such checkpoint, or it is an adapter.
    """

    def __init__(
        self, text: str, arguments: dict[str, Any], *, overrides: Mapping[str, Any], named_by: str | None
    ) -> None:
        """Opens what `text` names, without reading weights.

        Args:
            text: a folder, a GGUF file, or an id of the hub.
            arguments: those that the loader takes; what `text` says of them is added.
            overrides: fields of the config that the caller replaces.
            named_by: the adapter whose config names this checkpoint; `None` where the caller does.
        """
        path = Path(text).expanduser()
        if path.suffix == ".gguf" and path.is_file():
            arguments.setdefault("gguf_file", path.name)
            path = path.parent
            text = str(path)
        self.arguments = arguments
        self.gguf: str | None = arguments.get("gguf_file")
        self.named_by = named_by
        self.place: LocalFolder | HubRepository
        if path.is_dir():
            if not {"gguf_file", "subfolder"} & {*arguments} and not (path / files.CONFIG).exists():
                # The older layout of sentence-transformers, in which the Transformer lies in a folder of its own.
                arguments.update({"subfolder": inner} if (inner := transformer_subfolder(path)) else {})
            self.place = LocalFolder(path.resolve(), arguments.get("subfolder") or "")
            _check_folder(self.place, self.gguf)
        elif path.is_file():
            raise CheckpointError(f"{text} is a file; give the folder that it lies in, or a .gguf file")
        elif _looks_like_path(text):
            raise CheckpointError(
                f"model folder {text} does not exist; give a folder with a config.json, a .gguf file, or a hub id like "
                "'organisation/name'"
            )
        else:
            self.place = HubRepository(
                text, arguments, revision=arguments.get("revision"), subfolder=arguments.get("subfolder") or ""
            )
        #: For people.
        self.name = self._display_name(text)
        self._overrides = overrides
        self._adapter_refused = False

    def _display_name(self, text: str) -> str:
        if self.gguf:
            return Path(self.gguf).stem
        return self.place.top.name if isinstance(self.place, LocalFolder) else text

    @property
    def trusted(self) -> bool:
        """Whether code that the checkpoint brings along may run."""
        return bool(self.arguments.get(known.TRUST))

    # --- single files -------------------------------------------------------------------------------------------------

    def file(self, name: str) -> Path:
        """A file of the checkpoint, fetched from the hub when it is not local. Raises `CheckpointError` where there is none."""
        try:
            return self.place.file(name)
        except FileNotFoundError as error:
            if name == files.CONFIG:
                adapters.refuse_adapter(self.place, self.name, alone=True, names=(adapters.CONFIG,))
                _refuse_pipeline(self.place.optional_file(files.PIPELINE_INDEX), self.name)
            raise CheckpointError(f"{error}; give a checkpoint as Transformers saves it") from error
        except CheckpointError as error:
            if self.named_by is not None:
                raise adapters.base_is_missing(self.named_by, self.place.location, str(error)) from error
            # Without the network the hub cannot say that there is no config.json; what else is in the cache says why.
            if name == files.CONFIG and isinstance(self.place, HubRepository):
                if self.place.cached(adapters.CONFIG) is not None:
                    adapters.refuse_adapter(self.place, self.name, alone=True, names=(adapters.CONFIG,))
                _refuse_pipeline(self.place.cached(files.PIPELINE_INDEX), self.name)
            raise

    def optional_file(self, name: str) -> Path | None:
        """A file of the checkpoint; `None` if there is none of that name."""
        if isinstance(self.place, HubRepository):
            self.commit()
        return self.place.optional_file(name)

    def file_at_root(self, name: str) -> Path | None:
        """A file relative to the root of the checkpoint, whatever its subfolder; `None` if there is none of that name."""
        if isinstance(self.place, LocalFolder):
            return LocalFolder(self.place.top).optional_file(name)
        return optional_hub_file(self.place.location, name, revision=self.commit(), arguments=self.arguments)

    def config(self) -> Mapping[str, Any]:
        """What ``config.json`` holds; empty for a GGUF file."""
        return {} if self.gguf else files.read_json(self.file(files.CONFIG), with_field="model_type")

    def tokenizer_config(self) -> Mapping[str, Any]:
        """Empty where it is absent or damaged: then it points to no code either."""
        path = None if self.gguf else self.optional_file(files.TOKENIZER_CONFIG)
        with contextlib.suppress(CheckpointError):
            return {} if path is None else files.read_json(path)
        return {}

    def generation_config(self) -> Mapping[str, Any]:
        """What ``generation_config.json`` holds; empty where there is none."""
        path = None if self.gguf else self.optional_file(files.GENERATION_CONFIG)
        return {} if path is None else files.read_json(path)

    # --- weights ------------------------------------------------------------------------------------------------------

    def local_weights(self) -> tuple[Path, ...]:
        """The files of weights that the loader reads, in their order; none of a repository."""
        if not isinstance(self.place, LocalFolder):
            return ()
        if self.gguf:
            return (self.place.root / self.gguf,)
        return files.weight_files(self.place.root, **self._choices())

    def fetched_weights(self) -> tuple[Path, ...]:
        """As `local_weights`; those of a repository are fetched."""
        if isinstance(self.place, LocalFolder):
            return self.local_weights()
        return files.fetched_weight_files(self.optional_file, self.file, **self._choices())

    def certain_weights(self) -> tuple[Path, ...]:
        """As `fetched_weights`; empty where the loader may take others, or says itself what is missing."""
        if isinstance(self.place, LocalFolder):
            return self.local_weights()
        if self._explicit_weights() is not None:
            return ()
        try:
            return self.fetched_weights()
        except CheckpointError:
            return ()

    def _choices(self) -> dict[str, Any]:
        return {
            "variant": self.arguments.get("variant"),
            "use_safetensors": self.arguments.get("use_safetensors"),
            "explicit": self._explicit_weights(),
        }

    def _explicit_weights(self) -> str | None:
        """The file of weights that the config names, where it does."""
        name = "transformers_weights"
        if "config" in self.arguments:
            return getattr(self.arguments["config"], name, None)
        return {**self.config(), **self._overrides}.get(name)

    def check(self) -> None:
        """Raises `CheckpointError` for local files of weights that are damaged, before Transformers reads them."""
        if isinstance(self.place, LocalFolder):
            files.check_weight_files(self.local_weights())

    def check_companions(self) -> None:
        """Raises `CheckpointError` for files beside the weights that are damaged."""
        folder = self.place.folder()
        if not self.gguf and folder is not None:
            files.check_companions(folder)

    def refuse_adapter(self) -> None:
        """Raises `CheckpointError` where the hub's repository holds an adapter; a folder was looked at when it was opened."""
        if isinstance(self.place, HubRepository) and not self._adapter_refused:
            # Transformers looks at the top of the repository as well.
            top = HubRepository(self.place.location, self.arguments, revision=self.commit())
            for place in (self.place, top):
                adapters.refuse_adapter(place, self.name, alone=False, names=(adapters.CONFIG,))
            self._adapter_refused = True

    # --- identity -----------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """Digests of the local files that are read, or the hub's commit and which of its files are."""
        if isinstance(self.place, LocalFolder):
            found = self._content_files(self.place)
            return {"files": {name: digest(path) for name, path in sorted(found.items())}}
        chosen = ("gguf_file", "subfolder", "variant", "use_safetensors")
        selected = {name: self.arguments[name] for name in chosen if self.arguments.get(name) is not None}
        return {"hub": self.place.location, "commit": self.commit(), "selected": selected}

    def _content_files(self, place: LocalFolder) -> dict[str, Path]:
        """The files that are read, by name."""
        found = {path.relative_to(place.root).as_posix(): path for path in self.local_weights()}
        return found if self.gguf else {**found, **dict(files.companion_files(place.root))}

    def commit(self) -> str | None:
        """The hub's commit that everything is read from; `None` for a folder."""
        if not isinstance(self.place, HubRepository):
            return None
        main = self.gguf or files.CONFIG
        self.file(main)
        return self.place.commit(main)

    def code_identity(self) -> dict[str, Any]:
        """What stands for the code that may run. Where a checkpoint has none, it does not matter whether it may."""
        configs = (self.config(), self.tokenizer_config()) if self.trusted and not self.gguf else ()
        found = [reference for _, reference in remote_code.references(*configs)]
        if not found:
            return {}
        others = remote_code.other_repositories(*configs)
        code: dict[str, Any] = {name: self._code_commit(name, file) for name, file in sorted(others.items())}
        if isinstance(self.place, LocalFolder):
            code["files"] = {name: content_digest(path) for name, path in files.code_files(self.place.top)}
        elif self.arguments.get("code_revision"):
            code["own"] = self._code_commit(self.place.location, remote_code.file_of(found[0]))
        return {"code": code}

    def refuse_stale(self, *kinds: type) -> None:
        """Raises `CheckpointError` where a class is from code that has changed since: the key is that of what is there."""
        if isinstance(self.place, LocalFolder):
            for kind in kinds:
                remote_code.refuse_stale(kind, self.place.top, self.name)

    def _code_commit(self, repository: str, file: str) -> str:
        revision = self.arguments.get("code_revision")
        return HubRepository(repository, self.arguments, revision=revision).commit(file)

    def _code_revision(self, config: Mapping[str, Any]) -> str | None:
        """The commit of the code that `config` points to, where that is another repository's."""
        given: str | None = self.arguments.get("code_revision")
        others = remote_code.other_repositories(config) if self.trusted else {}
        if len(others) != 1 or any("--" not in reference for _, reference in remote_code.references(config)):
            return given
        [(repository, file)] = others.items()
        return self._code_commit(repository, file)

    # --- for Transformers ---------------------------------------------------------------------------------------------

    @property
    def location(self) -> str:
        """What Transformers is given; of a GGUF file its folder, since the loader would look for its bare name elsewhere."""
        return str(self.file(self.gguf).parent) if self.gguf else self.place.location

    def loader_arguments(self, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What every load has in common. `config` is the one that may point to code, by default ``config.json``."""
        chosen = {name: value for name, value in self.arguments.items() if name in known.FETCHING}
        # Said explicitly: without it Transformers asks at the terminal.
        chosen[known.TRUST] = self.trusted
        if self.gguf:
            return {**chosen, "gguf_file": str(self.file(self.gguf))}
        chosen["subfolder"] = self.arguments.get("subfolder") or ""
        if (commit := self.commit()) is not None:
            chosen["revision"] = commit
        if (code := self._code_revision(self.config() if config is None else config)) is not None:
            chosen["code_revision"] = code
        return chosen


def digest(path: Path) -> str:
    """SHA-256 of a file's content; of a blob in the hub's cache, its name."""
    return files.blob_digest(path) or content_digest(path)


def _check_folder(place: LocalFolder, gguf: str | None) -> None:
    """Raises `CheckpointError` for a folder that is no checkpoint, or holds an adapter."""
    root = place.root
    has_model = (root / (gguf or files.CONFIG)).exists() or (root / (gguf or files.CONFIG)).is_symlink()
    for folder in {place.top, root}:
        adapters.refuse_adapter(LocalFolder(folder), place.top.name, alone=not has_model)
    if has_model:
        return
    _refuse_pipeline(LocalFolder(root).optional_file(files.PIPELINE_INDEX), root.name)
    if gguf:
        raise CheckpointError(f"{root} has no file {gguf}; name a GGUF file of that folder")
    ggufs = sorted(path.name for path in root.glob("*.gguf"))
    hint = f"; it holds {', '.join(ggufs)}: pass gguf_file={ggufs[0]!r}" if ggufs else ": it is not a checkpoint"
    if (root / MODULES_FILE).is_file():
        first = first_module(root)
        told = f"begins with '{first}', with no" if first else "names no"
        hint = f", and its {MODULES_FILE} {told} Transformer in a folder of its own"
    raise CheckpointError(f"model folder {root} has no config.json{hint}")


def _refuse_pipeline(index: Path | None, name: str) -> None:
    """Raises `UnsupportedModelError` where `index`, that of a pipeline of diffusers, is there."""
    if index is None:
        return
    kind = ""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        kind = str(json.loads(index.read_text(encoding="utf-8")).get("_class_name") or "")
    raise UnsupportedModelError(
        f"{name} is a pipeline of diffusers{f' ({kind})' if kind else ''}, whose components are models of their own; open it "
        "with QEFFDiffusionPipeline.from_pretrained, on the command line with --task text-to-image"
    )


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text or text.endswith(".gguf")
