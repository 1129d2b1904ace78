"""``qeff generate``: text from prompts, embeddings or classes of texts, classes of tokens, answers to questions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import (
    add_compile_options,
    add_model,
    add_subcommand,
    add_verify,
    compile_texts,
    key_value,
    texts_by_name,
)
from qeff_framework.cli.compile import compile_model
from qeff_framework.cli.outcome import Outcome
from qeff_framework.cli.tables import facts
from qeff_framework.errors import ArtifactError, InputError, OptionError
from qeff_framework.textfiles import read_input, split_lines

if TYPE_CHECKING:
    from qeff_framework.cli.progress import ProgressHandler
    from qeff_framework.contracts import Array, CompiledModel
    from qeff_framework.generation import GenerationOutput, TextTokenizer
    from qeff_framework.runtime import (
        CompiledCausalLM,
        CompiledClassifier,
        CompiledEncoder,
        CompiledQuestionAnswering,
        CompiledRunner,
        CompiledTokenClassifier,
    )

_SAMPLING = ("temperature", "top_k", "top_p", "seed")


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "generate",
        run,
        summary="run a model or a compiled artifact",
        description="Generates text, embeds or classifies texts, classifies their tokens, or answers questions. A MODEL is "
        "compiled first, unless the artifact store has "
        "its program. An ARTIFACT runs as it is, without torch and transformers. What the checkpoint's generation config says "
        "about decoding (banned tokens, penalties, limits, ends) holds; sampling needs --do-sample.",
        examples=[
            'qeff generate gpt2 --backend ort_sim --prompt "My name is" --max-new-tokens 20',
            'qeff generate gpt2-compiled --prompt "one" "two" --json',
            'qeff generate chat-model --chat --system "Answer briefly." --prompt "Who wrote Faust?"',
            'qeff generate squad-model --prompt "Who wrote it?" --context-file page.txt',
        ],
    )
    add_model(parser, metavar="MODEL|ARTIFACT")
    prompts = parser.add_argument_group("input")
    prompts.add_argument("--prompt", metavar="TEXT", nargs="+", action="extend", default=[], help="one text or several")
    prompts.add_argument("--prompts-file", metavar="FILE", help="a text per line (UTF-8); - reads standard input")
    prompts.add_argument(
        "--chat",
        action="store_true",
        help="text generation: each prompt is a user's message, and the checkpoint's chat template makes the text of it",
    )
    prompts.add_argument("--system", metavar="TEXT", help="with --chat: the system message before each prompt")
    prompts.add_argument(
        "--messages-file",
        metavar="FILE",
        help='text generation: conversations for the chat template, as JSON: [{"role": "user", "content": "..."}], or a list of '
        "such lists; - reads standard input",
    )
    prompts.add_argument(
        "--chat-template-kwargs",
        metavar="JSON",
        help='further variables of the chat template, {"enable_thinking": false}',
    )
    context = prompts.add_mutually_exclusive_group()
    context.add_argument(
        "--context",
        metavar="TEXT",
        help="question answering: the text that holds the answers; the prompts are questions",
    )
    context.add_argument(
        "--context-file", metavar="FILE", help="question answering: the same from a file; - reads standard input"
    )
    generation = parser.add_argument_group("generation")
    generation.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=int,
        help="new tokens per prompt at most (default: the checkpoint's limit, else what ctx_len leaves)",
    )
    generation.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="print text while it is generated (default: on a terminal, with one prompt)",
    )
    generation.add_argument(
        "--do-sample", action="store_true", help="draw tokens by chance (default: the most likely one)"
    )
    generation.add_argument(
        "--temperature", metavar="T", type=float, help="sampling: above 1 flattens, below 1 sharpens"
    )
    generation.add_argument("--top-k", metavar="N", type=int, help="sampling: only the N most likely tokens")
    generation.add_argument(
        "--top-p", metavar="P", type=float, help="sampling: only the most likely tokens that make up P"
    )
    generation.add_argument("--seed", metavar="N", type=int, help="sampling: the same seed draws the same tokens")
    generation.add_argument(
        "--prompt-lookup-num-tokens",
        metavar="N",
        type=int,
        help="the same text in fewer steps: check up to N tokens that followed before (needs -O num_speculative_tokens=N)",
    )
    generation.add_argument(
        "-R",
        "--runtime-option",
        dest="runtime_options",
        metavar="KEY=VALUE",
        type=key_value,
        action="append",
        default=[],
        help="a runtime option of the backend",
    )
    add_verify(parser)
    add_compile_options(parser)


def run(args: argparse.Namespace, progress: ProgressHandler) -> Outcome:
    """Compiles if needed, loads and runs."""
    prompts, context = _prompts(args), _context(args)
    conversations = _conversations(args, prompts)
    settings = _settings(args)
    compiled = _artifact(args) or compile_model(args, reads_texts=True)
    with _load(args, compiled) as runner:
        from qeff_framework.runtime import (
            CompiledCausalLM,
            CompiledClassifier,
            CompiledEncoder,
            CompiledQuestionAnswering,
            CompiledTokenClassifier,
        )

        answers = isinstance(runner, CompiledQuestionAnswering)
        if answers != (context is not None):
            raise OptionError(
                "the program answers questions about a text; give it with --context TEXT or --context-file FILE"
                if answers
                else f"the program is for {compiled.task}: --context is for question answering; leave it out"
            )
        if isinstance(runner, CompiledCausalLM):
            return _generate(runner, conversations, settings, args, progress)
        if settings or args.stream or args.chat or args.messages_file is not None:
            raise OptionError(
                f"the program is for {compiled.task}: it generates no text, and the options of text generation do not apply"
            )
        if isinstance(runner, CompiledEncoder):
            return _embed(runner, prompts, progress)
        if isinstance(runner, CompiledTokenClassifier):
            return _classify_tokens(runner, prompts, progress)
        if isinstance(runner, CompiledClassifier):
            return _classify(runner, prompts, progress)
        if isinstance(runner, CompiledQuestionAnswering) and context is not None:
            return _answer(runner, prompts, context, progress)
    raise InputError(f"`qeff generate` has no way to show the results of task '{compiled.task}'; use the Python API")


# --- input ----------------------------------------------------------------------------------------------------------


def _prompts(args: argparse.Namespace) -> list[str]:
    prompts = [*args.prompt]
    if args.prompts_file is not None:
        prompts += [line for line in split_lines(_read(args.prompts_file, "prompts")) if line.strip()]
    if not prompts and args.messages_file is None:
        raise OptionError(
            "there is nothing to work on; give --prompt TEXT, --prompts-file FILE or --messages-file FILE"
        )
    return prompts


def _conversations(args: argparse.Namespace, prompts: Sequence[str]) -> list[Any]:
    """The prompts of text generation: texts, or conversations with ``--chat`` and from ``--messages-file``."""
    if args.system is not None and not args.chat:
        raise OptionError("--system begins a conversation; add --chat")
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    told = [[*system, {"role": "user", "content": text}] for text in prompts] if args.chat else [*prompts]
    return [*told, *([] if args.messages_file is None else _messages(args.messages_file))]


def _messages(file: str) -> list[list[dict[str, Any]]]:
    """The conversations in a JSON file: one list of messages, or a list of such lists."""
    from qeff_framework.generation import is_conversation

    try:
        content = json.loads(_read(file, "messages"))
    except ValueError as error:
        raise InputError(f"the messages in {file} are not JSON: {error}") from error
    conversations = [content] if is_conversation(content) else content
    if not isinstance(conversations, list) or not conversations or not all(map(is_conversation, conversations)):
        raise InputError(
            f'{file} must hold a list of messages, [{{"role": "user", "content": "..."}}], or a list of such lists'
        )
    return conversations


def _context(args: argparse.Namespace) -> str | None:
    context: str | None = args.context
    return _read(args.context_file, "context") if args.context_file is not None else context


def _read(file: str, what: str) -> str:
    try:
        return read_input(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the {what} in {file} cannot be read: {error}; give a UTF-8 text file") from error


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, checked before a model is compiled for them."""
    from qeff_framework.generation import resolve_settings

    given = {name: getattr(args, name) for name in _SAMPLING if getattr(args, name) is not None}
    if given and not args.do_sample:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionError(f"{flags} has no effect without sampling; add --do-sample")
    if args.do_sample:
        given["do_sample"] = True
    for name in ("max_new_tokens", "prompt_lookup_num_tokens"):
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    resolve_settings({}, None, **given)
    if args.chat_template_kwargs is not None:
        given["chat_template_kwargs"] = _template_variables(args)
    return given


