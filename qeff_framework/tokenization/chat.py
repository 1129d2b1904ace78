"""Conversations as prompts: lists of messages, rendered by the checkpoint's chat template.

The text is that of Transformers' ``apply_chat_template``, without Transformers. A template is code of the checkpoint: it runs in
Jinja's sandbox and sees plain JSON values only.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

from qeff_framework.errors import InputError, OptionError
from qeff_framework.options import check_switches

if TYPE_CHECKING:
    import jinja2

logger = logging.getLogger(__name__)

#: Messages, each with a ``role`` and in most cases a ``content``.
Conversation = Sequence[Mapping[str, Any]]

#: Names under which a message's reasoning is passed; templates read the first or the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")
#: Stands where a message ends that is to be continued.
_OPEN_END = "QEFF-OPEN-END "


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How conversations are rendered. The names are those of ``apply_chat_template``."""

    #: Ends the prompt with what begins an answer. `None`: unless the final message is continued.
    add_generation_prompt: bool | None = None
    #: The answer continues the final message. `None`: where that is the assistant's. A text: the field that is continued.
    continue_final_message: bool | str | None = None
    #: JSON schemas, or functions with type hints and docstrings.
    tools: Sequence[Any] | None = None
    #: Mappings with ``title`` and ``text``.
    documents: Sequence[Mapping[str, Any]] | None = None
    #: Jinja source, or the name of one of the checkpoint's templates.
    chat_template: str | None = None
    #: Further variables of the template, for instance ``{"enable_thinking": False}``.
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises `OptionError` for variables of the template that the call sets itself: what they say would be lost."""
        own = [
            name for name in (*(entry.name for entry in fields(self)), "messages") if name in self.chat_template_kwargs
        ]
        if own:
            raise OptionError(
                f"chat_template_kwargs holds {', '.join(own)}, which {'is' if len(own) == 1 else 'are'} given for every "
                "conversation in another way: as an argument of the call, or in the messages; leave it out there"
            )

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the options that were set."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) not in (None, {}))

    def ending(self, messages: Conversation) -> tuple[bool, bool | str]:
        """`add_generation_prompt` and `continue_final_message` for these messages.

        Raises `OptionError` for both at once.
        """
        check_switches("generate", add_generation_prompt=self.add_generation_prompt)
        continued = self.continue_final_message
        if continued is None:
            continued = not self.add_generation_prompt and messages[-1].get("role") == "assistant"
        if continued and self.add_generation_prompt:
            raise OptionError(
                "add_generation_prompt begins a new message, continue_final_message goes on with one; give one"
            )
        added = not continued if self.add_generation_prompt is None else self.add_generation_prompt
        return added, continued


@runtime_checkable
class ChatTokenizer(Protocol):
    """A tokenizer that renders conversations."""

    def encode_chat(self, messages: Conversation, options: ChatOptions) -> tuple[str, list[int]]:
        """The text that the chat template makes of `messages`, and its token ids, without further special tokens.

        Raises `InputError` where there is no template or it refuses the messages.
        """


def is_conversation(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether `value` is a list of messages."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and bool(value)
        and all(_is_message(item) for item in value)
    )


def _is_message(value: object) -> bool:
    return "role" in value if isinstance(value, Mapping) else hasattr(value, "role") and not hasattr(value, "tolist")


#: What parts of messages may be, for a model that reads text.
TEXT_PARTS = frozenset({"text"})


#: Roles whose messages are texts; what a tool has returned may be any JSON value, where a template writes it as JSON.
_ROLES_OF_TEXT = frozenset({"system", "developer", "user", "assistant"})


def plain_messages(messages: Sequence[Any], parts: frozenset[str] = TEXT_PARTS) -> list[dict[str, Any]]:
    """Messages as JSON values.

    Raises `InputError` for parts of other types than `parts` names, and for contents that are neither texts nor parts.
    """
    plain: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        content = _json_value(message)
        # A missing key means the same as None, and templates tend to print None.
        plain.append({key: value for key, value in content.items() if value is not None})
        given, role = plain[-1].get("content", ""), plain[-1].get("role")
        for part in given if isinstance(given, list) else ():
            kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
            if kind not in parts:
                raise InputError(
                    f"message {number} holds a part of type {kind!r}; the program reads {' and '.join(sorted(parts))} only"
                )
        pieces = given if isinstance(given, list) else [given]
        odd = [piece for piece in pieces if not _is_piece(piece, of_list=isinstance(given, list))]
        if odd and role in _ROLES_OF_TEXT:
            raise InputError(
                f"message {number} (role {role!r}) holds {odd[0]!r:.60}, which is neither a text nor a part; give its content as "
                "a text, or as a list of parts: [{'type': 'text', 'text': ...}]"
            )
    return plain


def _is_piece(value: object, *, of_list: bool) -> bool:
    """Whether a content, or a part of one, is of a form that templates read."""
    if not of_list:
        return isinstance(value, str)
    return isinstance(value, Mapping) and (value.get("type", "text") != "text" or isinstance(value.get("text"), str))


def readable_messages(
    chat: Sequence[dict[str, Any]], render: Callable[[Sequence[Mapping[str, Any]]], str]
) -> list[dict[str, Any]]:
    """The messages in the form that the template reads, of which `render` makes a text.

    Parts of text become one text, a line for each, where the template takes no parts: Jinja would write the list as Python prints
    it, and the model would read that.

    Raises `InputError` for another content that the template writes so.
    """
    given = [message.get("content") for message in chat]
    if not any(content and isinstance(content, (list, dict)) for content in given):
        return list(chat)
    text: str | None = None
    with contextlib.suppress(Exception):  # is told where it is rendered in earnest
        text = render(chat)
    read: list[dict[str, Any]] = []
    for number, (message, content) in enumerate(zip(chat, given, strict=True)):
        is_printed = bool(content) and isinstance(content, (list, dict)) and text is not None and str(content) in text
        texts = _texts_of(content)
        if texts is not None and (is_printed or text is None):
            read.append({**message, "content": "\n".join(texts)})
            continue
        if is_printed:
            raise InputError(
                f"the chat template writes the content of message {number} (role {message.get('role')!r}) as Python prints a "
                f"{type(content).__name__}; give it as a text, for instance as JSON"
            )
        read.append(message)
    return read


def _texts_of(content: object) -> list[str] | None:
    """The texts of parts that hold nothing else."""
    if not isinstance(content, list) or not content or not all(_is_piece(part, of_list=True) for part in content):
        return None
    return [part["text"] for part in content] if all("text" in part for part in content) else None


def chosen_template(templates: str | Mapping[str, str] | None, options: ChatOptions) -> str:
    """Jinja source of the template: the one that `options` names or contains, else the checkpoint's."""
    asked = options.chat_template
    if isinstance(templates, Mapping):
        for name in (
            (asked,) if asked is not None else (*(["tool_use"] if options.tools is not None else []), "default")
        ):
            if name in templates:
                return templates[name]
        if asked is None:
            raise InputError(
                f"the tokenizer has the chat templates {', '.join(sorted(templates))} and no default; name one with "
                "chat_template=..."
            )
    if asked is not None and "{" not in asked:
        # A name, as Transformers would render it for every conversation.
        names = ", ".join(sorted(templates)) if isinstance(templates, Mapping) else ""
        told = f"the tokenizer has {names}" if names else "the tokenizer has no templates with names"
        raise InputError(
            f"chat_template={asked!r} is no Jinja template, and {told}; give one of its names, or a template"
        )
    if asked is not None:
        return asked
    if templates is None:
        raise InputError(
            "the tokenizer has no chat template, so that messages cannot be rendered; give the prompt as text, or a Jinja "
            "template with chat_template=..."
        )
    return str(templates)


