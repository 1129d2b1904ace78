"""Text to token ids and back, from the files that Transformers' ``save_pretrained`` writes.

A fast tokenizer is read with the `tokenizers` library alone, so that a compiled artifact runs without Transformers. The rules
about special tokens and clean-up are those of ``transformers.PreTrainedTokenizerFast``; tests compare the two.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from qeff_framework.artifacts.json_files import read_json_object
from qeff_framework.errors import CheckpointError, InputError
from qeff_framework.tokenization.chat import (
    ChatOptions,
    Conversation,
    chosen_template,
    plain_messages,
    readable_messages,
    refuse_unread,
    render_chat,
    tell_left_out,
)
from qeff_framework.tokenization.token_bytes import TokenBytes

if TYPE_CHECKING:
    from tokenizers import AddedToken, Encoding, Tokenizer

logger = logging.getLogger(__name__)

#: The special tokens that every Transformers tokenizer may name in its configuration.
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

#: Where ``save_pretrained`` puts chat templates beside the default one.
_TEMPLATE_FOLDER = "additional_chat_templates"

#: Spaces that Transformers removes when ``clean_up_tokenization_spaces`` is set, in its order.
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


@runtime_checkable
class TextTokenizer(Protocol):
    """What the generation loop needs of a tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    #: Jinja source of the chat template, if the checkpoint has one.
    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, neither truncated nor padded."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`."""

    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, added tokens included."""


@runtime_checkable
class CuttingTokenizer(Protocol):
    """A tokenizer that can shorten what it returns."""

    def encode_within(self, text: str, max_length: int) -> list[int]:
        """At most `max_length` token ids of `text`, special tokens included; the text is cut, never they."""


@runtime_checkable
class AligningTokenizer(Protocol):
    """A tokenizer that knows where in its text each token stands."""

    cls_token_id: int | None
    #: Whether the model reads which of two texts a token belongs to.
    has_token_types: bool

    def encodings(
        self, text: str, pair: str | None = None, *, max_length: int | None = None, overlap: int = 0
    ) -> list[Encoding]:
        """The tokens of `text`, or of both texts, special ones included.

        Of a `pair` that is too long for `max_length` there are several encodings, each with all of `text`; one begins with the
        last `overlap` tokens of the one before. Raises `InputError` when a tokenizer cannot tell places.
        """


@runtime_checkable
class SerializableTokenizer(Protocol):
    """A tokenizer that has the form of a ``tokenizer.json``."""

    def to_json(self) -> str | None:
        """The content of a ``tokenizer.json``; `None` of a tokenizer that exists only in Python."""

    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, added tokens included."""


@runtime_checkable
class ByteTokenizer(Protocol):
    """A tokenizer that may know the bytes of its tokens."""

    def token_bytes(self, token: int) -> bytes | None:
        """What `token` stands for inside of a text; `None` where that depends on its neighbours."""


