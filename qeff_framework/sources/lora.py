"""LoRA adapters as peft saves them: what a folder holds, and its sum with the weights of the base model."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qeff_framework.contracts import LowRankDelta
from qeff_framework.errors import CheckpointError
from qeff_framework.sources.files import TOKENIZER_CONFIG, check_weight_files, code_files, companion_files, read_json
from qeff_framework.sources.loading_report import some
from qeff_framework.sources.places import HubRepository, LocalFolder, Place

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_OLD_WEIGHTS = "adapter_model.bin"

#: Fields of the config that decide nothing here, or that the weights tell as well.
_READ = frozenset(
    {
        *(
            "peft_type",
            "task_type",
            "base_model_name_or_path",
            "auto_mapping",
            "revision",
            "inference_mode",
            "peft_version",
        ),
        *(
            "r",
            "lora_alpha",
            "lora_dropout",
            "use_rslora",
            "use_dora",
            "lora_bias",
            "rank_pattern",
            "alpha_pattern",
            "bias",
        ),
        *(
            "target_modules",
            "exclude_modules",
            "modules_to_save",
            "ensure_weight_tying",
            "trainable_token_indices",
            "layers_to_transform",
            "layers_pattern",
            "fan_in_fan_out",
        ),
        *("init_lora_weights", "loftq_config", "eva_config", "megatron_core", "qalora_group_size", "runtime_config"),
    }
)
#: What Transformers saves of a tokenizer: looked for in a repository, whose other files are not known by name.
_TOKENIZER_FILES = (
    *(TOKENIZER_CONFIG, "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
#: What is saved of a processor of images or sound; one of the first two where there is one.
PROCESSOR_CONFIGS = ("preprocessor_config.json", "processor_config.json")
_PROCESSOR_FILES = (*PROCESSOR_CONFIGS, "video_preprocessor_config.json", "chat_template.jinja", "chat_template.json")
#: Ways of starting a training that leave the weights of the base as they are.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_PREFIX = "base_model.model."
#: Where a weight that is held whole stands: what was trained wins over what it was made from.
_WRAPPED = re.compile(r"(\.token_adapter)?\.(?P<kind>modules_to_save|base_layer|original_module)(?=\.)")
_WINNERS = ("modules_to_save", None, "base_layer", "original_module")
_TRAINED_ROWS = ".token_adapter.trainable_tokens_delta"
_FACTORS = re.compile(
    r"^(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.(?P<kind>weight|bias))?$"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraDelta:
    """What an adapter adds to one module: ``scale * up @ down``, of shape ``[out, in]``."""

    #: ``[rank, in]``.
    down: torch.Tensor
    #: ``[out, rank]``.
    up: torch.Tensor
    scale: float
    #: ``[out]``, added to the module's own, already scaled.
    bias: torch.Tensor | None = None
    #: DoRA: ``[out]``, the length of each row of the sum.
    magnitude: torch.Tensor | None = None
    #: Of an embedding ``[tokens, size]``, which is the transposed matrix.
    is_embedding: bool = False


class LoraAdapter:
    """A LoRA adapter in a folder, or in a repository on the hub. Its weights are read when they are asked for."""

    def __init__(self, place: Place, name: str) -> None:
        """`name` is what messages call it.

        Raises:
            CheckpointError: there is no adapter, it is of another kind than LoRA, or it computes what LoRA does not.
        """
        self.name = name
        self._place = place
        self.config = self._read_config()
        self._check_config()

    @property
    def base(self) -> str | None:
        """Where its base model lies, by its config."""
        base = self.config.get("base_model_name_or_path")
        return str(base) if base else None

    def files(self) -> tuple[Path, Path]:
        """Config and weights.

        Raises:
            CheckpointError: there are no weights.
        """
        found = self._place.optional_file(WEIGHTS) or self._place.optional_file(_OLD_WEIGHTS)
        if found is None:
            raise CheckpointError(
                f"the adapter {self.name} holds no weights: neither {WEIGHTS} nor {_OLD_WEIGHTS}; download it again"
            )
        return self._place.file(CONFIG), found

    def optional_file(self, name: str) -> Path | None:
        """A file that was saved with it; `None` where there is none."""
        return self._place.optional_file(name)

    @property
    def base_revision(self) -> str | None:
        """The revision of its base model on the hub, by its config."""
        revision = self.config.get("revision")
        return str(revision) if revision else None

    def tokenizer_files(self) -> dict[str, Path]:
        """The files that may belong to the tokenizer that was saved with it, by name; empty where there is none."""
        if self._place.optional_file(TOKENIZER_CONFIG) is None:
            return {}
        if isinstance(self._place, LocalFolder):
            root = self._place.root
            # A tokenizer class chooses the names of its files by itself, and may be code of the folder.
            return {name: path for name, path in (*companion_files(root), *code_files(root)) if name != CONFIG}
        found = {name: self._place.optional_file(name) for name in _TOKENIZER_FILES}
        return {name: path for name, path in found.items() if path is not None}

    def processor_files(self) -> dict[str, Path]:
        """The files of the processor that was saved with it, by name; empty where there is none."""
        found = {name: self._place.optional_file(name) for name in _PROCESSOR_FILES}
        held = {name: path for name, path in found.items() if path is not None}
        return held if any(name in held for name in PROCESSOR_CONFIGS) else {}

    def tokenizer_arguments(self) -> dict[str, Any]:
        """Where Transformers finds that tokenizer, or processor: arguments of its ``from_pretrained``."""
        commit = self._place.commit(CONFIG) if isinstance(self._place, HubRepository) else None
        return {"pretrained_model_name_or_path": self._place.location, **({"revision": commit} if commit else {})}

    @property
    def architecture_mapping(self) -> str | None:
        """The name of Transformers' mapping with the classes for its task; `None` for language models and where none is said."""
        heads = {
            "SEQ_CLS": "SEQUENCE_CLASSIFICATION",
            "TOKEN_CLS": "TOKEN_CLASSIFICATION",
            "QUESTION_ANS": "QUESTION_ANSWERING",
        }
        head = heads.get(str(self.config.get("task_type")))
        return None if head is None else f"MODEL_FOR_{head}_MAPPING_NAMES"

    def merge(self, module: torch.nn.Module) -> frozenset[str]:
        """Adds the adapter to the weights of `module`, in place; returns the names of the parameters that it holds whole.

        Raises:
            CheckpointError: it is for another model, or lacks a module that was trained as a whole.
        """
        import torch

        with torch.no_grad():
            self._resize(module)
            replaced, deltas = self.replaced(module), self.deltas(module)
            rows = self._token_rows(module)
            self._check_complete(module, deltas, [*replaced, *rows])
            self._check_tied(module, {*deltas, *(name.rpartition(".")[0] for name in replaced)})
            for name, value in replaced.items():
                _own_parameter(module, name).copy_(value)
            for name, (indices, values) in rows.items():
                module.get_parameter(name)[indices] = values
            for name, delta in deltas.items():
                _merge(module, name, delta)
        return frozenset(replaced)

    def replaced(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Parameters of `module` that the adapter holds whole, by name: trained embeddings and heads, and biases.

        Raises:
            CheckpointError: `module` has no such parameter, or one of another shape.
        """
        found = {}
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for name, (key, tensor) in self._whole(module).items():
            parameter = parameters.get(name)
            if parameter is None or parameter.shape != tensor.shape:
                ours = "none" if parameter is None else list(parameter.shape)
                raise CheckpointError(
                    f"the adapter {self.name} holds {key} {list(tensor.shape)}, and the model has {ours} in its place; "
                    f"{self._remedy(name, tensor, parameter)}"
                )
            found[name] = tensor.float()
        return found

    def deltas(self, module: torch.nn.Module) -> dict[str, LoraDelta]:
        """What it adds to the modules of `module`, by their names.

        Raises:
            CheckpointError: `module` has none of such a name, or it is of a kind that is not read here.
        """
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in self._tensors().items():
            match = _FACTORS.match(key)
            if match is not None:
                part = "bias" if match["kind"] == "bias" else match["part"].removeprefix("embedding_")
                kept = parts.setdefault(match["module"], {})
                kept[part] = tensor.float()
                if match["part"].startswith("embedding"):
                    kept["is_embedding"] = tensor
        names = {name: self._resolved(module, name) for name in parts}
        foreign = [name for name, ours in names.items() if not (self._is_target(name) or self._is_target(ours))]
        if foreign:
            raise CheckpointError(
                f"the adapter {self.name} holds sums for {some(foreign)}, and its {CONFIG} leaves them out (target_modules, "
                "exclude_modules, layers_to_transform): one of both files is of another adapter; download both again"
            )
        return {ours: self._delta(module, name, parts[name]) for name, ours in names.items()}

    def factors(self, module: torch.nn.Module) -> dict[str, LowRankDelta]:
        """What it adds to the weights of `module`, by their names, where that is all that it does.

        Raises:
            CheckpointError: it changes more than products by low-rank sums, so that rows could not choose it; or it is for
                another model.
        """
        import torch

        shapes = {name: parameter.shape for name, parameter in module.named_parameters(remove_duplicate=False)}
        for name, (_, tensor) in self._whole(module).items():
            ours = shapes.get(name, tensor.shape)
            if ours != tensor.shape and ours[1:] == tensor.shape[1:]:
                self._refuse_rows(f"{name}, which has {tensor.shape[0]} rows in place of {ours[0]}")
        deltas, replaced, rows, more = self.deltas(module), self.replaced(module), self._token_rows(module), []
        self._check_complete(module, deltas, [*replaced, *rows])
        for name, delta in deltas.items():
            kinds = {"DoRA": delta.magnitude, "a bias": delta.bias, "an embedding": delta.is_embedding or None}
            more += [f"{kind} of {name}" for kind, found in kinds.items() if found is not None]
        # peft saves embeddings and heads beside their sums, whether they were trained or not.
        more += [
            name for name, value in replaced.items() if not torch.equal(value, module.get_parameter(name).detach())
        ]
        more += [f"rows of {name}" for name in rows]
        if more:
            self._refuse_rows(more[0])
        return {
            f"{name}.weight": LowRankDelta(down=delta.down.numpy(), up=(delta.up * delta.scale).numpy())
            for name, delta in deltas.items()
        }

    def _refuse_rows(self, changed: str) -> NoReturn:
        raise CheckpointError(
            f"the adapter {self.name} changes {changed}, and rows can choose among sums of low rank alone; merge this one: "
            "from_pretrained(BASE, adapter=...)"
        )

    # --- the config ---------------------------------------------------------------------------------------------------

    def _read_config(self) -> Mapping[str, Any]:
        try:
            path = self._place.file(CONFIG)
        except FileNotFoundError as error:
            inner = folders_of_adapters(self._place)
            if inner:
                raise CheckpointError(
                    f"{self.name} holds adapters in its folders {', '.join(folder.name for folder in inner)}; give one of them: "
                    f"{str(inner[0])!r}"
                ) from error
            raise CheckpointError(f"{error}; give an adapter as peft saves it, with its {CONFIG}") from error
        return read_json(path, with_field="peft_type")

    def _check_config(self) -> None:
        merging = (
            "merge it into its base with peft (merge_and_unload) and give the result, where peft can merge this kind"
        )
        kind = str(self.config.get("peft_type", ""))
        if kind != "LORA":
            raise CheckpointError(f"the adapter {self.name} is of peft_type '{kind}', and LORA is read here; {merging}")
        start = self.config.get("init_lora_weights", True)
        if start not in _PLAIN_STARTS:
            raise CheckpointError(
                f"the adapter {self.name} states init_lora_weights={start!r}, by which peft changes the weights of the base as "
                "well; save it with path_initial_model_for_weight_conversion, which makes a plain LoRA of it, or merge it into "
                "its base with peft (merge_and_unload) and give the result"
            )
        self._check_patterns()
        unknown = sorted(name for name, value in self.config.items() if value and name not in _READ)
        if unknown:
            raise CheckpointError(
                f"the adapter {self.name} states {', '.join(unknown)}, which is not read here; {merging}"
            )

    def _check_patterns(self) -> None:
        """Raises `CheckpointError` for a text that is to be a regular expression and is none."""
        for field in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
            stated = self.config.get(field)
            for pattern in [stated] if isinstance(stated, str) else stated if isinstance(stated, Mapping) else ():
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise CheckpointError(
                        f"the {CONFIG} of the adapter {self.name} states {field} with {pattern!r}, which is no regular "
                        f"expression ({error}); restore the file or download it again"
                    ) from error

    def _scale(self, module_name: str, rank: int) -> float:
        patterns, default = self.config.get("alpha_pattern") or {}, self.config.get("lora_alpha", 8)
        alpha = _by_pattern(patterns, module_name, default) if isinstance(patterns, Mapping) else None
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise CheckpointError(
                f"the {CONFIG} of the adapter {self.name} states lora_alpha={default!r} and alpha_pattern={patterns!r}, which "
                f"give no number for {module_name}; restore the file or download it again"
            )
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    # --- the weights --------------------------------------------------------------------------------------------------

    def _whole(self, module: torch.nn.Module, *, original: bool = False) -> dict[str, tuple[str, torch.Tensor]]:
        """What the file holds whole, with its key there, by the names of parameters that `module` may have.

        `original`: as it was before the training, where the file holds that too.
        """
        found: dict[str, tuple[int, str, torch.Tensor]] = {}
        for key, tensor in self._tensors().items():
            if _FACTORS.match(key) or key.endswith(_TRAINED_ROWS):
                continue
            wrapped = _WRAPPED.search(key)
            module_name, _, last = _WRAPPED.sub("", key, count=1).rpartition(".")
            name = f"{self._resolved(module, module_name)}.{last}"
            order = _WINNERS.index(None if wrapped is None else wrapped["kind"]) * (-1 if original else 1)
            if name not in found or order < found[name][0]:
                found[name] = (order, key, tensor)
        return {name: (key, tensor) for name, (_, key, tensor) in found.items()}

    def _resize(self, module: torch.nn.Module) -> None:
        """Gives `module` as many tokens as the embedding has that the adapter holds whole.

        Raises:
            CheckpointError: it does not hold all that has a row for each token.
        """
        model: Any = module
        embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
        weight = getattr(embedding, "weight", None)
        whole, names = self._whole(module), _names_of(module, embedding)
        held = [tensor for name, (_, tensor) in whole.items() if name in {f"{owner}.weight" for owner in names}]
        if weight is None or not held or held[0].dim() != 2 or held[0].shape[1] != weight.shape[1]:
            return
        tokens = held[0].shape[0]
        if tokens == weight.shape[0]:
            return
        head = model.get_output_embeddings()
        needed = [] if head is None or head.weight is weight else ["weight"]
        needed += [] if getattr(head, "bias", None) is None else ["bias"]
        owner = next(iter(sorted(_names_of(module, head))), "")
        absent = [part for part in needed if f"{owner}.{part}" not in whole]
        if absent:
            raise CheckpointError(
                f"the adapter {self.name} holds an embedding of {tokens} tokens for a model of {weight.shape[0]}, and no "
                f"{owner}.{absent[0]} of as many; give the base model with the embeddings that it was trained with, or merge it "
                "with peft (merge_and_unload) and give the result"
            )
        model.resize_token_embeddings(tokens, mean_resizing=False)
        # Modules that share the embedding are not all replaced (T5), and peft's have these rows then.
        for name, (_, tensor) in self._whole(module, original=True).items():
            if name.rpartition(".")[0] in names | {owner}:
                module.get_parameter(name).copy_(tensor)

    def _token_rows(self, module: torch.nn.Module) -> dict[str, tuple[list[int], torch.Tensor]]:
        """Rows of embeddings that were trained alone: the ids of their tokens, and their values, by the names of parameters.

        Raises:
            CheckpointError: the config does not say which rows of `module` they are.
        """
        stated, found = self.config.get("trainable_token_indices"), {}
        for key, tensor in self._tensors().items():
            if not key.endswith(_TRAINED_ROWS):
                continue
            name = self._resolved(module, key.removesuffix(_TRAINED_ROWS))
            weight = module.get_submodule(name).get_parameter("weight")
            indices = stated
            if isinstance(stated, Mapping):
                tied = {other for other, part in module.named_modules() if getattr(part, "weight", None) is weight}
                indices = next(
                    (ids for ending, ids in stated.items() if any(_is_one_of(n, [ending]) for n in tied)), None
                )
            fits = isinstance(indices, list) and all(
                isinstance(index, int) and 0 <= index < weight.shape[0] for index in indices
            )
            if not isinstance(indices, list) or not fits or tensor.shape != (len(indices), weight.shape[1]):
                raise CheckpointError(
                    f"the adapter {self.name} holds {key} {list(tensor.shape)} for {name} {list(weight.shape)}, and the "
                    f"trainable_token_indices of its {CONFIG} name no such rows; give the base model that it was trained with"
                )
            found[f"{name}.weight"] = (indices, tensor.float())
        return found

    def _check_tied(self, module: torch.nn.Module, changed: Collection[str]) -> None:
        """Raises `CheckpointError` where embedding and head are to stay tied, and the adapter holds one of them."""
        model: Any = module
        if not self.config.get("ensure_weight_tying") or not hasattr(model, "get_output_embeddings"):
            return
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if head is None or getattr(head, "weight", None) is not getattr(embedding, "weight", None):
            return
        both = [bool(_names_of(module, part).intersection(changed)) for part in (embedding, head)]
        if any(both) and not all(both):
            raise CheckpointError(
                f"the adapter {self.name} states ensure_weight_tying and changes {'the embedding' if both[0] else 'the head'} "
                "alone; save it again with the newest peft, or merge it with peft (merge_and_unload) and give the result"
            )

    def _remedy(self, name: str, tensor: torch.Tensor, parameter: torch.Tensor | None) -> str:
        """What to give where a weight of the adapter has no place in the model."""
        is_head = parameter is not None and tensor.dim() == parameter.dim() and tensor.shape[1:] == parameter.shape[1:]
        if is_head and self.architecture_mapping is not None:
            return f"if {name} is the head of a classifier, give num_labels={tensor.shape[0]} as in its training"
        return f"is {self.base or 'the model that was given'} its base, with as many tokens as it was trained with?"

    def _check_complete(self, module: torch.nn.Module, deltas: Collection[str], replaced: Collection[str]) -> None:
        """Warns of modules that the config names and of which the file holds nothing, as peft does.

        Raises:
            CheckpointError: such a module was trained as a whole, or the file holds nothing at all.
        """
        if not deltas and not replaced:
            raise CheckpointError(
                f"the adapter {self.name} holds nothing: there is no weight in {self.files()[1].name}; download it again"
            )
        owners = {*deltas, *(name.rpartition(".")[0] for name in replaced)}
        held = {
            ".".join(parts[:end]) for parts in (name.split(".") for name in owners) for end in range(1, len(parts) + 1)
        }
        absent = [(name, part) for name, part in module.named_modules() if name not in held]
        saved = [
            name for name, part in absent if _is_one_of(name, self.config.get("modules_to_save")) and _has_weights(part)
        ]
        if saved:
            raise CheckpointError(
                f"the adapter {self.name} holds no weights of {some(saved)}, and the modules_to_save of its {CONFIG} say that it "
                "replaces them; download it again"
            )
        # With these fields not every module of such a name was trained.
        if self.config.get("layers_to_transform") is not None or self.config.get("exclude_modules"):
            return
        passed = [
            name for name, part in absent if _is_one_of(name, self.config.get("target_modules")) and _has_weights(part)
        ]
        if passed:
            logger.warning(
                "the adapter %s holds nothing for %s, which the target_modules of its %s name: these stay as they are in the "
                "base; if it was trained with them, download it again",
                *(self.name, some(passed), CONFIG),
            )

    def _tensors(self) -> dict[str, torch.Tensor]:
        """By their names in the base model."""
        from safetensors.torch import load_file

        path = self.files()[1]
        check_weight_files([path])
        tensors = load_file(path) if path.suffix == ".safetensors" else _torch_tensors(path, self.name)
        # Tests for numbers that are not finite exist for some types alone.
        broken = [key for key, tensor in tensors.items() if not tensor.float().isfinite().all()]
        if broken:
            raise CheckpointError(
                f"the adapter {self.name} holds numbers that are not finite in {some(broken)}: its training failed, or the file "
                "is damaged; download it again, or train it again"
            )
        found = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}
        if len(found) != len(tensors):
            twice = [key for key in tensors if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) in tensors]
            raise CheckpointError(
                f"the adapter {self.name} holds {some(twice)} twice, with and without '{_PREFIX}' in front; take one of both out"
            )
        return found

    def _is_target(self, name: str) -> bool:
        """Whether the config lets the adapter add to a module of that name, by peft's ``check_target_module_exists``."""
        targets, excluded = self.config.get("target_modules"), self.config.get("exclude_modules")
        if _is_named(name, excluded):
            return False
        layers = self.config.get("layers_to_transform")
        if isinstance(targets, list) and name not in targets and layers not in (None, []):
            patterns = self.config.get("layers_pattern") or r"[^.]+"
            found = [
                re.match(rf"(?:^|.*?\.){one}\.(\d+)\.", name)
                for one in ([patterns] if isinstance(patterns, str) else patterns)
            ]
            index = next((int(match[1]) for match in found if match), None)
            if index not in (layers if isinstance(layers, list) else [layers]):
                return False
        # peft replaces a word for a kind of modules by their names when it saves.
        return not targets or targets == "all-linear" or _is_named(name, targets)

    def _resolved(self, module: torch.nn.Module, name: str) -> str:
        """The name in `module`: one of both may lack the prefix of the model without its head."""
        names = {found for found, _ in module.named_modules()}
        prefix = str(getattr(module, "base_model_prefix", ""))
        for candidate in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
            if candidate in names:
                return candidate
        raise CheckpointError(
            f"the adapter {self.name} is for a module {name}, which {type(module).__name__} does not have; give its base model: "
            f"{self.base or 'its config names none'}"
        )

    def _delta(self, module: torch.nn.Module, name: str, parts: Mapping[str, torch.Tensor]) -> LoraDelta:
        target = module.get_submodule(self._resolved(module, name))
        weight = getattr(target, "weight", None)
        absent = [part for part in ("A", "B") if part not in parts]
        if absent:
            raise CheckpointError(f"the adapter {self.name} lacks lora_{absent[0]} of {name}; download it again")
        down, up = parts["A"], parts["B"]
        if weight is None or weight.dim() != 2 or down.dim() != 2 or up.dim() != 2:
            raise CheckpointError(
                f"the adapter {self.name} adds to {name}, a {type(target).__name__}; those read here are linear layers and "
                "embeddings: merge it into its base with peft (merge_and_unload) and give the result"
            )
        is_embedding = "is_embedding" in parts
        shape = (up.shape[0], down.shape[1])
        if tuple(weight.shape) != (shape[::-1] if is_embedding or _is_transposed(target) else shape):
            raise CheckpointError(
                f"the adapter {self.name} adds {list(shape)} to {name}, which is {list(weight.shape)}; give its base model: "
                f"{self.base or 'its config names none'}"
            )
        self._check_stated(name, parts, is_embedding=is_embedding)
        magnitude = parts.get("magnitude_vector")
        if magnitude is not None and is_embedding:
            raise CheckpointError(
                f"the adapter {self.name} is of DoRA for the embedding {name}, which is not read here; merge it into its base "
                "with peft (merge_and_unload) and give the result"
            )
        scale = self._scale(name, down.shape[0])
        bias = parts.get("bias")
        return LoraDelta(
            down=down,
            up=up,
            scale=scale,
            bias=None if bias is None else bias * scale,
            magnitude=None if magnitude is None else magnitude.flatten(),
            is_embedding=is_embedding,
        )

    def _check_stated(self, name: str, parts: Mapping[str, torch.Tensor], *, is_embedding: bool) -> None:
        """Raises `CheckpointError` where config and weights disagree: peft would scale by the one or leave out the other."""
        patterns, rank = self.config.get("rank_pattern") or {}, parts["A"].shape[0]
        stated = _by_pattern(patterns, name, self.config.get("r", rank)) if isinstance(patterns, Mapping) else rank
        problem = f"states the rank {stated}, and its weights have the rank {rank}" if stated != rank else ""
        for field, part in (("use_dora", "magnitude_vector"), ("lora_bias", "bias")):
            # peft has no bias for the sum of an embedding.
            expected = bool(self.config.get(field)) and not (is_embedding and part == "bias")
            if expected != (part in parts):
                other = f"no lora_{part}" if expected else f"a lora_{part}"
                problem = problem or f"states {field}={str(expected).lower()}, and its weights hold {other}"
        if problem:
            raise CheckpointError(
                f"the {CONFIG} of the adapter {self.name} {problem} for {name}: one of both files is of another adapter; "
                "download both again"
            )


def _torch_tensors(path: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a file that torch has written."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path.name} of the adapter {name} holds more than plain tensors, or is damaged ({type(error).__name__}); save it "
            "as safetensors or download it again"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise CheckpointError(
            f"{path.name} of the adapter {name} holds no tensors by names; save it as safetensors or download it again"
        )
    return dict(content)


def folders_of_adapters(place: Place) -> list[Path]:
    """The folders in a local folder that hold an adapter each, as peft saves several of one model."""
    return sorted(path.parent for path in place.root.glob(f"*/{CONFIG}")) if isinstance(place, LocalFolder) else []


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that ends the name of a module."""
    found: Iterator[Any] = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
    return next(found, default)


def _is_one_of(name: str, endings: object) -> bool:
    """Whether a module's name ends in one of a list of names. A pattern, or a word for a kind of modules, is no list."""
    names = endings if isinstance(endings, list) else []
    return any(name == ending or name.endswith(f".{ending}") for ending in names)


def _is_named(name: str, stated: object) -> bool:
    """Whether a field of the config names a module: by the end of its name, or by a pattern for all of it."""
    return bool(stated) and (
        re.fullmatch(stated, name) is not None if isinstance(stated, str) else _is_one_of(name, stated)
    )


def _names_of(module: torch.nn.Module, part: object) -> set[str]:
    """The names under which a module holds another one."""
    return {name for name, other in module.named_modules(remove_duplicate=False) if other is part}


def _has_weights(part: torch.nn.Module) -> bool:
    return next(part.parameters(), None) is not None


def _is_transposed(target: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(target, Conv1D)


def _merge(module: torch.nn.Module, name: str, delta: LoraDelta) -> None:
    target = module.get_submodule(name)
    weight = _own_parameter(module, f"{name}.weight")
    turned = delta.is_embedding or _is_transposed(target)
    matrix = weight.T if turned else weight
    matrix += delta.scale * (delta.up @ delta.down)
    if delta.magnitude is not None:
        matrix *= (delta.magnitude / matrix.norm(dim=1)).unsqueeze(1)
    if delta.bias is not None:
        if getattr(target, "bias", None) is None:
            raise CheckpointError(f"the adapter adds a bias to {name}, which has none; {_NO_BIAS}")
        _own_parameter(module, f"{name}.bias").add_(delta.bias)


_NO_BIAS = "train it without lora_bias, or merge it with peft (merge_and_unload)"


def _own_parameter(module: torch.nn.Module, name: str) -> torch.Tensor:
    """The parameter; where modules share it, this one is given its own, which alone the adapter changes."""
    import torch

    owner_name, _, last = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    if len(_names_of(module, owner)) > 1:
        # One module under several names (T5's embedding after it was resized); peft replaces the one that it names.
        parent, _, attribute = owner_name.rpartition(".")
        owner = copy.copy(owner)
        owner._parameters = dict(owner._parameters)  # noqa: SLF001 - a copy shares them
        setattr(module.get_submodule(parent), attribute, owner)
    parameter: torch.nn.Parameter = owner.get_parameter(last)
    shared = [other for other, value in module.named_parameters(remove_duplicate=False) if value is parameter]
    if len(shared) > 1:
        parameter = torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)
        setattr(owner, last, parameter)
        config: Any = module.config
        config.get_text_config().tie_word_embeddings = False
    return parameter