def without_chat_template(name: str) -> InputError:
    """The error for a conversation with a checkpoint or artifact that cannot render one."""
    return InputError(
        f"{name} has no chat template, so that a conversation cannot be rendered; use `qeff generate`, or a checkpoint that was "
        "trained for conversations"
    )


def render_chat(
    source: str,
    messages: Conversation,
    options: ChatOptions,
    special_tokens: Mapping[str, str],
    *,
    parts: frozenset[str] = TEXT_PARTS,
) -> str:
    """The text that the template `source` makes of `messages`; `special_tokens` are variables of it, such as ``bos_token``.

    `parts` are the types that parts of messages may have.

    Raises `InputError` where the template refuses the messages, does not read an option that was given, or is none.
    """
    import jinja2

    plain = plain_messages(messages, parts)
    refuse_unread(source, options, plain)
    chat = [_with_reasoning(message) for message in plain]
    add_generation_prompt, continued = options.ending(chat)
    variables = {
        **special_tokens,
        **_json_value(options.chat_template_kwargs),
        "tools": None if options.tools is None else [_tool_schema(tool) for tool in options.tools],
        "documents": _json_value(options.documents),
        "add_generation_prompt": add_generation_prompt,
    }

    def render(messages: Sequence[Mapping[str, Any]]) -> str:
        return _compiled(source).render(**variables, messages=messages)

    chat = readable_messages(chat, render)
    name = continued if isinstance(continued, str) else "content"
    final = _open_end(chat, name, source) if continued else ""
    try:
        text = render(chat)
    except jinja2.TemplateError as error:
        raise InputError(f"the chat template cannot render the messages: {error or type(error).__name__}") from error
    # A template is foreign code: it may stumble over any value that it did not expect.
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, LookupError, RecursionError) as error:
        raise InputError(
            f"the chat template cannot render the messages: {type(error).__name__}: {error}; are they of the form that the "
            "model's page shows?"
        ) from error
    tell_left_out(source, chat, text, render)
    return _cut_at_open_end(text, final) if continued else text


