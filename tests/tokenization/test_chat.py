"""Conversations as prompts: the text and the ids of Transformers' ``apply_chat_template``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qeff_framework.errors import InputError, OptionError
from qeff_framework.generation import TextGenerator
from qeff_framework.tokenization import ChatOptions, as_text_tokenizer, load_tokenizer
from qeff_framework.tokenization.chat import ChatTokenizer
from tests.generation.fakes import FakeCausalLM, expected_tokens
from tests.tokenizer_folders import byte_level_tokenizer

TEMPLATES = {
    "default": """{{ bos_token }}{% for message in messages %}
        {%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}{{ raise_exception('role ' + message.role) }}{% endif %}
        {%- set text = message.content if message.content is string else message.content | map(attribute='text') | join('') %}
<|{{ message.role }}|>
{{ text | trim }}{{ eos_token }}
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}""",
    "tool_use": """{{ bos_token }}{% set ns = namespace(count=0) %}
{%- if tools %}Tools: {{ tools | tojson(indent=2) }}
{% endif %}
{%- for message in messages %}
  {%- if message.role == 'skip' %}{% continue %}{% endif %}
  {%- set ns.count = ns.count + 1 %}
  {%- if message.tool_calls is defined %}{{ message.tool_calls | tojson }}{% endif %}
  {%- generation %}[{{ ns.count }}:{{ message.role }}]{{ message.content }}{% endgeneration %}
{% endfor %}
{%- for d in documents or [] %}{{ d.title }}: {{ d.text }}{% endfor %}
{%- if not thinking_off is defined %}<think>{% endif %}
{{- strftime_now('%Y')[:2] }}{{ dict(a=1).a }}{{ sep_token }}{% if tool_hint %}{{ tool_hint }}{% endif %}""",
    "reasoning": "{% for m in messages %}{{ m.content }}/{{ m.thinking }}{% endfor %}",
    "twice": "{{ messages[-1].content }}{{ messages[-1].content }}",
    "evil": "{{ ''.__class__.__mro__ }}",
    "writes": "{{ messages.append(1) }}",
    "secret": "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "broken": "{% if %}",
}
USER = {"role": "user", "content": "The quick brown fox <tool> 北京"}
ASSISTANT = {"role": "assistant", "content": "jumps over\n", "tool_calls": None}
TOOL = {"type": "function", "function": {"name": "größe", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chat")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(),
        bos_token="<bos>",
        eos_token="<eos>",
        sep_token="<turn>",
        additional_special_tokens=["<tool>"],
    )
    tokenizer.chat_template = TEMPLATES
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ChatTokenizer:
    loaded = load_tokenizer(folder)
    assert isinstance(loaded, ChatTokenizer)
    assert loaded.chat_template == TEMPLATES["default"]
    return loaded


@dataclass
class Message:
    role: str
    content: str
    name: str | None = None


CONVERSATIONS: list[tuple[list[Any], dict[str, Any]]] = [
    ([USER], {}),
    ([{"role": "system", "content": "Be brief."}, USER, ASSISTANT, USER], {}),
    ([USER], {"add_generation_prompt": False}),
    ([USER, ASSISTANT], {"add_generation_prompt": True}),
    ([USER, ASSISTANT], {"continue_final_message": True}),
    ([USER, {"role": "assistant", "content": [{"type": "text", "text": "jumps "}]}], {"continue_final_message": True}),
    ([Message("user", "It's what they say")], {}),
    ([USER, {**USER, "role": "skip"}], {"tools": [TOOL], "chat_template_kwargs": {"tool_hint": "hint"}}),
    ([{**USER, "tool_calls": [{"name": "ä", "arguments": {"x": 1.5}}]}], {"chat_template": "tool_use"}),
    ([USER], {"chat_template": "tool_use", "documents": [{"title": "one", "text": "two"}]}),
    ([USER], {"chat_template": "{{ messages[0].content }}{{ eos_token }}"}),
    ([{**ASSISTANT, "reasoning": "hm"}], {"chat_template": "reasoning", "continue_final_message": "reasoning"}),
    ([{**ASSISTANT, "thinking": "hm"}, USER], {"chat_template": "reasoning"}),
]


@pytest.mark.parametrize(("messages", "asked"), CONVERSATIONS)
def test_text_and_ids_are_those_of_transformers(
    folder: Path, tokenizer: ChatTokenizer, messages: list[Any], asked: dict[str, Any]
) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    continued = asked.get("continue_final_message", False)
    keywords = {"add_generation_prompt": not continued, **asked}
    keywords |= keywords.pop("chat_template_kwargs", {})
    expected_text = theirs.apply_chat_template(messages, tokenize=False, **keywords)
    expected_ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **keywords)

    for each in (tokenizer, as_text_tokenizer(theirs)):
        text, ids = each.encode_chat(messages, ChatOptions(**asked))
        assert (text, ids) == (expected_text, expected_ids)


def test_an_answer_that_has_begun_is_continued(tokenizer: ChatTokenizer) -> None:
    text, _ = tokenizer.encode_chat([USER, ASSISTANT], ChatOptions())
    assert text.endswith("<|assistant|>\njumps over")
    with pytest.raises(OptionError, match="begins a new message"):
        tokenizer.encode_chat([USER], ChatOptions(add_generation_prompt=True, continue_final_message=True))


@pytest.mark.parametrize(
    ("messages", "asked", "message"),
    [
        ([{"role": "judge", "content": "x"}], {}, "cannot render the messages: role judge"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], {}, "holds a part of type 'image'"),
        ([USER, ASSISTANT], {"chat_template": "twice"}, "the chat template repeats the final message"),
        ([USER, ASSISTANT], {"chat_template": "{# content #}none"}, "leaves the final message out"),
        ([USER], {"chat_template": "evil"}, "cannot render the messages: .*unsafe"),
        ([USER], {"chat_template": "writes"}, "cannot render the messages: .*unsafe"),
        ([USER], {"chat_template": "secret"}, "cannot store '_x' in a namespace"),
        ([USER], {"chat_template": "broken"}, "cannot render the messages: "),
        ([USER], {"chat_template": "no {{ text"}, "cannot render the messages: "),
        (
            [USER, {"role": "assistant", "content": ""}],
            {"chat_template": "{{ bos_token }}"},
            "has no 'content' that the chat",
        ),
    ],
)
def test_what_cannot_be_rendered_says_why(
    tokenizer: ChatTokenizer, messages: list[Any], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer.encode_chat(messages, ChatOptions(**asked))


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message"])
def test_a_variable_that_the_call_sets_itself_is_refused(name: str) -> None:
    """What it says would be lost: the call's own value stands in its place."""
    with pytest.raises(OptionError, match=f"chat_template_kwargs holds {name}, which is given"):
        ChatOptions(chat_template_kwargs={name: False, "enable_thinking": True})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tools": [TOOL]}, "tools would have no effect: the chat template does not read 'tools'"),
        ({"documents": [{"title": "one", "text": "two"}]}, "documents would have no effect"),
        ({"chat_template_kwargs": {"enable_thinkng": False}}, "did you mean 'enable_thinking'"),
    ],
)
def test_what_a_template_does_not_read_is_refused(
    folder: Path, tokenizer: ChatTokenizer, asked: dict[str, Any], message: str
) -> None:
    """Jinja passes over such variables: the model would answer as if nothing had been asked."""
    template = "{{ messages[0].content }}{% if enable_thinking %}<think>{% endif %}"
    for each in (tokenizer, as_text_tokenizer(AutoTokenizer.from_pretrained(folder))):
        with pytest.raises(InputError, match=message):
            each.encode_chat([USER], ChatOptions(chat_template=template, **asked))
        assert each.encode_chat([USER], ChatOptions(chat_template=template, tools=[]))[0] == USER["content"]


