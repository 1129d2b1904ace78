"""What a sentence-transformers checkpoint says: which modules follow the Transformer, and how texts are prepared for it.

The folder format is read here, without torch and without the sentence-transformers package. Whatever decides an embedding is
either returned as a value, or refused by name. `qeff_framework.sources.embedding_head` turns the steps into graph operations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from qeff_framework.artifacts import content_digest
from qeff_framework.contracts import POOLINGS
from qeff_framework.errors import CheckpointError, UnsupportedModelError

#: Returns a file of the checkpoint by its name relative to the checkpoint's root, or `None` if there is none.
Fetch = Callable[[str], Path | None]

StepKind = Literal["pooling", "dense", "layer_norm", "normalize", "truncate"]

MODULES_FILE = "modules.json"
_MODEL_FILE = "config_sentence_transformers.json"
#: Names that the library has given the configuration of its Transformer module; the first one that exists counts.
_TRANSFORMER_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
#: Packages in which the library has kept the modules that are understood here.
_MODULE_PACKAGES = (
    "sentence_transformers.models.",
    "sentence_transformers.base.modules.",
    "sentence_transformers.sentence_transformer.modules.",
)
_TOKENS, _SENTENCE = "token_embeddings", "sentence_embedding"

#: Pooling modes by the flags of the older format, in the order in which the library joins several.
_MODE_OF_FLAG = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

#: Entries of a Transformer module's configuration that do not change what ``encode`` returns.
_WITHOUT_EFFECT = frozenset({"unpad_inputs", "query_length", "document_length", "query_expansion"})
#: Loading arguments of that configuration that do not change a float32 result.
_LOADING_WITHOUT_EFFECT = frozenset({"attn_implementation", "device_map", "trust_remote_code", "use_cache"})
#: A tokenizer without a limit says so by an enormous number.
_NO_LIMIT = 1_000_000


@dataclass(frozen=True, kw_only=True)
class HeadStep:
    """One operation behind the Transformer. `settings` holds JSON values only."""

    kind: StepKind
    settings: Mapping[str, Any]
    weights: Path | None = None


@dataclass(frozen=True, kw_only=True)
class EmbeddingHead:
    """The operations that turn token vectors ``[B, S, H]`` into embeddings ``[B, E]``, in order."""

    steps: tuple[HeadStep, ...]

    def identity(self) -> list[dict[str, Any]]:
        """The steps with digests of their weights, for cache keys."""
        return [
            {"kind": step.kind, **step.settings, "weights": content_digest(step.weights) if step.weights else None}
            for step in self.steps
        ]

    @property
    def single_pooling(self) -> str | None:
        """The name of the pooling if that is all there is."""
        modes: list[str] = self.steps[0].settings.get("modes", []) if len(self.steps) == 1 else []
        return modes[0] if len(modes) == 1 else None

    def __str__(self) -> str:
        return " > ".join(_described(step) for step in self.steps)


@dataclass(frozen=True, kw_only=True)
class TextPreparation:
    """What is done with a text before and while it is tokenised."""

    #: Put in front of every text unless the caller asks for another prompt.
    default_prompt: str = ""
    #: By the names that callers may ask for.
    prompts: Mapping[str, str] = field(default_factory=dict)
    lower_case: bool = False
    #: Longer texts are cut; `None`: no limit.
    max_tokens: int | None = None
    #: Whether pooling may see the tokens of a prompt. If not, no prompt can be used: the graph does not know its length.
    prompt_in_pooling: bool = True
    #: How embeddings are compared: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``.
    similarity: str = "cosine"

    def as_json(self) -> dict[str, Any]:
        """For the artifact's metadata and for cache keys."""
        return {
            "default_prompt": self.default_prompt,
            "prompts": dict(self.prompts),
            "lower_case": self.lower_case,
            "max_tokens": self.max_tokens,
            "prompt_in_pooling": self.prompt_in_pooling,
            **({"similarity": self.similarity} if self.similarity != "cosine" else {}),
        }


