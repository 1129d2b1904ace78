"""A checkpoint: a local folder, a hub id, or a GGUF file."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.artifacts import content_digest
from qeff_framework.artifacts.disk import require_space, told_bytes
from qeff_framework.artifacts.memory import announce_memory
from qeff_framework.contracts import PackedMatrix
from qeff_framework.errors import CheckpointError
from qeff_framework.progress import report
from qeff_framework.sources import adapters, files, quantisation, remote_code
from qeff_framework.sources import arguments as known
from qeff_framework.sources.checkpoint_config import CheckpointConfig
from qeff_framework.sources.checkpoint_files import CheckpointFiles, digest
from qeff_framework.sources.configs import checked_module, plain_config, save_generation_config, write_json
from qeff_framework.sources.described import described_config
from qeff_framework.sources.gguf_header import has_stored_form
from qeff_framework.sources.gguf_metadata import refuse_unread_tensors, stated_pooling
from qeff_framework.sources.loading_report import (
    LoadingReport,
    absent_members,
    conversion_failures,
    judge_loading,
    refuse_integer_weights,
    some,
)
from qeff_framework.sources.lora import LoraAdapter
from qeff_framework.sources.module import ModuleSource
from qeff_framework.sources.places import HubRepository, LocalFolder
from qeff_framework.sources.preprocessing import Preprocessing
from qeff_framework.sources.quantized.formats import QuantizedCheckpoint
from qeff_framework.sources.quantized.loading import load_dequantised
from qeff_framework.sources.quiet import captured_transformers, first_line, quiet_transformers
from qeff_framework.sources.references import (
    PlacedShards,
    WatchedFiles,
    bytes_to_write,
    export_memory,
    loading_memory,
    read_buffers,
    reading_nothing,
)
from qeff_framework.sources.sentence_transformers import SentenceTransformersFolder
from qeff_framework.sources.torch_files import has_places
from qeff_framework.thread_quiet import swallowed_stderr

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

#: Attention that Transformers computes without another package.
_PLAIN_ATTENTION = ("eager", "sdpa", "flex_attention")
#: The part of an identity that a module in the hands of the caller adds.
_LENT = "module"


class CheckpointSource:
    """A checkpoint in a local folder or on the hub, with the keyword arguments of ``from_pretrained``.

    Raises:
        OptionError: an argument that neither Transformers' loader nor the checkpoint's config has.
        CheckpointError: there is no such checkpoint, or it is an adapter.
    """

    def __init__(self, name_or_path: str | os.PathLike[str], load_arguments: Mapping[str, Any]) -> None:
        arguments, self._overrides = known.split_arguments(load_arguments)
        text = os.fspath(name_or_path)
        if not text.strip():
            # A path of nothing is the current directory.
            raise CheckpointError(
                "the name of the model is empty; give a folder with a config.json, a .gguf file, or a hub id"
            )
        adapter = arguments.get(known.ADAPTER)
        named_by: str | None = None
        if adapters.is_adapter_folder(text):
            named_by = text
            (text, revision), adapter = adapters.base_of_folder(text, given=adapter), text
            if revision is not None and not os.path.isdir(text):  # noqa: PTH112 - it may be the id of a hub
                arguments.setdefault("revision", revision)
        self._adapter = None if adapter is None else adapters.open_adapter(adapter, arguments)
        self._arguments = arguments
        self._files = CheckpointFiles(text, arguments, overrides=self._overrides, named_by=named_by)
        self.name = self._files.name
        if self._adapter is not None:
            self.name = f"{self.name}-{self._adapter.name}"
        self._config = CheckpointConfig(
            self._files,
            self.name,
            overrides=self._overrides,
            head_mapping=None if self._adapter is None else self._adapter.architecture_mapping,
            identity=self._files_identity,
        )
        self._preprocessing = Preprocessing(
            self._files, self.name, adapter=self._adapter, identity=self._files_identity
        )
        #: Whether an export may refer to the weights in the files; else the module is loaded with numbers.
        self.refers_to_files = self._adapter is None
        self._module: torch.nn.Module | None = None
        #: The caller has `_module` as well, and may change it.
        self.is_lent = False
        self._packed: QuantizedCheckpoint | None = None
        #: A module whose parameters point into the files of `_placed`.
        self._referring: torch.nn.Module | None = None
        self._placed: PlacedShards | WatchedFiles | None = None
        self._report = LoadingReport(unloaded=frozenset(), notes=())
        if self._overrides:
            self._config.check_overrides()
        if arguments.get("quantization_config"):
            quantisation.check_given(
                self._config.loaded(), arguments["quantization_config"], self.name, gguf=self._files.gguf
            )

    # --- identity -----------------------------------------------------------------------------------------------------

    def identity(self) -> Mapping[str, Any]:
        """Digests of the local files that are read, or the hub's commit; and every argument that changes what is loaded.

        Of a module that was lent, its content is a part as well.

        Raises:
            CheckpointError: weights are absent or incomplete, or the checkpoint is an adapter.
            OptionError: an argument's value cannot be part of a key.
        """
        if self._module is None or not self.is_lent:
            return self._files_identity()
        return {**self._files_identity(), _LENT: ModuleSource(self._module).identity()}

    def _files_identity(self) -> Mapping[str, Any]:
        self._files.refuse_adapter()
        deciding = {name: value for name, value in self._arguments.items() if name in known.DECIDING}
        deciding |= {known.KEEP: True} if self._arguments.get(known.KEEP) else {}
        parts = {"arguments": known.identifying({**deciding, **self._overrides}), **self._files.code_identity()}
        if self._files.gguf:
            parts["gguf"] = _version_of_gguf()
        read = {} if self._adapter is None else {path.name: path for path in self._adapter.files()}
        read |= self._preprocessing.files_of_adapter()
        if read:
            parts["adapter"] = {name: content_digest(path) for name, path in read.items()}
        return {**self._files.identity(), **parts}

    def config(self) -> Mapping[str, Any]:
        """The config, with the fields that the arguments replace; of a module that was lent, its own.

        Raises:
            CheckpointError: it is absent or damaged.
        """
        if self._module is not None and self.is_lent:
            return plain_config(self._module.config)
        self._files.refuse_adapter()
        return self._config.content()

    def sentence_transformers(self) -> SentenceTransformersFolder | None:
        """What follows the Transformer in a sentence-transformers checkpoint; `None` for any other checkpoint.

        What was saved with an adapter counts before what was saved with its base.
        """
        if self._adapter is not None:
            trained = SentenceTransformersFolder.find(self.name, self._adapter.optional_file)
            if trained is not None:
                return trained
        subfolder = self._arguments.get("subfolder") or ""
        return SentenceTransformersFolder.find(self.name, self._files.file_at_root, subfolder=subfolder)

    def stated_pooling(self) -> str | None:
        """See `ModelSource.stated_pooling`: the pooling type of a GGUF file, by which llama.cpp makes its embeddings."""
        return stated_pooling(self._files.file(self._files.gguf)) if self._files.gguf else None

    @property
    def trusted(self) -> bool:
        """Whether code that the checkpoint brings along may run."""
        return self._files.trusted

    # --- loading ------------------------------------------------------------------------------------------------------

    def load(self, auto_class: str) -> torch.nn.Module:
        """Loads the weights through Transformers.

        Raises:
            CheckpointError: files are absent or damaged; weights are missing, do not fit, or are quantised in a way that the
                loader does not know; or the checkpoint needs code that was not trusted.
        """
        if self._module is None:
            report(f"loading the weights of {self.name}")
            self._check_files()
            self._announce_loading()
            arguments = self._model_arguments()
            with captured_transformers() as said:
                try:
                    module, info = self._loaded(auto_class, arguments)
                except CheckpointError:
                    raise
                except Exception as error:
                    raise self._explained(error, auto_class, said) from error
            self._judge(module, info)
            if self._adapter is not None:
                report(f"merging the adapter {self._adapter.name}")
                held = self._adapter.merge(module)
                self._report = replace(self._report, unloaded=self._report.unloaded - held)
            self._module = checked_module(module)
        return ModuleSource(self._module).load(auto_class) if self.is_lent else self._module

    def lend(self, auto_class: str) -> torch.nn.Module:
        """As `load`, for a caller who may change the module: what it is then is exported, under a key of its own."""
        module = self.load(auto_class)
        self.is_lent = True
        return module

    def load_for_export(self, auto_class: str, directory: Path) -> torch.nn.Module:
        """As `load`, but weights of safetensors, torch and GGUF files are not read: parameters say what they are made from.

        Files that the export may refer to are put into `directory`; a GGUF file that holds nothing of the kind is read where it
        lies. A checkpoint that is quantised in another way, that takes an adapter, that is of another format, or that the loader
        cannot take so is loaded as `load` does.
        """
        if self._files.gguf:
            self._preprocessing.save_tokenizer(directory)
            # Made of a vocabulary in the file, it takes a fifth of the memory of an export that has no further use for it.
            self._preprocessing.forget_tokenizer()
        found = None if self._module is not None else self._deferral(directory)
        if found is None:
            return self.load(auto_class)
        placed, deferring = found
        report(f"reading what the files of {self.name} hold")
        arguments = self._model_arguments()
        try:
            with captured_transformers(), deferring:
                module, info = self._loaded(auto_class, arguments, deferred=True)
                read_buffers(module)
        except Exception as error:  # noqa: BLE001 - whatever it is, the loader tells it better with numbers
            logger.info(
                "the weights of %s are read, since they cannot be referred to: %s", self.name, first_line(error)
            )
            placed.remove()
            return self.load(auto_class)
        self._judge(module, info)
        announce_memory(f"the export of {self.name}", export_memory(module, directory))
        needed = 0 if self._arguments.get(known.KEEP) else bytes_to_write(module, directory)
        if needed:
            # Before the model is traced, which takes long. What stays packed is known when the graph is there.
            report(f"the export of {self.name} takes {told_bytes(needed)} of disk")
            require_space(directory, needed, f"writing the weights of {self.name} as numbers")
        self._referring, self._placed = checked_module(module), placed
        return self._referring

    def _check_files(self) -> None:
        """Raises `CheckpointError` for files that are damaged, before Transformers reads them."""
        self._files.check()
        self._preprocessing.check_files()

    def _announce_loading(self) -> None:
        """Says what the numbers of all weights take; of a repository on the hub only what its loader has fetched is known."""
        if isinstance(self._files.place, LocalFolder):
            stated = self.config().get("dtype") or self.config().get("torch_dtype")
            itemsize = 2 if stated in ("bfloat16", "float16") else 4
            read = self._files.local_weights()
            remedy = "" if any(path.suffix == ".safetensors" for path in read) else "save the model as safetensors"
            needed = loading_memory(read, itemsize=itemsize)
            announce_memory(f"loading {self.name} as float32", needed, remedy=remedy)

    def _deferral(
        self, directory: Path
    ) -> tuple[PlacedShards | WatchedFiles, contextlib.AbstractContextManager[None]] | None:
        """How weights are loaded without reading them, and where their files are; `None` where they are read."""
        if not self.refers_to_files:
            return None
        if self._files.gguf:
            return self._gguf_deferral(self._files.file(self._files.gguf), directory)
        if quantisation.take_settings(self._config.loaded(), self._arguments) is not None:
            self._check_files()
            # Packed weights are in no graph: the files are read where they lie.
            return WatchedFiles(self._files.fetched_weights(), name=self.name), contextlib.nullcontext()
        shards = self._shards()
        if not shards:
            return None
        self._check_files()
        placed = PlacedShards(shards, directory, name=self.name)
        return placed, reading_nothing(placed)

    def _gguf_deferral(
        self, file: Path, directory: Path
    ) -> tuple[PlacedShards | WatchedFiles, contextlib.AbstractContextManager[None]] | None:
        self._check_files()
        try:
            refers = has_stored_form(file)
        except ValueError:
            return None  # Transformers says what is wrong with the file.
        from qeff_framework.sources.gguf_weights import deferring_gguf

        if not refers or self._arguments.get(known.KEEP):
            # The few plain weights beside blocks that are computed here are no reason for a copy of all.
            return WatchedFiles([file], name=self.name), deferring_gguf(file, file)
        placed = PlacedShards({file: digest(file)}, directory, name=self.name)
        return placed, deferring_gguf(file, placed.path_of(file) or file)

    def keep_weights(self, used: Collection[str]) -> Mapping[str, str]:
        """See `ModelSource`. Raises `CheckpointError` where a file was written to since the weights were looked at."""
        return {} if self._placed is None else self._placed.keep(used)

    def _model_arguments(self) -> dict[str, Any]:
        """What Transformers' loader of models is given."""
        config = self._config.loaded()
        self._packed = self._packed_weights(config)
        if self._packed is None:
            quantisation.dequantise(config, self.name)
        given = {name: self._arguments[name] for name in known.FOR_MODEL if name in self._arguments}
        attention = given.get("attn_implementation") or getattr(config, "_attn_implementation", None)
        if isinstance(attention, str) and attention not in _PLAIN_ATTENTION:
            # A package for GPUs, which the graph has no use for.
            given["attn_implementation"] = "eager"
        return {
            **quantisation.loading_arguments(self._arguments),
            **given,
            **self._files.loader_arguments(),
            "config": config,
            "dtype": "float32",
            "output_loading_info": True,
            # A mismatch is told with the names of the weights, which the loader's own error does not have.
            "ignore_mismatched_sizes": True,
        }

    def _loaded(
        self, auto_class: str, arguments: Mapping[str, Any], *, deferred: bool = False
    ) -> tuple[Any, Mapping[str, Any]]:
        """What Transformers' loader returns: the module, and its report."""
        import transformers

        # The GGUF reader draws a progress bar that no setting turns off.
        with swallowed_stderr(), contextlib.ExitStack() as stack:
            if self._files.gguf and not deferred:
                from qeff_framework.sources.gguf_weights import loading_gguf

                stack.enter_context(loading_gguf())
            if self._packed is not None:
                return load_dequantised(
                    self._packed, auto_class, self._files.location, arguments["config"], arguments, deferred=deferred
                )
            module, info = getattr(transformers, auto_class).from_pretrained(self._files.location, **arguments)
        return module, info

    def _shards(self) -> dict[Path, str]:
        """The files of weights that the loader reads, with their digests; empty where weights cannot be referred to."""
        if quantisation.is_stated(self._config.loaded()):
            return {}
        found = self._files.certain_weights()
        shards = [path for path in found if not path.name.endswith(".json")]
        names = {path.name for path in shards}
        if len(names) < len(shards) or not all(path.suffix == ".safetensors" or has_places(path) for path in shards):
            return {}
        return {path: digest(path) for path in shards}

    def refuse_changed(self, identity: Mapping[str, Any]) -> None:
        """Raises `CheckpointError` where files were written since `identity` was computed: the key is that of other contents."""
        if self._files_identity() != {name: part for name, part in identity.items() if name != _LENT}:
            raise CheckpointError(
                f"the files of {self.name} changed while they were read; run again when they are complete"
            )

    def unloaded(self) -> frozenset[str]:
        """Parameters and buffers of the module that the checkpoint did not hold; what they contain means nothing."""
        return self._report.unloaded

    def packed_matrices(self, module: torch.nn.Module) -> Mapping[str, PackedMatrix]:
        """Parameters of `module` that stay in the checkpoint's blocks, where ``keep_quantized=True`` asks for it.

        Raises:
            CheckpointError: it does, and there is no such weight.
        """
        if not self._arguments.get(known.KEEP):
            return {}
        from qeff_framework.sources.quantized import gguf
        from qeff_framework.sources.quantized.keeping import packed_matrices

        weights = () if self._packed is None else self._packed.weights()
        found = packed_matrices(
            gguf.weights(self._files.file(self._files.gguf)) if self._files.gguf else weights, module
        )
        if not found:
            raise CheckpointError(
                f"keep_quantized=True cannot be done: {self.name} holds no matrix as levels of up to 8 bits in blocks of "
                "adjacent inputs (AWQ, GPTQ without an order of activations, pack-quantized of compressed-tensors, Q4_0, Q5_0 "
                "and Q8_0 of GGUF); leave it out"
            )
        return found

    def notes(self) -> tuple[str, ...]:
        """What loading found that is worth a warning."""
        return self._report.notes

    def release(self) -> None:
        """The weights can be loaded again: give their memory back. A module that was lent is kept with its changes."""
        if self.is_lent:
            return
        self._module = self._referring = self._placed = self._packed = None

    def save_companions(self, directory: Path) -> None:
        """Config, generation config and tokenizer, so that an artifact runs without the checkpoint."""
        # What was loaded tells more than the file, in which layers may have other numbers.
        module = self._referring if self._module is None else self._module
        write_json(directory / files.CONFIG, self.config() if module is None else described_config(module))
        if module is not None:
            save_generation_config(module, directory)
        self._preprocessing.save_tokenizer(directory)

    # --- preprocessing ------------------------------------------------------------------------------------------------

    def take_tokenizer_of(self, adapter: LoraAdapter, *, named_by: str | None) -> None:
        """Reads texts with the tokenizer that was saved with `adapter`, if any. `named_by`: the adapter that names this model."""
        self._preprocessing.take_tokenizer_of(adapter)
        self._files.named_by = named_by

    def reads_texts_as(self, adapter: LoraAdapter) -> bool:
        """See `Preprocessing.reads_texts_as`."""
        return self._preprocessing.reads_texts_as(adapter)

    def tokenizer_problem(self) -> str | None:
        """See `Preprocessing.tokenizer_problem`."""
        return self._preprocessing.tokenizer_problem()

    def require_tokenizer(self) -> None:
        """See `Preprocessing.require_tokenizer`."""
        self._preprocessing.require_tokenizer()

    def tokenizer(self) -> Any:
        """See `Preprocessing.tokenizer`."""
        return self._preprocessing.tokenizer()

    def has_chat_template(self) -> bool:
        """See `Preprocessing.has_chat_template`."""
        return self._preprocessing.has_chat_template()

    def processor(self, part: str = "AutoProcessor") -> Any:
        """See `Preprocessing.processor`."""
        return self._preprocessing.processor(part)

    def generation_config(self) -> Mapping[str, Any]:
        """What ``generation_config.json`` holds; empty where there is none."""
        return self._files.generation_config()

    # --- the loader ---------------------------------------------------------------------------------------------------

    def _packed_weights(self, config: Any) -> QuantizedCheckpoint | None:
        """The weights of a checkpoint that is quantised by a method read here; takes the statement out of `config`."""
        settings = None if self._files.gguf else quantisation.take_settings(config, self._arguments)
        if settings is None:
            return None
        return QuantizedCheckpoint(settings, self._files.fetched_weights(), self.name)

    def _judge(self, module: torch.nn.Module, info: Mapping[str, Any]) -> None:
        self._files.refuse_stale(type(module), type(getattr(module, "config", None)))
        allowed = bool(self._arguments.get("ignore_mismatched_sizes"))
        try:
            self._report = judge_loading(info, module, self.name, mismatch_allowed=allowed)
        except CheckpointError as error:
            if info["mismatched_keys"] and (absent := self._absent_members()):
                raise CheckpointError(f"{error}; {absent}") from error
            raise
        if self._files.gguf:
            from qeff_framework.sources.gguf_weights import unread_tensors

            file = self._files.file(self._files.gguf)
            refuse_unread_tensors(type(module).__name__, unread_tensors(file, module), file, is_tied=_is_tied(module))
        if (
            isinstance(self._files.place, LocalFolder)
            and self._packed is None
            and not quantisation.is_quantised(module)
        ):
            read = self._files.local_weights()
            refuse_integer_weights(read, module, self.name, unread=info["unexpected_keys"])

    def _explained(self, error: Exception, auto_class: str, said: list[str]) -> CheckpointError:
        """What to raise for an error of the loader: the damaged file if there is one."""
        folder = self._files.place.folder()
        if folder is not None and not self._files.gguf:
            try:
                # What the hub has given was not looked at before the loader read it.
                if isinstance(self._files.place, HubRepository):
                    files.check_companions(folder)
                    files.check_weight_files(path for path in sorted(folder.iterdir()) if path.is_file())
                _check_generation_config(folder)
            except CheckpointError as damage:
                return damage
        told = conversion_failures(said)
        if told and (absent := self._absent_members()):
            told = f"{told}; {absent}"
        told = told or _told(error)
        if isinstance(error, KeyError) and (stated := _stating(self.config(), error.args[0] if error.args else None)):
            told = f"{told}: its config.json states {stated}, which the installed Transformers does not know"
        elif not self._files.gguf and (doubts := self._config.doubts()):
            told = f"{told}; of its config.json, {doubts}"
        if self._files.gguf:
            told = f"{told}; is {self._files.file(self._files.gguf)} complete? If not, download it again"
        return CheckpointError(f"{self.name} cannot be loaded as {auto_class}: {told}")

    def _absent_members(self) -> str:
        """Which weights of a list, such as that of the experts, the files do not hold: the loader stacks what is there."""
        found = self._files.certain_weights()
        shards = [path for path in found if path.suffix == ".safetensors"]
        absent = absent_members(name for path in shards for name in files.safetensors_header(path))
        return f"its files do not hold {some(absent)}, but others of that kind: download them again" if absent else ""