class FastTokenizer:
    """A ``tokenizers.Tokenizer`` with the conventions of Transformers around it.

    `config` is the content of ``tokenizer_config.json``, `chat_template` one template or several by name. Truncation and padding
    that the tokenizer file carries are switched off: Transformers applies them only on request.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: Mapping[str, Any] | None = None,
        *,
        chat_template: str | Mapping[str, str] | None = None,
    ) -> None:
        config = config or {}
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = bool(config.get("split_special_tokens", False))
        _add_missing_tokens(tokenizer, config)
        self._tokenizer = tokenizer
        self._cleans_up = _cleans_up(tokenizer, config)
        self._cut_side = str(config.get("truncation_side", "right"))
        self.bos_token_id = _id_of(tokenizer, config.get("bos_token"))
        self.eos_token_id = _id_of(tokenizer, config.get("eos_token"))
        self.pad_token_id = _id_of(tokenizer, config.get("pad_token"))
        self.cls_token_id = _id_of(tokenizer, config.get("cls_token"))
        self.has_token_types = "token_type_ids" in config.get("model_input_names", ("token_type_ids",))
        self._templates = chat_template
        self.chat_template = _default_template(chat_template)
        self._special_tokens = _named_tokens(config)
        self._bytes = TokenBytes(tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, neither truncated nor padded."""
        check_text(text)
        with _reading(text):
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_within(self, text: str, max_length: int) -> list[int]:
        """See `CuttingTokenizer.encode_within`."""
        self._tokenizer.enable_truncation(max_length, direction=self._cut_side)
        try:
            return self.encode(text)
        finally:
            self._tokenizer.no_truncation()

    def encodings(
        self, text: str, pair: str | None = None, *, max_length: int | None = None, overlap: int = 0
    ) -> list[Encoding]:
        """See `AligningTokenizer.encodings`."""
        check_text(text)
        check_text(pair or "")
        if max_length is None:
            with _reading(text):
                return [self._tokenizer.encode(text, pair)]
        self._tokenizer.enable_truncation(max_length, stride=overlap, strategy="only_second")
        try:
            with _reading(text):
                first = self._tokenizer.encode(text, pair)
        finally:
            self._tokenizer.no_truncation()
        return [first, *first.overflowing]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        if self._cleans_up:
            for spaced, closed in _CLEAN_UP:
                text = text.replace(spaced, closed)
        return text

    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, added tokens included."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def to_json(self) -> str:
        """See `SerializableTokenizer`."""
        return self._tokenizer.to_str()

    def token_bytes(self, token: int) -> bytes | None:
        """See `ByteTokenizer`."""
        return self._bytes(token)

    def encode_chat(self, messages: Conversation, options: ChatOptions) -> tuple[str, list[int]]:
        """See `ChatTokenizer`."""
        text = render_chat(chosen_template(self._templates, options), messages, options, self._special_tokens)
        return text, self.encode(text, add_special_tokens=False)


class TransformersTokenizer:
    """A tokenizer object of Transformers, slow or fast, behind the `TextTokenizer` protocol."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id: int | None = tokenizer.bos_token_id
        self.eos_token_id: int | None = tokenizer.eos_token_id
        self.pad_token_id: int | None = tokenizer.pad_token_id
        self.cls_token_id: int | None = getattr(tokenizer, "cls_token_id", None)
        self.has_token_types = "token_type_ids" in getattr(tokenizer, "model_input_names", ())
        template = getattr(tokenizer, "chat_template", None)
        self.chat_template: str | None = _default_template(template)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._bytes = None if backend is None else TokenBytes(backend)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, neither truncated nor padded."""
        check_text(text)
        with _reading(text):
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def encode_within(self, text: str, max_length: int) -> list[int]:
        """See `CuttingTokenizer.encode_within`."""
        check_text(text)
        with _reading(text):
            return list(self._tokenizer.encode(text, truncation=True, max_length=max_length))

    def encodings(
        self, text: str, pair: str | None = None, *, max_length: int | None = None, overlap: int = 0
    ) -> list[Encoding]:
        """See `AligningTokenizer.encodings`."""
        check_text(text)
        check_text(pair or "")
        if not getattr(self._tokenizer, "is_fast", False):
            raise InputError(
                f"{type(self._tokenizer).__name__} does not know where in the text its tokens stand; use a fast tokenizer "
                "(AutoTokenizer.from_pretrained(..., use_fast=True))"
            )
        windows: dict[str, Any] = {}
        if max_length is not None:
            windows = {"truncation": "only_second", "max_length": max_length, "stride": overlap}
            windows["return_overflowing_tokens"] = True
        return list(self._tokenizer(text, pair, **windows).encodings)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, added tokens included."""
        return dict(self._tokenizer.get_vocab())

    def to_json(self) -> str | None:
        """See `SerializableTokenizer`."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return None if backend is None else str(backend.to_str())

    def token_bytes(self, token: int) -> bytes | None:
        """See `ByteTokenizer`."""
        return None if self._bytes is None else self._bytes(token)

    def encode_chat(self, messages: Conversation, options: ChatOptions) -> tuple[str, list[int]]:
        """See `ChatTokenizer`."""
        chat = plain_messages(messages)
        add_generation_prompt, continue_final_message = options.ending(chat)
        asked: dict[str, Any] = {
            **options.chat_template_kwargs,
            "tools": None if options.tools is None else list(options.tools),
            "documents": None if options.documents is None else list(options.documents),
            "chat_template": options.chat_template,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        templates = getattr(self._tokenizer, "chat_template", None)
        source = chosen_template(templates, options) if templates or options.chat_template else ""
        if source:
            refuse_unread(source, options, chat)

        def render(messages: Sequence[Mapping[str, Any]]) -> str:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **asked))

        chat = readable_messages(chat, render)
        try:
            text = render(chat)
            ids = self._tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False, **asked)
        except Exception as error:  # a template is foreign code, and Transformers has no one error for what it raises
            raise InputError(f"the chat template cannot render the messages: {error}") from error
        if source:
            tell_left_out(source, chat, text, render)
        return text, [int(token) for token in ids]