class SentenceTransformersFolder:
    """A checkpoint that sentence-transformers has written, read through `fetch`."""

    def __init__(
        self, name: str, base: str, modules: Sequence[Mapping[str, Any]], fetch: Fetch, *, subfolder: str
    ) -> None:
        self._name = name
        self._subfolder = subfolder
        self._base = base
        self._modules = modules
        self._fetch = fetch

    @classmethod
    def find(cls, name: str, fetch: Fetch, *, subfolder: str = "") -> SentenceTransformersFolder | None:
        """Returns the description of checkpoint `name`; `None` if it has no ``modules.json``.

        `subfolder` is the folder of the Transformer's weights: ``modules.json`` lies in it or, naming it, above it.

        Raises:
            CheckpointError: the file is damaged, or absent beside a configuration that needs it.
        """
        for base in dict.fromkeys((subfolder, "")):
            content = _read(fetch, _join(base, MODULES_FILE))
            if content is None:
                if fetch(_join(base, "1_Pooling/config.json")) is not None:
                    raise CheckpointError(
                        f"{name} has 1_Pooling/config.json and no {MODULES_FILE}, which says what else is done with the token "
                        f"vectors; restore {MODULES_FILE}, or choose a pooling yourself (pooling=...)"
                    )
                continue
            modules = _checked_modules(name, content)
            # Beside the weights, it is about them, whatever it says; `head` tells what it says wrongly.
            if subfolder in {base, _join(base, modules[0]["path"])}:
                return cls(name, base, modules, fetch, subfolder=subfolder)
        return None

    def head(self) -> EmbeddingHead:
        """The steps behind the Transformer.

        Raises:
            UnsupportedModelError: a module, or a setting of one, that the graph cannot carry.
            CheckpointError: a file is damaged or missing.
        """
        self._check_transformer()
        model = self._model_config()
        steps: list[HeadStep] = []
        known = {_TOKENS}
        for module in self._modules[1:]:
            kind = self._kind(module)
            if kind == "Dropout":  # it does nothing outside of training
                continue
            step = _READERS[kind](self, module["path"])
            if step.settings["input"] in known:
                steps.append(step)
                known.add(step.settings["output"])
            elif kind != "Normalize":  # the library passes over a Normalize without an input
                raise self._unsupported(
                    f"its module {module['path']} reads {step.settings['input']}, which none before it gives"
                )
        if _SENTENCE not in known:
            raise self._unsupported(f"its modules ({self._listed()}) give no {_SENTENCE}")
        if (truncated := model.get("truncate_dim")) is not None:
            if not isinstance(truncated, int) or truncated < 1:
                raise CheckpointError(
                    f"{self._name}: truncate_dim in {_MODEL_FILE} is {truncated!r}, not a positive number"
                )
            steps.append(HeadStep(kind="truncate", settings=_names() | {"size": truncated}))
        self._check_prompt(steps)
        return EmbeddingHead(steps=tuple(steps))

    def texts(self, config: Mapping[str, Any]) -> TextPreparation:
        """How texts are prepared; `config` is the Transformer's own.

        Raises:
            UnsupportedModelError: the preparation that is asked for does not exist here.
            CheckpointError: a file is damaged, or names a prompt that is not there.
        """
        transformer, model = self._transformer_config(), self._model_config()
        stated = model.get("prompts") or {}
        if not isinstance(stated, Mapping):
            raise CheckpointError(f"{self._name}: prompts in {_MODEL_FILE} are no texts by name; correct the file")
        prompts = {"query": "", "document": ""} | {
            str(name): str(text) for name, text in stated.items() if text is not None
        }
        default = model.get("default_prompt_name")
        if default is not None and default not in prompts:
            raise CheckpointError(
                f"{self._name}: default_prompt_name in {_MODEL_FILE} is {default!r}, and its prompts are "
                f"{', '.join(sorted(prompts))}; correct the file"
            )
        poolings = [self._config(module["path"]) for module in self._modules[1:] if _class_name(module) == "Pooling"]
        return TextPreparation(
            default_prompt=prompts[default] if default is not None else "",
            prompts=prompts,
            lower_case=bool(transformer.get("do_lower_case", False)),
            max_tokens=self._max_tokens(transformer, config),
            prompt_in_pooling=all(pooling.get("include_prompt", True) for pooling in poolings),
            similarity=str(model.get("similarity_fn_name") or "cosine"),
        )

    def score_activation(self) -> str | None:
        """What a CrossEncoder does with its logits, as the path of a class of torch; `None` where it does not say so."""
        model = self._model_config()
        stated = model.get("activation_fn") if model.get("model_type") == "CrossEncoder" else None
        return None if stated is None else str(stated)

    # --- modules ------------------------------------------------------------------------------------------------------

    def _kind(self, module: Mapping[str, Any]) -> str:
        name = _class_name(module)
        if name not in (*_READERS, "Dropout"):
            raise self._unsupported(f"its module '{module['type']}' has no form in a graph of this version")
        return name

    def _listed(self) -> str:
        return ", ".join(str(module["type"]).rpartition(".")[2] for module in self._modules)

    def _check_transformer(self) -> None:
        """Refuses a Transformer module that does something else than returning the last hidden state of a text."""
        if _class_name(self._modules[0]) != "Transformer":
            raise self._unsupported(f"its first module is '{self._modules[0]['type']}', not a Transformer")
        if _join(self._base, self._modules[0]["path"]) != self._subfolder:
            raise self._unsupported(
                f"its Transformer lies in the folder {self._modules[0]['path']}, not beside {MODULES_FILE}; pass "
                f"subfolder={self._modules[0]['path']!r}"
            )
        model_type = self._model_config().get("model_type", "SentenceTransformer")
        if model_type != "SentenceTransformer":
            raise self._unsupported(f"{_MODEL_FILE} says that it is a {model_type}, not a SentenceTransformer")
        config = self._transformer_config()
        expected = {
            "transformer_task": "feature-extraction",
            "module_output_name": _TOKENS,
            "tokenizer_name_or_path": None,
        }
        for name, value in expected.items():
            if config.get(name, value) != value:
                raise self._unsupported(f"its Transformer module has {name}={config[name]!r}")
        text = (config.get("modality_config") or {"text": {}}).get("text", {})
        if "message" in (config.get("modality_config") or {}):
            raise self._unsupported("it renders texts with a chat template ('message' in its modality_config)")
        if text.get("method", "forward") != "forward" or text.get("method_output_name") not in (
            None,
            "last_hidden_state",
            ["last_hidden_state"],
        ):
            raise self._unsupported(f"it embeds texts with {text!r}, not with the last hidden state of its forward")
        self._check_arguments(config)
        unknown = set(config) - set(expected) - _KNOWN_OF_TRANSFORMER - _WITHOUT_EFFECT
        if unknown:
            raise self._unsupported(f"its Transformer module has settings that are unknown here: {_text(unknown)}")

    def _check_arguments(self, config: Mapping[str, Any]) -> None:
        for name in _ARGUMENT_NAMES:
            given = config.get(name) or {}
            deciding = {
                key: value
                for key, value in given.items()
                if key not in _LOADING_WITHOUT_EFFECT
                and not (key in ("dtype", "torch_dtype") and value in ("float32", "torch.float32", "auto", None))
            }
            if name == "processing_kwargs":
                deciding = {key: value for key, value in given.items() if value}
            if deciding:
                raise self._unsupported(f"its Transformer module is loaded with {name}={deciding!r}")

    def _check_prompt(self, steps: Sequence[HeadStep]) -> None:
        if all(step.settings.get("include_prompt", True) for step in steps):
            return
        model = self._model_config()
        default = (model.get("prompts") or {}).get(model.get("default_prompt_name"))
        if default:
            raise self._unsupported(
                f"its pooling leaves out the prompt (include_prompt=false), and every text gets the prompt {default!r}: the "
                "graph cannot tell the prompt's tokens from the text's"
            )

    # --- settings of single modules -----------------------------------------------------------------------------------

    def _pooling(self, path: str) -> HeadStep:
        config = self._config(path)
        if not config:
            raise CheckpointError(
                f"{self._name}: {path}/config.json, which says how token vectors are pooled, is not there or says nothing; "
                "download the checkpoint again"
            )
        self._refuse_unknown(
            path,
            config,
            ("embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt", *_MODE_OF_FLAG),
        )
        modes = config.get("pooling_mode")
        if modes is None:
            modes = [mode for flag, mode in _MODE_OF_FLAG.items() if config.get(flag)] or ["mean"]
        modes = [modes] if isinstance(modes, str) else modes
        unknown = [mode for mode in modes if mode not in POOLINGS] if isinstance(modes, list) else [modes]
        if unknown or not modes:
            raise self._unsupported(
                f"the pooling mode {_text(map(str, unknown)) or '(none)'} in {path}/config.json is unknown"
            )
        included = bool(config.get("include_prompt", True))
        return HeadStep(
            kind="pooling",
            settings={"input": _TOKENS, "output": _SENTENCE, "modes": list(modes)}
            | ({} if included else {"include_prompt": False}),
        )

    def _dense(self, path: str) -> HeadStep:
        config = self._config(path)
        known = ("in_features", "out_features", "bias", "activation_function", "use_residual", *_NAME_KEYS)
        self._refuse_unknown(path, config, known)
        activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
        if not isinstance(activation, str) or not activation.startswith("torch.nn."):
            raise self._unsupported(f"the activation function {activation!r} of {path} is not one of torch.nn")
        try:
            sizes = {"in_features": int(config["in_features"]), "out_features": int(config["out_features"])}
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self._name}: {path}/config.json has no usable {error}; restore the file"
            ) from error
        return HeadStep(
            kind="dense",
            settings=_names(config)
            | sizes
            | {
                "bias": bool(config.get("bias", True)),
                "activation": activation.rpartition(".")[2],
                "residual": bool(config.get("use_residual", False)),
            },
            weights=self._weights(path),
        )

    def _normalize(self, path: str) -> HeadStep:
        config = self._config(path)
        self._refuse_unknown(path, config, _NAME_KEYS)
        return HeadStep(kind="normalize", settings=_names(config))

    def _layer_norm(self, path: str) -> HeadStep:
        config = self._config(path)
        self._refuse_unknown(path, config, ("dimension",))
        return HeadStep(kind="layer_norm", settings=_names(), weights=self._weights(path))

    def _weights(self, path: str) -> Path:
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (file := self._fetch(_join(self._base, path, name))) is not None:
                return file
        raise CheckpointError(
            f"{self._name} has neither {path}/model.safetensors nor {path}/pytorch_model.bin, the weights of a module that "
            f"{MODULES_FILE} names; download the checkpoint again"
        )

    # --- configurations -----------------------------------------------------------------------------------------------

    def _config(self, path: str) -> Mapping[str, Any]:
        return _read_object(self._fetch, _join(self._base, path, "config.json"))

    def _model_config(self) -> Mapping[str, Any]:
        return _read_object(self._fetch, _join(self._base, _MODEL_FILE))

    def _transformer_config(self) -> Mapping[str, Any]:
        for name in _TRANSFORMER_FILES:
            if config := _read_object(self._fetch, _join(self._base, self._modules[0]["path"], name)):
                return config
        return {}

    def _max_tokens(self, transformer: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
        asked = transformer.get("max_seq_length")
        if asked is not None:
            if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
                raise CheckpointError(
                    f"{self._name}: max_seq_length of its Transformer module is {asked!r}, not a number of tokens; correct the "
                    "file"
                )
            return asked
        tokenizer = _read_object(self._fetch, _join(self._base, self._modules[0]["path"], "tokenizer_config.json"))
        limits = [tokenizer.get("model_max_length"), config.get("max_position_embeddings")]
        usable = [int(limit) for limit in limits if isinstance(limit, (int, float)) and 0 < limit < _NO_LIMIT]
        return min(usable, default=None)

    def _refuse_unknown(self, path: str, config: Mapping[str, Any], known: Sequence[str]) -> None:
        if unknown := set(config) - set(known):
            raise self._unsupported(f"{path}/config.json has settings that are unknown here: {_text(unknown)}")

    def _unsupported(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self._name} is a sentence-transformers checkpoint, and {what}; pass pooling=... (a name, a function or None) to "
            "use its Transformer alone"
        )