def _template_variables(args: argparse.Namespace) -> dict[str, Any]:
    try:
        variables = json.loads(args.chat_template_kwargs)
    except ValueError as error:
        raise OptionError(f"--chat-template-kwargs is not JSON: {error}") from error
    if not isinstance(variables, dict):
        raise OptionError('--chat-template-kwargs must be a JSON object, {"enable_thinking": false}')
    if not args.chat and (args.messages_file is None or args.prompt or args.prompts_file is not None):
        raise OptionError("--chat-template-kwargs is for conversations; add --chat, or give --messages-file FILE alone")
    return variables


def _artifact(args: argparse.Namespace) -> CompiledModel | None:
    """The compiled artifact that MODEL|ARTIFACT names, or `None` when it names a model."""
    from qeff_framework.contracts import CompiledModel, ExportedModel

    directory = Path(args.model)
    if (directory / ExportedModel.FILE).is_file():
        raise ArtifactError(
            f"{directory} is an export, which no backend has compiled; give the model or a compiled artifact"
        )
    if not (directory / CompiledModel.FILE).is_file():
        return None
    compiled = CompiledModel.load(directory)
    if args.backend is not None:
        from qeff_framework.registry import normalize

        if normalize(args.backend.rpartition(":")[2]) != normalize(compiled.backend):
            raise OptionError(
                f"{directory} was compiled for backend '{compiled.backend}', not for '{args.backend}'; leave --backend out, "
                "or give the model instead of the artifact"
            )
    of_the_model = ("gguf_file", "revision", "pooling", "trust_remote_code")
    fixed = [*compile_texts(args), *(name for name in of_the_model if getattr(args, name))]
    if fixed:
        raise OptionError(
            f"{', '.join(fixed)} cannot be given for {directory}: it is compiled already; give the model instead, or, for an "
            "option of the runtime, use -R"
        )
    return compiled