def test_parts_of_text_are_one_text_for_a_template_that_takes_no_parts(folder: Path, tokenizer: ChatTokenizer) -> None:
    """Jinja would write the list as Python prints it."""
    parts = [{"type": "text", "text": "The quick"}, {"type": "text", "text": "brown fox"}]
    both = [{"role": "user", "content": parts}, {"role": "assistant", "content": parts[:1]}]
    joined = [{"role": "user", "content": "The quick\nbrown fox"}, {"role": "assistant", "content": "The quick"}]
    for each in (tokenizer, as_text_tokenizer(AutoTokenizer.from_pretrained(folder))):
        for template in ("{% for m in messages %}{{ m.content }};{% endfor %}", "{{ messages[0].content.strip() }}"):
            options = ChatOptions(chat_template=template, add_generation_prompt=True)
            assert each.encode_chat(both, options) == each.encode_chat(joined, options)
        text, _ = each.encode_chat(both, ChatOptions(add_generation_prompt=True))
        assert "The quickbrown fox" in text, "the template has joined the parts"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "user", "content": {"type": "text", "text": "x"}}, "which is neither a text nor a part"),
        ({"role": "user", "content": 5}, "which is neither a text nor a part"),
        ({"role": "user", "content": ["x"]}, "which is neither a text nor a part"),
        ({"role": "user", "content": [{"type": "text"}]}, "which is neither a text nor a part"),
        ({"role": "tool", "content": {"degrees": 5}}, "as Python prints a dict; give it as a text"),
    ],
)
def test_contents_that_a_template_would_print_are_refused(
    folder: Path, tokenizer: ChatTokenizer, message: dict[str, Any], told: str
) -> None:
    for each in (tokenizer, as_text_tokenizer(AutoTokenizer.from_pretrained(folder))):
        with pytest.raises(InputError, match=told):
            each.encode_chat([message], ChatOptions(chat_template="{{ messages[0].content }}"))
        if message["role"] == "tool":
            text, _ = each.encode_chat([message], ChatOptions(chat_template="{{ messages[0].content | tojson }}"))
            assert text == '{"degrees": 5}'