def transformer_subfolder(folder: Path) -> str:
    """The folder of the Transformer's weights that a local ``modules.json`` names; "" where there is none, or it is damaged."""
    try:
        modules = json.loads((folder / MODULES_FILE).read_text(encoding="utf-8"))
        path = str(modules[0]["path"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return path if _stays_inside(path) else ""


def first_module(folder: Path) -> str:
    """The class of the first module that a local ``modules.json`` names; "" where there is none, or it is damaged."""
    try:
        return str(json.loads((folder / MODULES_FILE).read_text(encoding="utf-8"))[0]["type"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


_NAME_KEYS = ("module_input_name", "module_output_name")
_ARGUMENT_NAMES = (
    *("model_args", "model_kwargs", "config_args", "config_kwargs", "tokenizer_args", "processor_kwargs"),
    "processing_kwargs",
)
_KNOWN_OF_TRANSFORMER = frozenset({"max_seq_length", "do_lower_case", "modality_config", *_ARGUMENT_NAMES})

_READERS: Mapping[str, Callable[[SentenceTransformersFolder, str], HeadStep]] = {
    "Pooling": SentenceTransformersFolder._pooling,  # noqa: SLF001 - a table of the class's own methods
    "Dense": SentenceTransformersFolder._dense,  # noqa: SLF001
    "Normalize": SentenceTransformersFolder._normalize,  # noqa: SLF001
    "LayerNorm": SentenceTransformersFolder._layer_norm,  # noqa: SLF001
}


def _names(config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Which value a step reads and which one it writes."""
    source = (config or {}).get("module_input_name") or _SENTENCE
    return {"input": source, "output": (config or {}).get("module_output_name") or source}


def _class_name(module: Mapping[str, Any]) -> str:
    """The class of a module of the library; "" for a class from elsewhere."""
    text = str(module["type"])
    return text.rpartition(".")[2] if text.startswith(_MODULE_PACKAGES) else ""


def _checked_modules(name: str, content: Any) -> list[Mapping[str, Any]]:
    def fits(entry: Any) -> bool:
        return (
            isinstance(entry, dict)
            and isinstance(entry.get("type"), str)
            and isinstance(entry.get("path"), str)
            and _stays_inside(entry["path"])
        )

    if not isinstance(content, list) or not content or not all(fits(entry) for entry in content):
        raise CheckpointError(
            f"{name}: {MODULES_FILE} is not a list of modules with 'type' and 'path' (a folder of the checkpoint); restore it"
        )
    return content


def _stays_inside(path: str) -> bool:
    parts = PurePosixPath(path)
    return not parts.is_absolute() and ".." not in parts.parts and "\\" not in path and ":" not in path


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _read(fetch: Fetch, name: str) -> Any:
    file = fetch(name)
    if file is None:
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; restore the file or download it again") from error


def _read_object(fetch: Fetch, name: str) -> Mapping[str, Any]:
    content = _read(fetch, name)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise CheckpointError(f"{name} of the checkpoint is not a JSON object; restore the file or download it again")
    return content


def _text(names: Any) -> str:
    return ", ".join(sorted(names))


def _described(step: HeadStep) -> str:
    match step.kind:
        case "pooling":
            return " + ".join(step.settings["modes"])
        case "dense":
            return f"dense {step.settings['in_features']} to {step.settings['out_features']}"
        case "truncate":
            return f"first {step.settings['size']}"
        case _:
            return step.kind.replace("_", " ")