def _load(args: argparse.Namespace, compiled: CompiledModel) -> CompiledRunner:
    from qeff_framework.cli.text_options import typed_options
    from qeff_framework.registry import registry
    from qeff_framework.runtime import load_compiled

    texts = texts_by_name(args.runtime_options)
    if "verify" in texts:
        raise OptionError("'verify' is not an option of a backend's runtime; use --verify")
    options = typed_options(texts, [registry.descriptor(compiled.backend).runtime_options]) if texts else {}
    return load_compiled(compiled.directory, verify=args.verify, extensions=args.extension, **options)


# --- text -----------------------------------------------------------------------------------------------------------


def _generate(
    runner: CompiledCausalLM,
    prompts: Sequence[Any],
    settings: Mapping[str, Any],
    args: argparse.Namespace,
    progress: ProgressHandler,
) -> Outcome:
    from qeff_framework.progress import report

    _tokenizer(runner)
    stream = args.stream if args.stream is not None else len(prompts) == 1 and sys.stdout.isatty() and not args.json
    shown = stream or not args.json
    report(f"generating text for {len(prompts)} prompts" if len(prompts) > 1 else "generating text")
    outputs: list[GenerationOutput] = []
    for first, group in _groups(prompts, _prompts_at_once(runner.compiled, len(prompts))):
        alone = stream and len(group) == 1
        if alone:
            progress.clear()
            print(_label(first, prompts), end="", flush=True)
        outputs.append(runner.generate(prompts=group, stream=alone, **settings))
        if shown and not alone:
            progress.clear()
            for index, text in enumerate(outputs[-1].generated_texts, first):
                print(f"{_label(index, prompts)}{text}", flush=True)
    return _text_outcome(runner, outputs)


def _prompts_at_once(compiled: CompiledModel, count: int) -> int:
    """With continuous batching prompts take turns by themselves."""
    if any("full_batch_size" in item.dims for item in compiled.specializations):
        return count
    return min(item.dims["batch_size"] for item in compiled.specializations)


