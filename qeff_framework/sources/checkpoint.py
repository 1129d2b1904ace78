"""A checkpoint: a local folder, a hub id, or a GGUF file."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import pickle
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.artifacts import cache_key, content_digest, store_root
from qeff_framework.artifacts.disk import is_disk_full, require_space, told_bytes
from qeff_framework.artifacts.memory import announce_memory
from qeff_framework.contracts import PackedMatrix
from qeff_framework.errors import CheckpointError, OptionError, UnsupportedModelError
from qeff_framework.progress import report
from qeff_framework.rare_collections import rare_collections
from qeff_framework.sources import adapters, files, quantisation, remote_code
from qeff_framework.sources import arguments as known
from qeff_framework.sources.code_digests import core_digest
from qeff_framework.sources.configs import (
    checked_module,
    number_as_text,
    odd_field,
    padding_beyond_vocabulary,
    plain_config,
    rotation_without_base,
    save_generation_config,
    write_json,
)
from qeff_framework.sources.described import described_config
from qeff_framework.sources.gguf_header import holds_blocks, library_reads_vocabulary, quick_reading
from qeff_framework.sources.gguf_merges import lean_merges
from qeff_framework.sources.gguf_metadata import (
    complete_config,
    refuse_unknown_split,
    refuse_unread_tensors,
    stated_pooling,
)
from qeff_framework.sources.hub import optional_hub_file
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
from qeff_framework.sources.quantized.formats import QuantizedCheckpoint
from qeff_framework.sources.quantized.loading import load_dequantised
from qeff_framework.sources.quiet import captured_transformers, first_line, missing_library, quiet_transformers
from qeff_framework.sources.references import (
    PlacedShards,
    WatchedFiles,
    bytes_to_write,
    export_memory,
    loading_memory,
    read_buffers,
    reading_nothing,
)
from qeff_framework.sources.sentence_transformers import (
    MODULES_FILE,
    SentenceTransformersFolder,
    first_module,
    transformer_subfolder,
)
from qeff_framework.sources.tokenizers import SERIALIZED, CheckpointTokenizer, unfit_class
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
        #: The adapter whose config names this model; `None` where the caller does.
        self._named_by: str | None = None
        #: Transformers' warnings about the config.
        self._said_of_config: list[str] = []
        if adapters.is_adapter_folder(text):
            self._named_by = text
            (text, revision), adapter = adapters.base_of_folder(text, given=adapter), text
            if revision is not None and not os.path.isdir(text):  # noqa: PTH112 - it may be the id of a hub
                arguments.setdefault("revision", revision)
        self._adapter = None if adapter is None else adapters.open_adapter(adapter, arguments)
        self._tokenizer_of = self._adapter
        path = Path(text).expanduser()
        if path.suffix == ".gguf" and path.is_file():
            arguments.setdefault("gguf_file", path.name)
            path = path.parent
            text = str(path)
        self._arguments = arguments
        self._gguf: str | None = arguments.get("gguf_file")
        self._place: LocalFolder | HubRepository
        if path.is_dir():
            if not {"gguf_file", "subfolder"} & {*arguments} and not (path / files.CONFIG).exists():
                # The older layout of sentence-transformers, in which the Transformer lies in a folder of its own.
                arguments.update({"subfolder": inner} if (inner := transformer_subfolder(path)) else {})
            self._place = LocalFolder(path.resolve(), arguments.get("subfolder") or "")
            _check_folder(self._place, self._gguf)
        elif path.is_file():
            raise CheckpointError(f"{text} is a file; give the folder that it lies in, or a .gguf file")
        elif _looks_like_path(text):
            raise CheckpointError(
                f"model folder {text} does not exist; give a folder with a config.json, a .gguf file, or a hub id like "
                "'organisation/name'"
            )
        else:
            self._place = HubRepository(
                text, arguments, revision=arguments.get("revision"), subfolder=arguments.get("subfolder") or ""
            )
        self.name = self._display_name(text)
        if self._adapter is not None:
            self.name = f"{self.name}-{self._adapter.name}"
        self._adapter_refused = False
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
        self._tokenizer = CheckpointTokenizer(self._load_tokenizer, self._files_identity, self._doubts_about_tokenizer)
        if self._overrides:
            self._check_overrides()
        if arguments.get("quantization_config"):
            quantisation.check_given(
                self._config_object(), arguments["quantization_config"], self.name, gguf=self._gguf
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
        self._refuse_adapter()
        deciding = {name: value for name, value in self._arguments.items() if name in known.DECIDING}
        deciding |= {known.KEEP: True} if self._arguments.get(known.KEEP) else {}
        parts = {"arguments": known.identifying({**deciding, **self._overrides}), **self._code_identity()}
        if self._gguf:
            parts["gguf"] = _version_of_gguf()
        read = {} if self._adapter is None else {path.name: path for path in self._adapter.files()}
        read |= {} if self._tokenizer_of is None else self._tokenizer_of.tokenizer_files()
        read |= {} if self._adapter is None else self._adapter.processor_files()
        if read:
            parts["adapter"] = {name: content_digest(path) for name, path in read.items()}
        if isinstance(self._place, LocalFolder):
            found = self._content_files(self._place)
            return {"files": {name: _digest(path) for name, path in sorted(found.items())}, **parts}
        chosen = ("gguf_file", "subfolder", "variant", "use_safetensors")
        selected = {name: self._arguments[name] for name in chosen if self._arguments.get(name) is not None}
        return {"hub": self._place.location, "commit": self._commit(), "selected": selected, **parts}

    def config(self) -> Mapping[str, Any]:
        """The config, with the fields that the arguments replace.

        It is read from ``config.json``; through Transformers only where fields are replaced, and for a GGUF file, once, since
        that takes many seconds.
        """
        if self._module is not None and self.is_lent:
            return plain_config(self._module.config)
        self._refuse_adapter()
        if "config" in self._arguments:
            content: Mapping[str, Any] = plain_config(self._arguments["config"])
        else:
            content = self._remembered_config() if self._gguf or self._overrides else self._config_file()
        if isinstance(content.get("architectures"), str):
            # Of a text, each letter would be one.
            content = {**content, "architectures": [content["architectures"]]}
        mapping = None if self._adapter is None else self._adapter.architecture_mapping
        if mapping is None:
            return content
        # The head is the adapter's: its base is a language model.
        from transformers.models.auto import modeling_auto

        head = getattr(modeling_auto, mapping).get(content.get("model_type"))
        return content if head is None else {**content, "architectures": [head]}

    def sentence_transformers(self) -> SentenceTransformersFolder | None:
        """What follows the Transformer in a sentence-transformers checkpoint; `None` for any other checkpoint.

        What was saved with an adapter counts before what was saved with its base.
        """
        if self._adapter is not None:
            trained = SentenceTransformersFolder.find(self.name, self._adapter.optional_file)
            if trained is not None:
                return trained
        subfolder = self._arguments.get("subfolder") or ""
        return SentenceTransformersFolder.find(self.name, self._file_at_root, subfolder=subfolder)

    def stated_pooling(self) -> str | None:
        """See `ModelSource.stated_pooling`: the pooling type of a GGUF file, by which llama.cpp makes its embeddings."""
        return stated_pooling(self._file(self._gguf)) if self._gguf else None

    @property
    def trusted(self) -> bool:
        """Whether code that the checkpoint brings along may run."""
        return bool(self._arguments.get(known.TRUST))

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

        Files that the export may refer to are put into `directory`; a GGUF file that holds blocks is read where it lies. A
        checkpoint that is quantised in another way, that takes an adapter, that is of another format, or that the loader cannot
        take so is loaded as `load` does.
        """
        if self._gguf:
            self._save_tokenizer(directory)
            # Made of a vocabulary in the file, it takes a fifth of the memory of an export that has no further use for it.
            self._tokenizer.forget()
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
        announce_memory(f"the export of {self.name}", export_memory(module))
        if isinstance(placed, WatchedFiles) and not self._arguments.get(known.KEEP):
            # Before the model is traced, which takes long. What stays packed is known when the graph is there.
            needed = bytes_to_write(module)
            report(f"the export of {self.name} takes {told_bytes(needed)} of disk")
            require_space(directory, needed, f"writing the weights of {self.name} as numbers")
        self._referring, self._placed = checked_module(module), placed
        return self._referring

    def _announce_loading(self) -> None:
        """Says what the numbers of all weights take; of a repository on the hub only what its loader has fetched is known."""
        if isinstance(self._place, LocalFolder):
            stated = self.config().get("dtype") or self.config().get("torch_dtype")
            itemsize = 2 if stated in ("bfloat16", "float16") else 4
            read = self._weight_files(self._place)
            remedy = "" if any(path.suffix == ".safetensors" for path in read) else "save the model as safetensors"
            needed = loading_memory(read, itemsize=itemsize)
            announce_memory(f"loading {self.name} as float32", needed, remedy=remedy)

    def _deferral(
        self, directory: Path
    ) -> tuple[PlacedShards | WatchedFiles, contextlib.AbstractContextManager[None]] | None:
        """How weights are loaded without reading them, and where their files are; `None` where they are read."""
        if not self.refers_to_files:
            return None
        if self._gguf:
            return self._gguf_deferral(self._file(self._gguf), directory)
        if quantisation.take_settings(self._config_object(), self._arguments) is not None:
            self._check_files()
            # Packed weights are in no graph: the files are read where they lie.
            return WatchedFiles(self._fetched_weight_files(), name=self.name), contextlib.nullcontext()
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
            has_blocks = holds_blocks(file)
        except ValueError:
            return None  # Transformers says what is wrong with the file.
        from qeff_framework.sources.gguf_weights import deferring_gguf

        if has_blocks:
            # The graph cannot refer to blocks, and the few plain weights beside them are no reason for a copy of all.
            return WatchedFiles([file], name=self.name), deferring_gguf(file, file)
        placed = PlacedShards({file: _digest(file)}, directory, name=self.name)
        return placed, deferring_gguf(file, placed.path_of(file) or file)

    def keep_weights(self, used: Collection[str]) -> Mapping[str, str]:
        """See `ModelSource`. Raises `CheckpointError` where a file was written to since the weights were looked at."""
        return {} if self._placed is None else self._placed.keep(used)

    def _model_arguments(self) -> dict[str, Any]:
        """What Transformers' loader of models is given."""
        config = self._config_object()
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
            **self._loader_arguments(),
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
            if self._gguf and not deferred:
                from qeff_framework.sources.gguf_weights import loading_gguf

                stack.enter_context(loading_gguf())
            if self._packed is not None:
                return load_dequantised(
                    self._packed, auto_class, self._location, arguments["config"], arguments, deferred=deferred
                )
            module, info = getattr(transformers, auto_class).from_pretrained(self._location, **arguments)
        return module, info

    def _shards(self) -> dict[Path, str]:
        """The files of weights that the loader reads, with their digests; empty where weights cannot be referred to."""
        if quantisation.is_stated(self._config_object()):
            return {}
        place = self._place
        found = self._weight_files(place) if isinstance(place, LocalFolder) else self._fetched_weights()
        shards = [path for path in found if not path.name.endswith(".json")]
        names = {path.name for path in shards}
        if len(names) < len(shards) or not all(path.suffix == ".safetensors" or has_places(path) for path in shards):
            return {}
        return {path: _digest(path) for path in shards}

    def _fetched_weights(self) -> tuple[Path, ...]:
        """The files of weights of a repository on the hub, fetched; empty where the loader may take others."""
        if self._explicit_weights() is not None:
            return ()
        try:
            return self._fetched_weight_files()
        except CheckpointError:
            return ()  # The loader says what is missing.

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
        found = packed_matrices(gguf.weights(self._file(self._gguf)) if self._gguf else weights, module)
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
        self._save_tokenizer(directory)

    def _save_tokenizer(self, directory: Path) -> None:
        """Writes the tokenizer, unless it is there or cannot be loaded."""
        if (directory / files.TOKENIZER).exists() or self.tokenizer_problem() is not None:
            return
        try:
            self._tokenizer.save(directory / files.TOKENIZER)
        except Exception as error:
            if isinstance(error, OSError) and is_disk_full(error):
                raise
            if self._has_tokenizer_files():
                raise CheckpointError(
                    f"the tokenizer of {self.name} could be loaded before and cannot any more: {first_line(error)}; run again"
                ) from error
            logger.info("%s comes with no tokenizer", self.name)

    # --- tokenizer ----------------------------------------------------------------------------------------------------

    def take_tokenizer_of(self, adapter: LoraAdapter, *, named_by: str | None) -> None:
        """Reads texts with the tokenizer that was saved with `adapter`, if any. `named_by`: the adapter that names this model."""
        self._tokenizer_of, self._named_by = adapter, named_by

    def reads_texts_as(self, adapter: LoraAdapter) -> bool:
        """Whether its tokenizer has the tokens and the chat template of the one that was saved with `adapter`.

        One that cannot be loaded here is no other one: what reads texts says so.
        """
        import transformers

        if adapter is self._tokenizer_of or not adapter.tokenizer_files():
            return True
        with contextlib.suppress(Exception), quiet_transformers():
            fetching = {name: value for name, value in self._arguments.items() if name in known.FETCHING}
            fetching |= {known.TRUST: self.trusted, **adapter.tokenizer_arguments()}
            ours, other = self._tokenizer.tokenizer(), transformers.AutoTokenizer.from_pretrained(**fetching)
            return bool(ours.get_vocab() == other.get_vocab() and ours.chat_template == other.chat_template)
        return True

    def tokenizer_problem(self) -> str | None:
        """Why the tokenizer that the checkpoint comes with cannot be loaded here; `None` if it can, or there is none.

        Raises:
            CheckpointError: one of its files is damaged.
        """
        if not self._has_tokenizer_files():
            return None
        reason = self._tokenizer.problem()
        if reason is None:
            return None
        self._check_companions()
        return f"the tokenizer of {self.name} cannot be loaded: {reason}"

    def _doubts_about_tokenizer(self) -> str:
        """What the files of a tokenizer say about why it cannot be loaded; empty where they say nothing."""
        if self._tokenizer_of is not None and self._tokenizer_of.tokenizer_files():
            return ""
        path = None if self._gguf else self._optional_file(SERIALIZED)
        config = self._tokenizer_config()
        return "" if path is None or "auto_map" in config else unfit_class(path, config.get("tokenizer_class"))

    def require_tokenizer(self) -> None:
        """Raises `CheckpointError` with the reason where texts cannot be read with the checkpoint's own tokenizer."""
        reason = self._tokenizer.problem()
        if reason is not None:
            problem = self.tokenizer_problem()
            told = problem or f"{self.name} comes with no tokenizer that Transformers can load: {reason}"
            raise CheckpointError(f"{told}; without it texts cannot be read, only token ids in Python")

    def tokenizer(self) -> Any:
        """The tokenizer of Transformers. `require_tokenizer` must have passed."""
        return self._tokenizer.tokenizer()

    def has_chat_template(self) -> bool:
        """Whether its tokenizer renders conversations. `require_tokenizer` must have passed."""
        return self._tokenizer.has_chat_template()

    def _load_tokenizer(self) -> Any:
        import transformers

        report(f"reading the tokenizer of {self.name}")
        if self._tokenizer_of is not None and self._tokenizer_of.tokenizer_files():
            # Tokens were added for the adapter, or it was trained with another template.
            return transformers.AutoTokenizer.from_pretrained(**self._arguments_of(self._tokenizer_of))
        arguments = self._loader_arguments(self._tokenizer_config())
        if self._gguf:
            refuse_unknown_split(self._file(self._gguf))
        with quick_reading(with_vocabulary=not library_reads_vocabulary()), lean_merges(), rare_collections():
            tokenizer = transformers.AutoTokenizer.from_pretrained(self._location, **arguments)
        self._refuse_stale(type(tokenizer))
        return tokenizer

    def _arguments_of(self, adapter: LoraAdapter) -> dict[str, Any]:
        """Arguments of ``from_pretrained`` for what was saved with an adapter."""
        fetching = {name: value for name, value in self._arguments.items() if name in known.FETCHING}
        return {**fetching, known.TRUST: self.trusted, **adapter.tokenizer_arguments()}

    def processor(self, part: str = "AutoProcessor") -> Any:
        """The processor of Transformers that prepares images or sound: the adapter's, if one was saved with it, else the base's.

        Args:
            part: the class that loads what must be there of it. A classifier of sound comes without a tokenizer, which a
                processor of the same type cannot do without.

        Raises:
            CheckpointError: none can be loaded.
        """
        import transformers

        arguments = {"pretrained_model_name_or_path": self._location, **self._loader_arguments()}
        if self._adapter is not None and self._adapter.processor_files():
            arguments = self._arguments_of(self._adapter)
        problem: Exception | None = None
        for name in dict.fromkeys(("AutoProcessor", part)):
            try:
                with quiet_transformers():
                    load: Any = getattr(transformers, name).from_pretrained
                    found = load(**arguments)
                # Where the folder has nothing else, `AutoProcessor` returns the tokenizer.
                if not isinstance(found, transformers.PreTrainedTokenizerBase):
                    return found
                problem = CheckpointError("there is a tokenizer alone, which reads neither images nor sound")
            except Exception as error:  # noqa: BLE001  (whatever a processor raises is told)
                problem = error
        if isinstance(problem, ImportError):
            raise CheckpointError(
                f"the processor of {self.name}, which prepares its input, cannot be loaded here: {missing_library(problem)}"
            ) from problem
        # What the library says about its hub is no help with a folder.
        told = first_line(problem).partition(". If you were trying to load it from")[0] if problem is not None else ""
        stated = any(self._optional_file(name) for name in ("preprocessor_config.json", "processor_config.json"))
        missing = (
            "tokenizer.json, or the vocabulary of its tokenizer, which the processor holds as well"
            if stated and not self._has_tokenizer_files()
            else "preprocessor_config.json or processor_config.json"
        )
        raise CheckpointError(
            f"the processor of {self.name}, which prepares its input, cannot be loaded: {told}; add the checkpoint's {missing}"
        ) from problem

    def generation_config(self) -> Mapping[str, Any]:
        """What ``generation_config.json`` holds; empty where there is none."""
        path = None if self._gguf else self._optional_file(files.GENERATION_CONFIG)
        return {} if path is None else files.read_json(path)

    def _has_tokenizer_files(self) -> bool:
        if self._tokenizer_of is not None and self._tokenizer_of.tokenizer_files():
            return True
        if self._gguf or not isinstance(self._place, LocalFolder):
            return True
        return files.has_tokenizer_files(name for name, _ in files.companion_files(self._place.root))

    def _tokenizer_config(self) -> Mapping[str, Any]:
        """Empty where it is absent or damaged: then it points to no code either."""
        path = None if self._gguf else self._optional_file(files.TOKENIZER_CONFIG)
        with contextlib.suppress(CheckpointError):
            return {} if path is None else files.read_json(path)
        return {}

    # --- code ---------------------------------------------------------------------------------------------------------

    def _code_identity(self) -> dict[str, Any]:
        """What stands for the code that may run. Where a checkpoint has none, it does not matter whether it may."""
        configs = (self._plain_config_file(), self._tokenizer_config()) if self.trusted and not self._gguf else ()
        found = [reference for _, reference in remote_code.references(*configs)]
        if not found:
            return {}
        others = remote_code.other_repositories(*configs)
        code: dict[str, Any] = {name: self._code_commit(name, file) for name, file in sorted(others.items())}
        if isinstance(self._place, LocalFolder):
            code["files"] = {name: content_digest(path) for name, path in files.code_files(self._place.top)}
        elif self._arguments.get("code_revision"):
            code["own"] = self._code_commit(self._place.location, remote_code.file_of(found[0]))
        return {"code": code}

    def _refuse_stale(self, *kinds: type) -> None:
        """Raises `CheckpointError` where a class is from code that has changed since: the key is that of what is there."""
        if isinstance(self._place, LocalFolder):
            for kind in kinds:
                remote_code.refuse_stale(kind, self._place.top, self.name)

    def _code_commit(self, repository: str, file: str) -> str:
        revision = self._arguments.get("code_revision")
        return HubRepository(repository, self._arguments, revision=revision).commit(file)

    def _code_revision(self, config: Mapping[str, Any]) -> str | None:
        """The commit of the code that `config` points to, where that is another repository's."""
        given: str | None = self._arguments.get("code_revision")
        others = remote_code.other_repositories(config) if self.trusted else {}
        if len(others) != 1 or any("--" not in reference for _, reference in remote_code.references(config)):
            return given
        [(repository, file)] = others.items()
        return self._code_commit(repository, file)

    # --- files --------------------------------------------------------------------------------------------------------

    def _content_files(self, place: LocalFolder) -> dict[str, Path]:
        """The files that are read, by name."""
        found = {path.relative_to(place.root).as_posix(): path for path in self._weight_files(place)}
        if self._gguf:
            return found
        return {**found, **dict(files.companion_files(place.root))}

    def _weight_files(self, place: LocalFolder) -> tuple[Path, ...]:
        if self._gguf:
            return (place.root / self._gguf,)
        return files.weight_files(
            place.root,
            variant=self._arguments.get("variant"),
            use_safetensors=self._arguments.get("use_safetensors"),
            explicit=self._explicit_weights(),
        )

    def _fetched_weight_files(self) -> tuple[Path, ...]:
        """The files of weights; those of a repository are fetched."""
        if isinstance(self._place, LocalFolder):
            return self._weight_files(self._place)
        choices: dict[str, Any] = {
            "variant": self._arguments.get("variant"),
            "use_safetensors": self._arguments.get("use_safetensors"),
            "explicit": self._explicit_weights(),
        }
        return files.fetched_weight_files(self._optional_file, self._file, **choices)

    def _explicit_weights(self) -> str | None:
        """The file of weights that the config names, where it does."""
        name = "transformers_weights"
        if "config" in self._arguments:
            return getattr(self._arguments["config"], name, None)
        return {**self._plain_config_file(), **self._overrides}.get(name)

    def _check_files(self) -> None:
        """Raises `CheckpointError` for files that are damaged, before Transformers reads them."""
        if isinstance(self._place, LocalFolder):
            files.check_weight_files(self._weight_files(self._place))
        self._check_companions()

    def _check_companions(self) -> None:
        folder = self._place.folder()
        if not self._gguf and folder is not None:
            files.check_companions(folder)
        tokenizer = {} if self._tokenizer_of is None else self._tokenizer_of.tokenizer_files()
        if tokenizer:
            files.check_companions(tokenizer[files.TOKENIZER_CONFIG].parent)

    def _refuse_adapter(self) -> None:
        """Raises `CheckpointError` where the hub's repository holds an adapter; a folder was looked at when it was opened."""
        if isinstance(self._place, HubRepository) and not self._adapter_refused:
            # Transformers looks at the top of the repository as well.
            top = HubRepository(self._place.location, self._arguments, revision=self._commit())
            for place in (self._place, top):
                adapters.refuse_adapter(place, self.name, alone=False, names=(adapters.CONFIG,))
            self._adapter_refused = True

    def _file(self, name: str) -> Path:
        """A file of the checkpoint, fetched from the hub when it is not local."""
        try:
            return self._place.file(name)
        except FileNotFoundError as error:
            if name == files.CONFIG:
                adapters.refuse_adapter(self._place, self.name, alone=True, names=(adapters.CONFIG,))
                _refuse_pipeline(self._place.optional_file(files.PIPELINE_INDEX), self.name)
            raise CheckpointError(f"{error}; give a checkpoint as Transformers saves it") from error
        except CheckpointError as error:
            if self._named_by is not None:
                raise adapters.base_is_missing(self._named_by, self._place.location, str(error)) from error
            # Without the network the hub cannot say that there is no config.json; what else is in the cache says why.
            if name == files.CONFIG and isinstance(self._place, HubRepository):
                if self._place.cached(adapters.CONFIG) is not None:
                    adapters.refuse_adapter(self._place, self.name, alone=True, names=(adapters.CONFIG,))
                _refuse_pipeline(self._place.cached(files.PIPELINE_INDEX), self.name)
            raise

    def _optional_file(self, name: str) -> Path | None:
        if isinstance(self._place, HubRepository):
            self._commit()
        return self._place.optional_file(name)

    def _file_at_root(self, name: str) -> Path | None:
        """A file relative to the root of the checkpoint, whatever its subfolder; `None` if there is none of that name."""
        if isinstance(self._place, LocalFolder):
            return LocalFolder(self._place.top).optional_file(name)
        return optional_hub_file(self._place.location, name, revision=self._commit(), arguments=self._arguments)

    def _commit(self) -> str | None:
        """The hub's commit that everything is read from; `None` for a folder."""
        if not isinstance(self._place, HubRepository):
            return None
        main = self._gguf or files.CONFIG
        self._file(main)
        return self._place.commit(main)

    # --- config -------------------------------------------------------------------------------------------------------

    def _config_file(self) -> Mapping[str, Any]:
        content = self._plain_config_file()
        if not content.get("model_type"):
            raise CheckpointError(
                f"{self._file(files.CONFIG)} names no model_type, so Transformers cannot tell the architecture; is it a "
                "Transformers checkpoint?"
            )
        return content

    def _plain_config_file(self) -> Mapping[str, Any]:
        return {} if self._gguf else files.read_json(self._file(files.CONFIG), with_field="model_type")

    def _remembered_config(self) -> Mapping[str, Any]:
        memo = self._config_memo()
        with contextlib.suppress(OSError, ValueError):
            content: dict[str, Any] = json.loads(memo.read_text(encoding="utf-8"))
            return content
        content = plain_config(self._read_config(**self._overrides))
        # A memo only: where it cannot be written, the next run reads again.
        with contextlib.suppress(OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            draft = memo.with_suffix(f".{os.getpid()}")
            write_json(draft, content)
            draft.replace(memo)
        return content

    def _config_memo(self) -> Path:
        import importlib_metadata

        # What is made of the files depends on both as well.
        parts = {
            "model": self._files_identity(),
            "core": core_digest(),
            "transformers": importlib_metadata.version("transformers"),
        }
        return store_root() / "configs" / f"{cache_key(parts)[:16]}.json"

    def _config_object(self) -> Any:
        """A config of Transformers that the loader may keep and change."""
        config = self._plain_config_object()
        if not self._gguf:
            quantisation.state_quantisation(config, self._optional_file, self._fetched_weight_files)
        return config

    def _plain_config_object(self) -> Any:
        if "config" in self._arguments:
            return copy.deepcopy(self._arguments["config"])
        if self._gguf:
            import transformers

            # From what is remembered: reading the file's metadata once more takes long.
            content = dict(self.config())
            return transformers.CONFIG_MAPPING[content["model_type"]].from_dict(content)
        return self._read_config(**self._overrides)

    @rare_collections()
    def _read_config(self, **overrides: Any) -> Any:
        import transformers

        if self._gguf:
            report(f"reading the metadata of {self._gguf}")
            files.check_weight_files([self._file(self._gguf)])
        try:
            with captured_transformers() as said, quick_reading():
                config = transformers.AutoConfig.from_pretrained(
                    self._location, **self._loader_arguments(), **overrides
                )
            # Some are told once in a process: what an earlier reading has told is kept.
            self._said_of_config += said
        except Exception as error:
            reason = odd_field(self._plain_config_file()) or f"{first_line(error)}{remote_code.trust_hint(error)}"
            if overrides:
                names, reason = ", ".join(overrides), " ".join(str(error).split())
                raise OptionError(f"from_pretrained: the config does not take {names} as given: {reason}") from error
            if self._gguf:
                raise CheckpointError(
                    f"the metadata of {self._file(self._gguf)} cannot be read: {reason}; the file is cut or damaged, or its "
                    "architecture is none that the installed Transformers reads from GGUF: download it again, or give the model "
                    "as safetensors"
                ) from error
            raise CheckpointError(f"the config.json of {self.name} cannot be read: {reason}") from error
        if self._gguf:
            complete_config(config, self._file(self._gguf), given=overrides)
        return config

    def _check_overrides(self) -> None:
        """Raises `OptionError` for arguments that neither the loader nor the config knows."""
        if "config" in self._arguments:
            # Transformers would hand them to the constructor of the model, past the config.
            known.refuse_unknown(self._overrides, (), self._arguments["config"].model_type)
        if self._config_memo().is_file():
            return
        config = self._read_config()
        unknown = [name for name in self._overrides if not known.is_field(config, name)]
        known.refuse_unknown(unknown, [*config.to_dict(), *config.attribute_map], config.model_type)
        self._remembered_config()

    # --- the loader ---------------------------------------------------------------------------------------------------

    @property
    def _location(self) -> str:
        """What Transformers is given; of a GGUF file its folder, since the loader would look for its bare name elsewhere."""
        return str(self._file(self._gguf).parent) if self._gguf else self._place.location

    def _loader_arguments(self, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What every load has in common. `config` is the one that may point to code, by default ``config.json``."""
        chosen = {name: value for name, value in self._arguments.items() if name in known.FETCHING}
        # Said explicitly: without it Transformers asks at the terminal.
        chosen[known.TRUST] = self.trusted
        if self._gguf:
            return {**chosen, "gguf_file": str(self._file(self._gguf))}
        chosen["subfolder"] = self._arguments.get("subfolder") or ""
        if (commit := self._commit()) is not None:
            chosen["revision"] = commit
        if (code := self._code_revision(self._plain_config_file() if config is None else config)) is not None:
            chosen["code_revision"] = code
        return chosen

    def _packed_weights(self, config: Any) -> QuantizedCheckpoint | None:
        """The weights of a checkpoint that is quantised by a method read here; takes the statement out of `config`."""
        settings = None if self._gguf else quantisation.take_settings(config, self._arguments)
        if settings is None:
            return None
        return QuantizedCheckpoint(settings, self._fetched_weight_files(), self.name)

    def _judge(self, module: torch.nn.Module, info: Mapping[str, Any]) -> None:
        self._refuse_stale(type(module), type(getattr(module, "config", None)))
        allowed = bool(self._arguments.get("ignore_mismatched_sizes"))
        try:
            self._report = judge_loading(info, module, self.name, mismatch_allowed=allowed)
        except CheckpointError as error:
            if info["mismatched_keys"] and (absent := self._absent_members()):
                raise CheckpointError(f"{error}; {absent}") from error
            raise
        if self._gguf:
            from qeff_framework.sources.gguf_weights import unread_tensors

            file = self._file(self._gguf)
            refuse_unread_tensors(type(module).__name__, unread_tensors(file, module), file, is_tied=_is_tied(module))
        if isinstance(self._place, LocalFolder) and self._packed is None and not quantisation.is_quantised(module):
            read = self._weight_files(self._place)
            refuse_integer_weights(read, module, self.name, unread=info["unexpected_keys"])

    def _explained(self, error: Exception, auto_class: str, said: list[str]) -> CheckpointError:
        """What to raise for an error of the loader: the damaged file if there is one."""
        folder = self._place.folder()
        if folder is not None and not self._gguf:
            try:
                # What the hub has given was not looked at before the loader read it.
                if isinstance(self._place, HubRepository):
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
        elif not self._gguf and (doubts := self._doubts_about_config()):
            told = f"{told}; of its config.json, {doubts}"
        if self._gguf:
            told = f"{told}; is {self._file(self._gguf)} complete? If not, download it again"
        return CheckpointError(f"{self.name} cannot be loaded as {auto_class}: {told}")

    def _absent_members(self) -> str:
        """Which weights of a list, such as that of the experts, the files do not hold: the loader stacks what is there."""
        found = self._weight_files(self._place) if isinstance(self._place, LocalFolder) else self._fetched_weights()
        shards = [path for path in found if path.suffix == ".safetensors"]
        absent = absent_members(name for path in shards for name in files.safetensors_header(path))
        return f"its files do not hold {some(absent)}, but others of that kind: download them again" if absent else ""

    def _doubts_about_config(self) -> str:
        """What may be wrong in the config of weights that do not load: the errors of a model's code name no field."""
        if doubt := number_as_text(self._plain_config_file()) or padding_beyond_vocabulary(self.config()):
            return doubt
        if doubt := rotation_without_base(self.config()):
            return doubt
        return f"Transformers says: {' '.join(self._said_of_config[0].split())}" if self._said_of_config else ""

    def _display_name(self, text: str) -> str:
        if self._gguf:
            return Path(self._gguf).stem
        return self._place.top.name if isinstance(self._place, LocalFolder) else text


def _version_of_gguf() -> str:
    """Of the package that computes the numbers of blocks; newer releases of Transformers read some files without it."""
    import importlib_metadata

    try:
        return importlib_metadata.version("gguf")
    except importlib_metadata.PackageNotFoundError:
        return "none"


def _is_tied(module: torch.nn.Module) -> bool:
    return bool(getattr(module.config, "tie_word_embeddings", False))


def _digest(path: Path) -> str:
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


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text or text.endswith(".gguf")