# --- what a template does not read ------------------------------------------------------------------------------------


def refuse_unread(source: str, options: ChatOptions, chat: Sequence[Mapping[str, Any]]) -> None:
    """Raises `InputError` for tools, documents, variables and messages of which the template `source` reads nothing.

    Jinja passes over a variable that a template does not read: the model would not see it, and nothing would say so.
    """
    asked = {"tools": options.tools, "documents": options.documents}
    names = [*(name for name, value in asked.items() if value), *options.chat_template_kwargs]
    words = set(re.findall(r"[^\W\d]\w*", source))
    for name in names:
        if name not in words:
            where = name if name in asked else f"chat_template_kwargs: {name}"
            near = difflib.get_close_matches(name, words, n=1, cutoff=0.75)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"{where} would have no effect: the chat template does not read {name!r}; {meant}leave it out, or give a "
                "template that reads it with chat_template=..."
            )
    for number, message in enumerate(chat):
        fields = [name for name in message if name not in ("role", "content")]
        if "content" not in message and not words.intersection(fields):
            told = f", and the template reads none of its fields {', '.join(map(repr, fields))}" if fields else ""
            raise InputError(
                f"message {number} (role {message.get('role')!r}) has no 'content'{told}; give its text as 'content'"
            )


def tell_left_out(
    source: str,
    chat: Sequence[Mapping[str, Any]],
    text: str,
    render: Callable[[Sequence[Mapping[str, Any]]], str],
) -> None:
    """Warns about each role whose messages, or calls of tools, the template `source` leaves out of `text`.

    `render` makes the text of other messages. What a template trims or quotes is found by changing it: the text of a message
    that is left out altogether has no influence on the result.
    """
    for number, message in enumerate(chat):
        content = message.get("content")
        if isinstance(content, str) and content.strip() and content.strip() not in text:
            changed = [*chat[:number], {**message, "content": f"{content} {_OPEN_END}"}, *chat[number + 1 :]]
            with contextlib.suppress(Exception):  # a template that objects to the change has read the message
                if render(changed) == text:
                    _tell_once(source, f"the messages of role {message.get('role')!r}")
        if message.get("tool_calls") and "tool_calls" not in source:
            _tell_once(source, "the tool_calls of messages")