def check_text(text: str) -> None:
    """Raises `InputError` for halves of surrogate pairs: the tokenizers library takes what can be written as UTF-8 alone."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds {text[error.start : error.end]!r} at character {error.start}, half of a surrogate pair, which no "
            "encoding writes: it was decoded wrongly, or cut inside of a character"
        ) from error


@contextmanager
def _reading(text: str) -> Iterator[None]:
    """Tells an error of the tokenizers library, which is a bare Exception, with the text and what it says of the tokenizer."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"the tokenizer cannot read {text!r:.60}: {error}; its vocabulary is that of another tokenizer class, or lacks a "
            "token that its own rules ask for: give the tokenizer that the model was trained with"
        ) from error


def encode_prompt(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Token ids of a prompt, with one start token.

    A text that a chat template has rendered begins with the start token; the tokenizer's own is left out there. Start tokens that
    the text itself repeats stay.
    """
    ids = tokenizer.encode(text)
    if len(ids) < 2 or ids[0] != ids[1]:
        return ids
    written = _leading(tokenizer.encode(text, add_special_tokens=False), ids[0])
    return ids[_leading(ids, ids[0]) - written :] if written else ids


def _leading(ids: Sequence[int], token: int) -> int:
    """How many times `ids` begins with `token`."""
    return next((count for count, other in enumerate(ids) if other != token), len(ids))


def load_tokenizer(directory: Path) -> TextTokenizer:
    """Reads the tokenizer that ``save_pretrained`` wrote to `directory`.

    With a ``tokenizer.json`` only the `tokenizers` library is used; without one (a tokenizer that exists only in Python)
    Transformers loads it from the same files. Raises `CheckpointError` when there is no readable tokenizer.
    """
    config = read_json_object(directory / "tokenizer_config.json")
    file = directory / "tokenizer.json"
    if not file.is_file():
        return _load_with_transformers(directory)
    if "added_tokens_decoder" not in config:
        # Transformers reads the special tokens map only for folders that older versions wrote, which lack this key.
        config = {**config, **read_json_object(directory / "special_tokens_map.json")}

    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception for whatever it cannot parse
        raise CheckpointError(f"{file} cannot be read as a tokenizer: {error}") from error
    return FastTokenizer(tokenizer, config, chat_template=_read_templates(directory, config))


def as_text_tokenizer(tokenizer: object) -> TextTokenizer:
    """Makes a tokenizer that the caller gives usable: a `TextTokenizer`, or any tokenizer object of Transformers."""
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    if all(hasattr(tokenizer, name) for name in ("encode", "decode", "get_vocab", "eos_token_id", "pad_token_id")):
        return TransformersTokenizer(tokenizer)
    raise InputError(
        f"{type(tokenizer).__name__} is not a tokenizer: give a Transformers tokenizer (AutoTokenizer.from_pretrained(...)) "
        "or what qeff_framework.generation.load_tokenizer returns"
    )


def _load_with_transformers(directory: Path) -> TextTokenizer:
    from transformers import AutoTokenizer

    logger.debug("%s holds no tokenizer.json; Transformers loads the tokenizer from its other files", directory)
    try:
        # Said explicitly: without it Transformers asks at the terminal whether code in the artifact may run.
        return TransformersTokenizer(AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False))
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise CheckpointError(
            f"{directory} holds no tokenizer that can be loaded: no tokenizer.json, and Transformers says: {error}. "
            "Save one there with tokenizer.save_pretrained(...), or pass a tokenizer object"
        ) from error


def _read_templates(directory: Path, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """Chat templates: files win over the entry in the configuration, as in Transformers."""
    try:
        named = {file.stem: file.read_text(encoding="utf-8") for file in (directory / _TEMPLATE_FOLDER).glob("*.jinja")}
        default = directory / "chat_template.jinja"
        if default.is_file():
            named["default"] = default.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"a chat template in {directory} cannot be read: {error}") from error
    if named:
        return named["default"] if list(named) == ["default"] else named
    entry = config.get("chat_template")
    if isinstance(entry, list):
        return {str(item["name"]): str(item["template"]) for item in entry}
    return entry if isinstance(entry, (str, dict)) else None


def _default_template(templates: object) -> str | None:
    """Of several named templates the one named "default"."""
    if isinstance(templates, Mapping):
        templates = templates.get("default")
    return templates if isinstance(templates, str) else None


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by the names under which templates know them, ``bos_token`` and so on."""
    extra = [config.get(name) for name in ("extra_special_tokens", "model_specific_special_tokens")]
    entries = {name: value for name, value in config.items() if name.endswith("_token")}
    for mapping in extra:
        entries |= mapping if isinstance(mapping, Mapping) else {}
    texts = {name: _text(value) for name, value in entries.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _add_missing_tokens(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Registers the special tokens that the configuration names and the tokenizer file does not."""
    known = tokenizer.get_added_tokens_decoder()
    # AddedToken compares by identity of more than its content; its text form shows every field.
    as_written = {repr(token) for token in known.values()}
    missing = [
        token
        for _, token in sorted((int(i), _added(t)) for i, t in config.get("added_tokens_decoder", {}).items())
        if repr(token) not in as_written
    ]
    names = {token.content for token in (*known.values(), *missing)}
    for value in _special_tokens(config):
        token = _added(value, special=True)
        if token.content not in names:
            names.add(token.content)
            missing.append(token)
    if missing:
        tokenizer.add_tokens(missing)


def _special_tokens(config: Mapping[str, Any]) -> Iterator[object]:
    """The special tokens of a configuration: the usual names, then a model's own ``..._token``, then the nameless ones."""
    yield from (config[name] for name in _NAMED_TOKENS if config.get(name))
    yield from (
        value for name, value in config.items() if name.endswith("_token") and name not in _NAMED_TOKENS if _text(value)
    )
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    yield from extra.values() if isinstance(extra, Mapping) else extra


def _added(value: object, *, special: bool | None = None) -> AddedToken:
    from tokenizers import AddedToken

    if not isinstance(value, Mapping):
        return AddedToken(str(value), special=bool(special))
    flags = {name: value[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in value}
    return AddedToken(value["content"], special=bool(value.get("special")) if special is None else special, **flags)


def _text(value: object) -> str | None:
    """Content of a token that is written as a string or as the fields of an AddedToken."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _id_of(tokenizer: Tokenizer, value: object) -> int | None:
    content = _text(value)
    return None if content is None else tokenizer.token_to_id(content)


def _cleans_up(tokenizer: Tokenizer, config: Mapping[str, Any]) -> bool:
    if not config.get("clean_up_tokenization_spaces", False):
        return False
    # Transformers leaves BPE text alone: there the spaces before punctuation belong to the text.
    forced = config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return bool(forced) or type(tokenizer.model).__name__ != "BPE"