def test_a_message_that_says_nothing_is_refused(folder: Path, tokenizer: ChatTokenizer) -> None:
    """A misspelt 'content' would be an empty message."""
    for each in (tokenizer, as_text_tokenizer(AutoTokenizer.from_pretrained(folder))):
        with pytest.raises(
            InputError, match=r"message 1 \(role 'user'\) has no 'content', .* none of its fields 'contents'"
        ):
            each.encode_chat([USER, {"role": "user", "contents": "x"}], ChatOptions())
        with pytest.raises(InputError, match=r"message 0 \(role 'user'\) has no 'content'; give"):
            each.encode_chat([{"role": "user", "content": None}], ChatOptions())


def test_messages_that_a_template_leaves_out_are_told(
    folder: Path, tokenizer: ChatTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    source = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content | upper }};{% endif %}{% endfor %}"
    system = {"role": "system", "content": "Be brief."}
    for number, each in enumerate((tokenizer, as_text_tokenizer(AutoTokenizer.from_pretrained(folder)))):
        options = ChatOptions(chat_template=f"{source}{number}")
        each.encode_chat([{**USER, "content": "written otherwise"}], options)
        assert not caplog.records
        for _ in range(2):
            text, _ids = each.encode_chat([system, USER], options)
            assert "brief" not in text.lower()
        assert "leaves out the messages of role 'system'" in caplog.text
        each.encode_chat([{**USER, "tool_calls": [{"name": "f"}]}], options)
        assert "leaves out the tool_calls" in caplog.text
        assert len(caplog.records) == 2  # each once, however often it is rendered
        caplog.clear()


def test_messages_are_not_changed_by_rendering(tokenizer: ChatTokenizer) -> None:
    messages = [USER, {"role": "assistant", "content": [{"type": "text", "text": "jumps "}]}]
    before = json.dumps(messages)
    tokenizer.encode_chat(messages, ChatOptions())
    assert json.dumps(messages) == before