@lru_cache(maxsize=256)
def _tell_once(_source: str, what: str) -> None:
    """One warning for each template and what it leaves out, however many conversations it renders."""
    logger.warning(
        "the chat template leaves out %s, so that the model does not read them, as in Transformers; put the text into a message "
        "of another role, or give another template with chat_template=...",
        what,
    )


# --- the message that is continued ------------------------------------------------------------------------------------


def _open_end(chat: list[dict[str, Any]], name: str, source: str) -> str:
    """Marks the end of the final message's text, and returns that text."""
    message = chat[-1]
    names = [other for other in _REASONING if message.get(other) == message.get(name)] if name in _REASONING else [name]
    content = message.get(name)
    if content is None or not any(other in source for other in names):
        raise InputError(f"continue_final_message: the final message has no {name!r} that the chat template reads")
    if isinstance(content, list):
        part = next((part for part in reversed(content) if isinstance(part, dict) and "text" in part), None)
        if part is None:
            raise InputError("continue_final_message: the final message holds no text")
        text = str(part["text"])
        part["text"] = text + _OPEN_END
        return text
    for other in names:
        message[other] = f"{content}{_OPEN_END}"
    return str(content)


def _cut_at_open_end(text: str, final: str) -> str:
    place = text.rfind(_OPEN_END.strip())
    if place < 0 or final.strip() not in text:
        raise InputError(
            "continue_final_message: the chat template leaves the final message out or changes it, so that it cannot be continued"
        )
    if _OPEN_END.strip() in text[:place]:
        raise InputError(
            "continue_final_message: the chat template repeats the final message, so that it cannot be continued"
        )
    # Where the template has removed the space behind the mark, it has removed the message's own as well.
    kept_spaces = text.startswith(_OPEN_END, place)
    return text[:place] if kept_spaces else text[:place].rstrip()


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under the names that templates read."""
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


# --- what a template sees ---------------------------------------------------------------------------------------------


def _json_value(value: Any) -> Any:
    """`value` of JSON types only. Other objects have methods that a template must not reach: their type's name remains."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    elif is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value) if type(value) is not kind else value
    if isinstance(value, Mapping):
        return {_json_value(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if hasattr(value, "tolist"):
        return _json_value(value.tolist())
    return f"<{type(value).__name__}>"


def _tool_schema(tool: Any) -> Any:
    if isinstance(tool, Mapping):
        return _json_value(tool)
    if not callable(tool):
        raise OptionError(f"tools: {type(tool).__name__} is neither a JSON schema nor a function")
    try:
        from transformers.utils.chat_template_utils import get_json_schema
    except ImportError as error:
        raise OptionError(
            f"tools: the schema of a function needs transformers ({error}); give a JSON schema"
        ) from error
    try:
        return get_json_schema(tool)
    except Exception as error:  # Transformers has no one error for a function without hints or docstring
        raise OptionError(f"tools: {getattr(tool, '__name__', 'a function')} has no schema: {error}") from error


# --- Jinja ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    """The template in a sandbox with what Transformers gives to templates."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _answer_blocks()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_new_dict, namespace=_namespace()
    )
    return environment.from_string(source)


def _answer_blocks() -> Any:
    """The tag ``{% generation %}``, which marks what an assistant has written; here its content counts alone."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class AnswerBlocks(Extension):
        tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return AnswerBlocks


def _namespace() -> Callable[..., Any]:
    """Jinja's namespaces, without the names by which Python's internals can be reached."""
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    class PublicNamespace(Namespace):
        def __init__(*args: Any, **attributes: Any) -> None:
            self, *rest = args
            Namespace.__init__(self, *rest, **attributes)
            given: dict[Any, Any] = dict(*rest, **attributes)
            for name in given:
                _check_public(name)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_public(name)
            super().__setitem__(name, value)

    def _check_public(name: object) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a chat template cannot store {name!r} in a namespace")

    return PublicNamespace


def _raise_exception(message: object) -> None:
    from jinja2 import TemplateError

    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().astimezone().strftime(format)


def _new_dict(*args: Any, **entries: Any) -> dict[Any, Any]:
    return dict(*args, **entries)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
