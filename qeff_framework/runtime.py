"""Running a compiled artifact. Neither torch nor transformers is imported, and the checkpoint is not needed.

>>> from qeff_framework import load_compiled
>>> with load_compiled(artifact_directory) as model:
...     print(model.generate(prompts=["My name is"]).generated_texts)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from qeff_framework.artifacts import open_artifact
from qeff_framework.contracts import CompiledModel, ExecuteRequest, ExecutionSession
from qeff_framework.errors import BackendNotInstalledError, ExecutionError, InputError, OptionError
from qeff_framework.options import OF_THE_COMPILATION, misplaced_options, parse_options
from qeff_framework.plugin_answers import texts_in
from qeff_framework.progress import report
from qeff_framework.registry import normalize, registry

if TYPE_CHECKING:
    from qeff_framework.contracts import Array
    from qeff_framework.generation import (
        Answer,
        EncoderRunner,
        GenerationOutput,
        SpanLogits,
        TextGenerator,
        TextTokenizer,
    )
    from qeff_framework.plugin_api import Backend
    from qeff_framework.relay import Relay


def load_compiled(
    path: str | os.PathLike[str],
    *,
    backend: str | Backend | type[Backend] | None = None,
    verify: Literal["quick", "full"] = "quick",
    extensions: Sequence[str] | None = None,
    **runtime_options: Any,
) -> CompiledRunner:
    """Loads an artifact directory on the device that it was compiled for.

    Args:
        path: what `QEFFBaseModel.compile` returned as ``directory``, or a copy of it.
        backend: the backend that has compiled it, for one that is not installed under its name: a descriptor, or
            ``"distribution:name"`` where several packages provide the name. `None` takes the name that the artifact holds.
        verify: how the files are compared with the manifest before anything is loaded. ``"quick"``: every listed file is there
            with its size; files up to 1 MiB, and larger ones whose time stamps have changed, have their recorded SHA-256; nothing
            unlisted stands in for a config or a tokenizer. ``"full"``: every file is read, and unlisted ones are refused.
        extensions: names of extensions; `None` reads ``QEFF_EXTENSIONS``.
        **runtime_options: the backend's runtime options (device, threads, ...).

    Raises:
        ArtifactError: `path` is not a compiled artifact, or its files differ from the manifest.
        BackendError: the backend that it was compiled for cannot be used here.
        ExecutionError: the program cannot be loaded, or there is none: the bundle of a dry run that was not compiled since.
    """
    if verify not in ("quick", "full"):
        raise OptionError(f"verify={verify!r} is neither 'quick' nor 'full'")
    directory = Path(path)
    open_artifact(directory, full=verify == "full")
    compiled = CompiledModel.load(directory)
    _check_program_paths(compiled)
    if compiled.metadata.get("dry_run") and not _was_compiled_since(compiled):
        remedy = "compile the bundle where the compiler is, or " if compiled.bundle_result else ""
        raise ExecutionError(
            f"{directory} was made with dry_run: it holds the compiler's inputs and no program; {remedy}compile without dry_run"
        )
    relay = _relay_for(compiled, backend, extensions)
    options = parse_options(
        relay.backend.runtime_options,
        runtime_options,
        owner=f"runtime of backend '{relay.name}'",
        misplaced=misplaced_options(relay.backend.options, OF_THE_COMPILATION),
    )
    relay.check_runtime(options, compiled.options)
    report(f"loading the program for {relay.name}")
    session = relay.execute(ExecuteRequest(compiled=compiled, options=options))
    return _RUNNERS[compiled.task](session)


def _relay_for(
    compiled: CompiledModel, backend: str | Backend | type[Backend] | None, extensions: Sequence[str] | None
) -> Relay:
    try:
        relay = registry.get(compiled.backend if backend is None else backend, extensions=extensions)
    except BackendNotInstalledError as error:
        raise BackendNotInstalledError(
            f"{error}; {compiled.directory} was compiled for it. A backend that is a class of your own is passed as "
            "load_compiled(..., backend=YourBackend)"
        ) from error
    if normalize(relay.name) != normalize(compiled.backend):
        raise OptionError(
            f"{compiled.directory} was compiled for backend '{compiled.backend}', not for '{relay.name}'; leave backend out"
        )
    return relay


def _check_program_paths(compiled: CompiledModel) -> None:
    """Raises `ArtifactCorruptError` for an existing file outside of the artifact that its program names.

    Backends read `program` as they like; this guards those that join names without `CompiledModel.path`.
    """
    for text in texts_in(compiled.program):
        if text and "\0" not in text and os.path.lexists(compiled.directory / text):
            compiled.path(text)


def runner_of(task: str) -> type[CompiledRunner]:
    """The class that runs programs of `task`."""
    return _RUNNERS[task]


def _was_compiled_since(compiled: CompiledModel) -> bool:
    return bool(compiled.bundle_result) and compiled.path(compiled.bundle_result).is_file()


class CompiledRunner:
    """A loaded program. Use it as a context manager, or call `close`."""

    def __init__(self, session: ExecutionSession) -> None:
        self.session = session
        self.compiled = session.compiled
        self._tokenizer: TextTokenizer | None = None

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """The tokenizer that the artifact carries, or `None`."""
        directory = self.compiled.directory / "tokenizer"
        if self._tokenizer is None and directory.is_dir():
            from qeff_framework.generation import load_tokenizer

            self._tokenizer = load_tokenizer(directory)
        return self._tokenizer

    @property
    def no_tokenizer(self) -> str:
        """Why texts cannot be read where the artifact carries no tokenizer, as far as it is known, and the remedy."""
        problem = self.compiled.metadata.get("tokenizer_problem")
        told = f": {problem}" if problem else ""
        return (
            f"{self.compiled.directory} carries no tokenizer, so that texts cannot be read{told}; mend that, or save a tokenizer "
            "in the model's folder, and compile again"
        )

    @property
    def info(self) -> Mapping[str, str]:
        """Where it runs: device, simulator or hardware."""
        return self.session.info

    @cached_property
    def _encoder(self) -> EncoderRunner:
        """Feeds programs that read their inputs in one pass."""
        from qeff_framework.generation import EncoderRunner

        return EncoderRunner(self.session)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program; see the task's class."""
        raise NotImplementedError

    def close(self) -> None:
        """Releases device and memory. Idempotent."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CompiledCausalLM(CompiledRunner):
    """Text generation with a loaded program."""

    def __init__(self, session: ExecutionSession) -> None:
        super().__init__(session)
        # One for all calls: it knows which generation owns the cache.
        self._generator: TextGenerator | None = None

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
            **settings: single settings of a generation config, such as ``do_sample=True, temperature=0.7, seed=1``; `None`
                switches off what the checkpoint says.

        Raises:
            InputError: no prompts, empty or too long prompts, more prompts than were compiled for, a setting that a compiled
                program cannot honour.
            OptionError: an unknown setting.
        """
        from qeff_framework.generation import ChatOptions, TextGenerator, as_text_tokenizer

        if inputs is None and tokenizer is not None and not hasattr(tokenizer, "decode"):
            tokenizer, inputs = None, tokenizer
        tensors = _tensors(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        named = {"prompts": prompts, "inputs": inputs, ", ".join(tensors or {}): tensors}
        given = [name for name, value in named.items() if value is not None]
        if len(given) != 1:
            told = "nothing to generate from was given" if not given else f"{' and '.join(given)} were given"
            raise InputError(f"{told}; give either prompts=[...] or tokenizer output, generate(**inputs)")
        if self._generator is None:
            self._generator = TextGenerator(
                self.session, generation_defaults=generation_defaults(self.compiled.directory)
            )
        chosen = tokenizer if tokenizer is not None else self.tokenizer
        if chosen is None and any(isinstance(prompt, str) for prompt in [prompts, *(prompts or ())]):
            raise InputError(f"{self.no_tokenizer}; or pass tokenizer=...")
        self._generator.tokenizer = as_text_tokenizer(chosen) if chosen is not None else None
        if generation_len is not None:
            settings["generation_len"] = generation_len
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
            **settings,
        )