def test_templates_lie_in_several_places(folder: Path, tmp_path: Path) -> None:
    """Of a folder that Transformers has written, of one with a single file, and of older ones with an entry in the config."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for name, entry, template in [
        ("entry", "{{ 'entry' }}", "entry"),
        ("pairs", [{"name": "default", "template": "{{ 'pair' }}"}, {"name": "x", "template": "{{ 'x' }}"}], "pair"),
        ("none", None, None),
    ]:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        (directory / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": entry}))
        loaded = load_tokenizer(directory)
        assert isinstance(loaded, ChatTokenizer)
        if template is None:
            with pytest.raises(InputError, match="the tokenizer has no chat template.*give the prompt as text"):
                loaded.encode_chat([USER], ChatOptions())
        else:
            assert loaded.encode_chat([USER], ChatOptions())[0] == template
    without_default = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(), chat_template={"a": "1", "b": "2"}
    )
    without_default.save_pretrained(tmp_path / "named")
    named = load_tokenizer(tmp_path / "named")
    assert isinstance(named, ChatTokenizer)
    with pytest.raises(InputError, match="has the chat templates a, b and no default"):
        named.encode_chat([USER], ChatOptions())
    assert named.encode_chat([USER], ChatOptions(chat_template="b"))[0] == "2"
    # A misspelt name is no template: it would be the text of every prompt.
    with pytest.raises(InputError, match="chat_template='c' is no Jinja template, and the tokenizer has a, b; give"):
        named.encode_chat([USER], ChatOptions(chat_template="c"))


# --- as prompts -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(folder: Path) -> TextGenerator:
    loaded = load_tokenizer(folder)
    session = FakeCausalLM(batch_size=3, prefill=8, ctx_len=128, vocab=len(loaded.vocabulary()))
    return TextGenerator(session, loaded)


def test_conversations_and_texts_are_prompts_alike(generator: TextGenerator, tokenizer: ChatTokenizer) -> None:
    two = [USER, ASSISTANT, USER]
    rendered = {id(chat): tokenizer.encode_chat(chat, ChatOptions()) for chat in ([USER],)}
    (first_text, first_ids), (second_text, second_ids) = (*rendered.values(), tokenizer.encode_chat(two, ChatOptions()))
    vocab = len(generator.tokenizer.vocabulary()) if generator.tokenizer else 0

    output = generator.generate([[USER], "The fox", two], max_new_tokens=3)

    assert output.prompts == [first_text, "The fox", second_text]
    assert output.prompt_lengths == [len(first_ids), len(generator.tokenizer.encode("The fox")), len(second_ids)]
    assert output.generated_ids[0] == expected_tokens(first_ids, 3, vocab=vocab)
    alone = generator.generate([USER], max_new_tokens=3)
    assert (alone.prompts, alone.generated_ids) == ([first_text], output.generated_ids[:1])
    assert "".join(generator.stream([USER], max_new_tokens=3)) == alone.generated_texts[0]


def test_a_rendered_text_gets_no_second_start_token(generator: TextGenerator, tokenizer: ChatTokenizer) -> None:
    text, ids = tokenizer.encode_chat([USER], ChatOptions())
    start = ids[0]
    output = generator.generate([text, "<bos><bos>fox", "fox"], max_new_tokens=2)
    assert output.prompt_lengths[0] == len(ids)
    assert output.generated_ids[0] == generator.generate([USER], max_new_tokens=2).generated_ids[0]
    fox = generator.tokenizer.encode("fox", add_special_tokens=False)
    # Start tokens that the text itself repeats are the caller's; a text without one gets it.
    assert output.prompt_lengths[1:] == [len(fox) + 2, len(fox) + 1]
    assert generator.tokenizer.encode("<bos>fox") == [start, start, *fox], "the tokenizer itself would add one"


def test_ids_that_begin_with_two_start_tokens_are_worth_a_warning(
    generator: TextGenerator, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = generator.tokenizer.encode("<bos>fox")
    generator.generate([tokens], max_new_tokens=1)
    generator.generate([tokens], max_new_tokens=1)
    assert caplog.text.count("begins with the start token 0 twice") == 1


@pytest.mark.parametrize(
    ("prompts", "keywords", "error", "message"),
    [
        (USER, {}, InputError, "a message alone is no conversation; give a list"),
        ([{"content": "x"}], {}, InputError, "'content'} among the prompts is no message"),
        ([[{"content": "x"}]], {}, InputError, "'content'} among the prompts is no message"),
        (["text", [1, 2]], {}, InputError, "prompt 1 is neither a text nor a list of messages"),
        (["text"], {"chat": ChatOptions(tools=[TOOL])}, OptionError, "tools is for prompts that are conversations"),
        ([[1, 2]], {"chat": ChatOptions(add_generation_prompt=True)}, OptionError, "add_generation_prompt is for"),
    ],
)
def test_prompts_of_no_known_form_are_refused(
    generator: TextGenerator, prompts: Any, keywords: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generator.generate(prompts, **keywords)