def _groups(prompts: Sequence[Any], batch_size: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """As many prompts at once as the program computes, each group with the number of its first prompt."""
    for first in range(0, len(prompts), batch_size):
        yield first, prompts[first : first + batch_size]


def _label(index: int, prompts: Sequence[Any]) -> str:
    return f"[{index}] " if len(prompts) > 1 else ""


def _text_outcome(runner: CompiledRunner, outputs: Sequence[GenerationOutput]) -> Outcome:
    metrics = _metrics(outputs)
    results = [
        {
            "prompt": prompt,
            "text": text,
            "token_ids": ids,
            "prompt_tokens": length,
            "finish_reason": reason,
        }
        for output in outputs
        for prompt, text, ids, length, reason in zip(
            output.prompts,
            output.generated_texts,
            output.generated_ids,
            output.prompt_lengths,
            output.finish_reasons,
            strict=True,
        )
    ]
    figures = {
        "time to first token": f"{metrics['time_to_first_token']:.3f} s",
        "decode": f"{metrics['decode_tokens_per_second']:.1f} tokens/s",
        "total": f"{metrics['new_tokens']} tokens in {metrics['total_time']:.3f} s, "
        f"{metrics['tokens_per_second']:.1f} tokens/s",
        "note": metrics["note"],
    }
    return Outcome(
        document={**_where(runner), "results": results, "metrics": metrics},
        summary=facts({"backend": _backend_line(runner), **figures, "artifact": str(_place(runner))}),
    )


def _metrics(outputs: Sequence[GenerationOutput]) -> dict[str, Any]:
    """Figures of all groups together; the time to first token is that of the first group."""
    tokens = sum(len(ids) for output in outputs for ids in output.generated_ids)
    total = sum(output.perf_metrics.total_time for output in outputs)
    decoding = total - sum(output.perf_metrics.prefill_time for output in outputs)
    decoded = tokens - sum(len(output.generated_ids) for output in outputs)
    return {
        "time_to_first_token": outputs[0].perf_metrics.time_to_first_token,
        "decode_tokens_per_second": decoded / decoding if decoded and decoding > 0 else 0.0,
        "tokens_per_second": tokens / total if total > 0 else 0.0,
        "new_tokens": tokens,
        "total_time": total,
        "drafts_proposed": sum(output.perf_metrics.drafts_proposed for output in outputs),
        "drafts_accepted": sum(output.perf_metrics.drafts_accepted for output in outputs),
        "note": outputs[0].perf_metrics.note,
    }


# --- embeddings -----------------------------------------------------------------------------------------------------


def _embed(runner: CompiledEncoder, texts: Sequence[str], progress: ProgressHandler) -> Outcome:
    import time

    from qeff_framework.progress import report

    _tokenizer(runner)
    report(f"embedding {len(texts)} texts")
    start = time.perf_counter()
    embeddings = runner.generate(texts)
    seconds = time.perf_counter() - start
    progress.clear()
    shape = list(embeddings.shape)
    found = {"shape": shape, "embeddings": embeddings.tolist()}
    return _texts_outcome(runner, texts, [f"{embeddings.dtype} {shape}"], found, seconds)


# --- classes --------------------------------------------------------------------------------------------------------


def _classify(runner: CompiledClassifier, texts: Sequence[str], progress: ProgressHandler) -> Outcome:
    from qeff_framework.generation import class_scores

    logits, seconds = _run_on_texts(runner, texts, progress, doing="classifying")
    labels, scores = runner.labels, class_scores(logits, runner.problem_type)
    best = [int(row.argmax()) for row in scores]
    results = [
        {
            "prompt": text,
            "label": labels[index],
            "scores": dict(zip(labels, row.tolist(), strict=True)),
            "logits": values.tolist(),
        }
        for text, index, row, values in zip(texts, best, scores, logits, strict=True)
    ]
    lines = [f"{_label(number, texts)}{labels[index]} {scores[number, index]:.4f}" for number, index in enumerate(best)]
    return _texts_outcome(runner, texts, lines, {"labels": list(labels), "results": results}, seconds)


# --- tokens ---------------------------------------------------------------------------------------------------------


def _classify_tokens(runner: CompiledTokenClassifier, texts: Sequence[str], progress: ProgressHandler) -> Outcome:
    from qeff_framework.generation import align, class_scores

    logits, seconds = _run_on_texts(runner, texts, progress, doing="classifying the tokens of")
    tokenizer = _tokenizer(runner)
    labels = runner.labels
    results, lines = [], []
    for number, (text, row) in enumerate(zip(texts, logits, strict=True)):
        (tokens,) = align(tokenizer, text)
        scores = class_scores(row, None)
        found = []
        for place, (owner, (start, end)) in enumerate(zip(tokens.texts, tokens.spans, strict=True)):
            if owner is None:  # special tokens are no part of the text
                continue
            best = int(scores[place].argmax())
            token = {
                "token": text[start:end],
                "label": labels[best],
                "score": float(scores[place, best]),
                "start": start,
                "end": end,
                "logits": row[place].tolist(),
            }
            found.append(token)
            lines.append(f"{_label(number, texts)}{token['token']} {token['label']} {token['score']:.4f}")
        results.append({"prompt": text, "tokens": found})
    return _texts_outcome(runner, texts, lines, {"labels": list(labels), "results": results}, seconds)


# --- answers --------------------------------------------------------------------------------------------------------


def _answer(
    runner: CompiledQuestionAnswering, questions: Sequence[str], context: str, progress: ProgressHandler
) -> Outcome:
    import dataclasses
    import time

    from qeff_framework.progress import report

    _tokenizer(runner)
    report(f"answering {len(questions)} questions")
    start = time.perf_counter()
    answers = [runner.answer(question, context) for question in questions]
    seconds = time.perf_counter() - start
    progress.clear()
    lines = [f"{_label(number, questions)}{answer.text} {answer.score:.4f}" for number, answer in enumerate(answers)]
    results = [
        {"prompt": question, **dataclasses.asdict(answer)} for question, answer in zip(questions, answers, strict=True)
    ]
    return _texts_outcome(runner, questions, lines, {"results": results}, seconds)


# --- one pass over texts --------------------------------------------------------------------------------------------


def _run_on_texts(
    runner: CompiledClassifier, texts: Sequence[str], progress: ProgressHandler, *, doing: str
) -> tuple[Array, float]:
    """The program's output for each text, and the seconds that it took."""
    import time

    from qeff_framework.generation import encode_prompt
    from qeff_framework.progress import report
    from qeff_framework.runtime import CompiledTokenClassifier

    tokenizer = _tokenizer(runner)
    report(f"{doing} {len(texts)} texts")
    start = time.perf_counter()
    # The tokens of a text are told apart by the tokenizer's own output, so that it must stay as it is.
    encode = tokenizer.encode if isinstance(runner, CompiledTokenClassifier) else partial(encode_prompt, tokenizer)
    output = runner.generate({"input_ids": [encode(text) for text in texts]})
    seconds = time.perf_counter() - start
    progress.clear()
    return output, seconds


def _tokenizer(runner: CompiledRunner) -> TextTokenizer:
    if runner.tokenizer is None:
        raise InputError(f"{runner.no_tokenizer}; or use the Python API with token ids")
    return runner.tokenizer


def _texts_outcome(
    runner: CompiledRunner, texts: Sequence[str], lines: Sequence[str], found: Mapping[str, Any], seconds: float
) -> Outcome:
    metrics = {"total_time": seconds, "texts_per_second": len(texts) / seconds}
    return Outcome(
        document={**_where(runner), **found, "metrics": metrics},
        text="\n".join(lines),
        summary=_texts_summary(runner, texts, seconds),
    )


def _texts_summary(runner: CompiledRunner, texts: Sequence[str], seconds: float) -> str:
    return facts(
        {
            "backend": _backend_line(runner),
            "total": f"{len(texts)} texts in {seconds:.3f} s",
            "artifact": str(_place(runner)),
        }
    )


# --- where it ran ---------------------------------------------------------------------------------------------------


def _where(runner: CompiledRunner) -> dict[str, Any]:
    compiled = runner.compiled
    return {
        "backend": compiled.backend,
        "device": dict(runner.info),
        "task": compiled.task,
        "model": compiled.metadata.get("model_name", ""),
        "artifact": str(_place(runner)),
    }


def _place(runner: CompiledRunner) -> Path:
    return runner.compiled.directory.absolute()


def _backend_line(runner: CompiledRunner) -> str:
    """The backend and where it ran; a simulator is called one."""
    info = dict(runner.info)
    simulated = info.pop("simulator", "").lower() in ("yes", "true", "1")
    info.pop("note", None)  # stands in a line of its own
    told = [*(["simulator"] if simulated else []), *(f"{name} {value}" for name, value in info.items() if value)]
    return f"{runner.compiled.backend} ({', '.join(told)})" if told else runner.compiled.backend