def _version_of_gguf() -> str:
    """Of the package that computes the numbers of blocks; newer releases of Transformers read some files without it."""
    import importlib_metadata

    try:
        return importlib_metadata.version("gguf")
    except importlib_metadata.PackageNotFoundError:
        return "none"


def _is_tied(module: torch.nn.Module) -> bool:
    return bool(getattr(module.config, "tie_word_embeddings", False))


def _stating(config: Mapping[str, Any], value: object) -> str:
    """The field of a config, or of a part of it, that holds `value`; empty where none does."""
    for name, content in config.items():
        if isinstance(content, Mapping):
            inner = _stating(content, value)
            if inner:
                return f"{name}.{inner}"
        elif isinstance(value, str) and content == value:
            return f"{name}={value!r}"
    return ""


def _told(error: Exception) -> str:
    """What an error of the loader comes to, on one line."""
    if isinstance(error, pickle.UnpicklingError):
        # Torch's own words advise to run whatever the file holds.
        return (
            "a file of torch among its weights holds more than plain tensors, such as a whole module or tensors of torchao's "
            "classes; load it where it was made, and save the checkpoint as safetensors (save_pretrained)"
        )
    if sys.flags.optimize > 1:
        return (
            f"{first_line(error)}; Python was started without docstrings (-OO, PYTHONOPTIMIZE=2), which Transformers reads: "
            "start it without that option"
        )
    return f"{first_line(error)}{remote_code.trust_hint(error)}"


def _check_generation_config(folder: Path) -> None:
    """Raises `CheckpointError` for values that Transformers does not take: its own error does not name the file."""
    import transformers

    if not (folder / files.GENERATION_CONFIG).is_file():
        return
    try:
        with quiet_transformers():
            transformers.GenerationConfig.from_pretrained(folder)
    except Exception as error:
        path = folder / files.GENERATION_CONFIG
        raise CheckpointError(
            f"{path} is not as Transformers takes it: {first_line(error)}; mend or remove it"
        ) from error
