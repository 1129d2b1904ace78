"""Text generation with loaded programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import InputError
from qeff_framework.runtime.runner import CompiledRunner, carried_config, given_tensors
from qeff_framework.session_use import use_of

if TYPE_CHECKING:
    from qeff_framework.contracts import Array
    from qeff_framework.generation import GenerationOutput, TextGenerator

_START_IDS = ("bos_token_id", "decoder_start_token_id")
_OTHER_IDS = ("eos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id")


class CompiledCausalLM(CompiledRunner):
    """Text generation with a loaded program."""

    def __init__(self, session: ExecutionSession) -> None:
        super().__init__(session)
        # One for all calls: it knows which generation owns the cache.
        self._generator: TextGenerator | None = None
        #: The ids of adapters that were written into the program, by name.
        self._adapter_ids: Mapping[str, int] = {}

    def text_generator(self) -> TextGenerator:
        """A generator over the session, with the checkpoint's generation config and the tokenizer that the artifact carries."""
        from qeff_framework.generation import TextGenerator

        defaults = generation_defaults(self.compiled.directory)
        generator = TextGenerator(self.session, self.tokenizer, generation_defaults=defaults)
        if self._adapter_ids:
            generator.shape = replace(generator.shape, adapters=dict(self._adapter_ids))
        return generator

    def write_adapters(self, ids: Mapping[str, int], states: Mapping[str, Array]) -> None:
        """Fills a program that has room for adapters: the id of each by name, and their matrices by the names of the states.

        `QEFFAutoPeftModelForCausalLM` does this; a program that is loaded by itself begins with the model alone.

        Raises:
            InputError: the program has no such states.
        """
        session: Any = self.session  # that of a backend whose states can be written
        session.write_states(states)
        self._adapter_ids = dict(ids)
        if self._generator is not None:
            self._generator.shape = replace(self._generator.shape, adapters=self._adapter_ids)

    def generate(
        self,
        tokenizer: Any = None,
        prompts: Any = None,
        *,
        inputs: Any = None,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        generation_len: int | None = None,
        stream: bool = False,
        streamer: Any = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str | None = None,
        tools: Any = None,
        documents: Any = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        prompt_to_adapter_mapping: str | Sequence[str | None] | None = None,
        assistant_model: Any = None,
        draft: Any = None,
        **settings: Any,
    ) -> GenerationOutput:
        """Generates text: greedy, unless sampling is asked for. What else the checkpoint's generation config says, holds.

        Args:
            tokenizer: a Transformers tokenizer; `None` takes the one that the artifact carries. Tokenizer output may
                stand here too (``generate(tokenizer(texts, padding=True))``).
            prompts: texts, conversations (lists of messages, ``[{"role": "user", "content": "..."}]``), or lists of token
                ids. A conversation is rendered by the checkpoint's chat template. A text that begins with the start token
                gets no second one.
            inputs: tokenizer output: ``input_ids`` and, with padding, ``attention_mask``; or token ids alone, of which the
                checkpoint's padding id at either end is left out.
            input_ids: the ids of tokenizer output as a keyword (``generate(**tokenizer(texts, padding=True))``).
            attention_mask: its mask as a keyword.
            token_type_ids: taken because tokenizers return it, and must be 0.
            generation_len: new tokens per prompt at most (``max_new_tokens`` means the same); by default the checkpoint's
                limit, else what is left of ``ctx_len`` behind the longest prompt.
            stream: print the text while it is generated.
            streamer: a Transformers streamer; one prompt only.
            generation_config: a Transformers `GenerationConfig`.
            logits_processor: a Transformers `LogitsProcessorList`; one of a configured class replaces it, the others run
                behind the penalties and before temperature and top-k, as in Transformers.
            stopping_criteria: a Transformers `StoppingCriteriaList`.
            add_generation_prompt: a conversation's prompt ends with what begins an answer; by default unless the final
                message is continued.
            continue_final_message: the answer continues the final message; by default if that is the assistant's.
            tools: JSON schemas or functions that a conversation may call, for the chat template.
            documents: mappings with ``title`` and ``text``, for the chat template.
            chat_template: a Jinja template, or the name of one of the checkpoint's; by default the checkpoint's.
            chat_template_kwargs: further variables of the template, such as ``{"enable_thinking": False}``.
            prompt_to_adapter_mapping: the name of each prompt's adapter, or of that of all, where the program holds some; `None`
                and ``"base"`` are the model alone, which is the default.
            assistant_model: a smaller model of the same tokenizer, compiled by any backend with the same ``batch_size``, which
                proposes as many tokens per step as this program was compiled to check (``num_speculative_tokens``). The tokens
                are those without it, in fewer steps.
            draft: another name for `assistant_model`.
            **settings: single settings of a generation config, such as ``do_sample=True, temperature=0.7, seed=1``; `None`
                switches off what the checkpoint says.

        Raises:
            InputError: no prompts, empty or too long prompts, more prompts than were compiled for, a setting that a compiled
                program cannot honour.
            OptionError: an unknown setting.
        """
        from qeff_framework.tokenization import ChatOptions, as_text_tokenizer

        assistant_model = assistant_model if draft is None else draft
        if inputs is None and tokenizer is not None and not hasattr(tokenizer, "decode"):
            tokenizer, inputs = None, tokenizer
        tensors = given_tensors(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        named = {"prompts": prompts, "inputs": inputs, ", ".join(tensors or {}): tensors}
        given = [name for name, value in named.items() if value is not None]
        if len(given) != 1:
            told = "nothing to generate from was given" if not given else f"{' and '.join(given)} were given"
            raise InputError(f"{told}; give either prompts=[...] or tokenizer output, generate(**inputs)")
        chosen = tokenizer if tokenizer is not None else self.tokenizer
        if chosen is None and any(isinstance(prompt, str) for prompt in [prompts, *(prompts or ())]):
            raise InputError(f"{self.no_tokenizer}; or pass tokenizer=...")
        if generation_len is not None:
            settings["generation_len"] = generation_len
        with use_of(self.session).turn:
            if self._generator is None:
                self._generator = self.text_generator()
            self._generator.tokenizer = as_text_tokenizer(chosen) if chosen is not None else None
            return self._generator.generate(
                next(value for value in (prompts, inputs, tensors) if value is not None),
                stream=stream,
                streamer=streamer,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                chat=ChatOptions(
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    tools=tools,
                    documents=documents,
                    chat_template=chat_template,
                    chat_template_kwargs=chat_template_kwargs or {},
                ),
                prompt_to_adapter_mapping=prompt_to_adapter_mapping,
                draft=None if assistant_model is None else self.draft_session(assistant_model),
                **settings,
            )

    def draft_session(self, draft: Any) -> ExecutionSession:
        """The session of a draft model, compiled or loaded.

        Raises:
            InputError: it is no causal language model with a program, it is this one, or its tokens mean something else.
        """
        runner = getattr(draft, "runner", draft)
        if not isinstance(runner, CompiledCausalLM):
            raise InputError(
                f"{type(draft).__name__} cannot be the draft model: give a causal language model that is compiled "
                "(QEFFAutoModelForCausalLM after compile, or load_compiled(...))"
            )
        if runner.session is self.session:
            raise InputError("a program cannot be its own draft model: its cache is in use; load it a second time")
        own, other = self.tokenizer, runner.tokenizer
        if own is not None and other is not None and own.vocabulary() != other.vocabulary():
            raise InputError(
                "the draft model has another tokenizer, so that its tokens mean something else; give one with the same vocabulary"
            )
        return runner.session


class CompiledSeq2SeqLM(CompiledCausalLM):
    """Text generation with a loaded encoder-decoder program.

    ``generate`` takes what it takes for a causal LM; the prompts are the sources that the encoder reads. The decoder starts
    with the checkpoint's ``decoder_start_token_id``, else ``bos_token_id``; its ``forced_bos_token_id`` and
    ``forced_eos_token_id`` hold. ``generation_len`` new tokens per prompt at most, by default ``ctx_len - 1``.
    """


def generation_defaults(directory: Path) -> Mapping[str, Any]:
    """What the checkpoint says about generation: ``generation_config.json``, as Transformers has read it.

    The config's ids stand in where there is no such file. Where there is one, they only say what a decoder starts with, if the
    file does not: of a file with a ``bos_token_id`` Transformers takes that before the config's ``decoder_start_token_id``.
    """
    from qeff_framework.generation import load_generation_defaults

    content, stated = carried_config(directory), load_generation_defaults(directory)
    is_stated = (directory / "generation_config.json").is_file()
    has_start = any(stated.get(name) is not None for name in _START_IDS)
    names = (*(() if has_start else _START_IDS), *(() if is_stated else _OTHER_IDS))
    from_config = {name: content[name] for name in names if content.get(name) is not None}
    # Explicitly `None`: nothing but the limits ends a text, as in Transformers.
    return {**({"eos_token_id": None} if is_stated else {}), **from_config, **stated}