class CompiledSeq2SeqLM(CompiledCausalLM):
    """Text generation with a loaded encoder-decoder program.

    ``generate`` takes what it takes for a causal LM; the prompts are the sources that the encoder reads. The decoder starts
    with the checkpoint's ``decoder_start_token_id``, else ``bos_token_id``; its ``forced_bos_token_id`` and
    ``forced_eos_token_id`` hold. ``generation_len`` new tokens per prompt at most, by default ``ctx_len - 1``.
    """


class CompiledEncoder(CompiledRunner):
    """Embeddings with a loaded program."""

    def generate(
        self,
        inputs: str | Sequence[str] | Mapping[str, Any] | None = None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        prepared: bool = False,
        **tensors: Any,
    ) -> Array:
        """Embeds texts, or tokenizer output.

        Texts are prepared as the checkpoint says: a sentence-transformers checkpoint may put a prompt in front, lower-case
        them, and cut long ones. Tokens are embedded as they are, and refused where the checkpoint changes or cuts texts before.

        Args:
            inputs: texts, one or several; or ``input_ids [N, S]`` and ``attention_mask [N, S]``, any number of rows, padded on
                any side. Without a mask every id is text, as in Transformers.
            prompt: text in front of every text, "" for none; by default the checkpoint's.
            prompt_name: instead of it, the name of one of the checkpoint's prompts.
            prepared: the tokens are those of texts that were prepared already, and are taken as they are.
            **tensors: tokens as keywords (``generate(**tokenizer(texts))``).

        Returns:
            float32 ``[N, hidden]`` with pooling in the graph, else ``[N, S, hidden]``.

        Raises:
            InputError: no inputs, longer ones than were compiled for, tokens of texts that the checkpoint would have changed,
                an unknown prompt, or texts for an artifact without a tokenizer.
        """
        from qeff_framework.generation import check_tokens, tokenise_texts

        preparation: Mapping[str, Any] = self.compiled.metadata.get("texts") or {}
        texts = [inputs] if isinstance(inputs, str) else inputs
        if isinstance(texts, Sequence) and texts and any(isinstance(text, str) for text in texts):
            if self.tokenizer is None:
                raise InputError(
                    f"{self.compiled.directory} carries no tokenizer, so that texts cannot be read; save one in the model's "
                    "folder and compile again, or give tokens"
                )
            if tensors:
                raise InputError("give texts or tokens, and not both")
            return self._encoder(
                tokenise_texts(texts, self.tokenizer, preparation, prompt=prompt, prompt_name=prompt_name)
            )
        if prompt is not None or prompt_name is not None:
            raise InputError("prompt and prompt_name are for texts: tokens are taken as they are")
        given: Any = inputs
        tokens = _one_of(given, tensors)
        if not prepared:
            check_tokens(tokens, preparation)
        return self._encoder(tokens)


class CompiledClassifier(CompiledRunner):
    """Class scores with a loaded program."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What the columns of the logits stand for, as the checkpoint's config names them, else ``LABEL_0``, ..."""
        names = _config(self.compiled.directory).get("id2label") or {}
        count = int(self.compiled.outputs[0].shape[-1])
        return tuple(str(names.get(str(index), f"LABEL_{index}")) for index in range(count))

    @property
    def problem_type(self) -> str | None:
        """``"regression"``, ``"single_label_classification"``, ``"multi_label_classification"``, or `None`: not stated."""
        stated = _config(self.compiled.directory).get("problem_type")
        return None if stated is None else str(stated)

    def generate(self, inputs: Mapping[str, Any] | None = None, **tensors: Any) -> Array:
        """Classifies tokenizer output.

        Args:
            inputs: ``input_ids [N, S]`` and ``attention_mask [N, S]``; any number of rows.
            **tensors: the same as keywords (``generate(**tokenizer(texts))``).

        Returns:
            Logits, float32 ``[N, labels]``.

        Raises:
            InputError: no inputs, or longer ones than were compiled for.
        """
        return self._encoder(_one_of(inputs, tensors))


class CompiledTokenClassifier(CompiledClassifier):
    """Class scores of each token: ``generate`` returns logits ``[N, S, labels]``; those of padding mean nothing."""


class CompiledQuestionAnswering(CompiledRunner):
    """Answers that stand in a text, with a loaded program."""

    def generate(self, inputs: Mapping[str, Any] | None = None, **tensors: Any) -> SpanLogits:
        """Scores each token of tokenizer output as start and as end of the answer.

        Args:
            inputs: of pairs of question and context: ``input_ids [N, S]``, ``attention_mask [N, S]`` and, where the model reads
                them, ``token_type_ids [N, S]``; any number of rows.
            **tensors: the same as keywords (``generate(**tokenizer(questions, contexts))``).

        Returns:
            ``start_logits`` and ``end_logits``, float32 ``[N, S]``; those of padding mean nothing.

        Raises:
            InputError: no inputs, or longer ones than were compiled for.
        """
        from qeff_framework.generation import SpanLogits

        outputs = self._encoder.outputs(_one_of(inputs, tensors))
        return SpanLogits(outputs["start_logits"], outputs["end_logits"])

    def answer(
        self,
        question: str,
        context: str,
        *,
        tokenizer: Any = None,
        max_answer_len: int = 15,
        doc_stride: int = 128,
        handle_impossible_answer: bool = False,
    ) -> Answer:
        """The part of `context` that answers `question` best, by the rules of the question-answering pipeline of Transformers 4.

        Args:
            question: one question.
            context: the text that holds the answer; one that is too long for the program is read in windows.
            tokenizer: a fast tokenizer of Transformers; `None` takes the one that the artifact carries.
            max_answer_len: tokens of an answer at most.
            doc_stride: tokens by which windows overlap, at most half of the program's length.
            handle_impossible_answer: there may be no answer, with an empty text.

        Raises:
            InputError: an empty text, a question that leaves no room for the context, or no tokenizer that fits.
        """
        from qeff_framework.generation import as_text_tokenizer, find_answer

        chosen = tokenizer if tokenizer is not None else self.tokenizer
        if chosen is None:
            raise InputError(f"{self.no_tokenizer}; or pass tokenizer=...")
        return find_answer(
            self.generate,
            as_text_tokenizer(chosen),
            question,
            context,
            max_tokens=max(item.dims["seq_len"] for item in self.compiled.specializations),
            max_answer_len=max_answer_len,
            doc_stride=doc_stride,
            handle_impossible_answer=handle_impossible_answer,
        )


def _one_of(inputs: Mapping[str, Any] | None, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tokenizer output, which is given as one argument or as keywords."""
    given = _tensors(**tensors)
    if inputs is not None and given is not None:
        raise InputError(
            f"inputs and {', '.join(given)} were given; give tokenizer output once, as inputs or as keywords"
        )
    if inputs is None and given is None:
        raise InputError("no inputs were given; give what a tokenizer returns: input_ids and attention_mask")
    return inputs if inputs is not None else given or {}


def _tensors(**tensors: Any) -> dict[str, Any] | None:
    """The tensors that were given, by name; `None` for none."""
    return {name: value for name, value in tensors.items() if value is not None} or None


_RUNNERS: Mapping[str, type[CompiledRunner]] = {
    "causal-lm": CompiledCausalLM,
    "encoder": CompiledEncoder,
    "sequence-classification": CompiledClassifier,
    "token-classification": CompiledTokenClassifier,
    "question-answering": CompiledQuestionAnswering,
    "seq2seq-lm": CompiledSeq2SeqLM,
}


def generation_defaults(directory: Path) -> Mapping[str, Any]:
    """What the checkpoint says about generation: ``generation_config.json``, as Transformers has read it.

    The config's ids stand in where there is no such file. Where there is one, they only say what a decoder starts with.
    """
    from qeff_framework.generation import load_generation_defaults

    content, stated = _config(directory), load_generation_defaults(directory)
    is_stated = (directory / "generation_config.json").is_file()
    names = _START_IDS if is_stated else (*_START_IDS, *_OTHER_IDS)
    from_config = {name: content[name] for name in names if content.get(name) is not None}
    # Explicitly `None`: nothing but the limits ends a text, as in Transformers.
    return {**({"eos_token_id": None} if is_stated else {}), **from_config, **stated}


def _config(directory: Path) -> Mapping[str, Any]:
    """The Hugging Face config that the artifact carries."""
    file = directory / "config.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content


_START_IDS = ("bos_token_id", "decoder_start_token_id")
_OTHER_IDS = ("eos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id")
