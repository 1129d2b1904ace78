"""``qeff generate``: text or pictures from prompts, images or speech, embeddings or classes, answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import (
    add_compile_options,
    add_model,
    add_parallel,
    add_runtime_options,
    add_subcommand,
    add_verify,
)
from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.compile import compile_model
from qeff_framework.cli.drafts import add_draft, check_draft, opened_draft
from qeff_framework.cli.generate_input import (
    add_settings,
    given_audio,
    given_context,
    given_conversations,
    given_images,
    given_prompts,
    given_settings,
    given_videos,
)
from qeff_framework.cli.picture_input import check_artifact, given_pictures
from qeff_framework.cli.programs import given_artifact, load_program
from qeff_framework.cli.results.request import ResultsRequest
from qeff_framework.errors import OptionError
from qeff_framework.tasks import task_spec

if TYPE_CHECKING:
    from qeff_framework.cli.progress import ProgressHandler
    from qeff_framework.contracts import Task
    from qeff_framework.tasks import TaskSpec


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "generate",
        run,
        summary="run a model or a compiled artifact",
        description="Generates text or pictures, embeds or classifies texts, classifies their tokens, answers questions, or "
        "writes down or classifies sound or images. A MODEL is compiled first, unless the store has its program. An ARTIFACT "
        "runs as it is, without torch and transformers, which pictures alone need. What the checkpoint's generation config says "
        "about decoding (banned tokens, penalties, limits, ends) holds; sampling needs --do-sample.",
        examples=[
            'qeff generate gpt2 --backend ort_sim --prompt "My name is" --max-new-tokens 20',
            'qeff generate gpt2-compiled --prompt "one" "two" --json',
            'qeff generate chat-model --chat --system "Answer briefly." --prompt "Who wrote Faust?"',
            'qeff generate vision-model --image photo.jpg --prompt "What is this?"',
            'qeff generate vision-model -O num_frames=8 --video clip.mp4 --prompt "What happens?"',
            "qeff generate whisper-model --audio speech.wav --language en",
            'qeff generate pipeline --prompt "a lighthouse" --output out.png --steps 4 --seed 1',
            'qeff generate pipeline --image in.png --strength 0.6 --prompt "a lighthouse by night" --output out.png',
            'qeff generate chat-model --chat --prompt "Who wrote Faust?" --json-schema author.json',
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
    prompts.add_argument(
        "--image",
        metavar="FILE",
        nargs="+",
        action="append",
        default=[],
        help="models of images: the images of a prompt, once for each prompt in their order; for a classifier images alone; for "
        "pictures the one to begin with",
    )
    prompts.add_argument(
        "--video",
        metavar="FILE",
        nargs="+",
        action="append",
        default=[],
        help="vision-language models: the videos of a prompt (MP4, WebM, ...), once for each prompt in their order; needs -O "
        "num_frames=N where the model has a program for videos",
    )
    prompts.add_argument(
        "--audio",
        metavar="FILE",
        nargs="+",
        action="extend",
        default=[],
        help="models of speech and sound: files (WAV, FLAC, ...) instead of prompts; resampled where the model needs that",
    )
    prompts.add_argument("--language", metavar="CODE", help="speech with a decoder: what is spoken (default: detected)")
    prompts.add_argument(
        "--speech-task", metavar="NAME", help="speech with a decoder: transcribe, or translate (to English)"
    )
    prompts.add_argument(
        "--timestamps", action="store_true", help="speech with a decoder: a line with times for each segment"
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
    add_settings(generation)
    add_draft(generation)
    generation.add_argument(
        "--num-beams",
        metavar="N",
        type=int,
        help="beam search: the best of N texts, which needs N rows for each prompt (default: the checkpoint's, else 1)",
    )
    generation.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="print text while it is generated (default: on a terminal, with one prompt)",
    )
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="the PNG file to write; of several prompts FILE-1.png, FILE-2.png, ...",
    )
    pictures.add_argument(
        "--mask", metavar="FILE", nargs="+", default=[], help="with --image: what is painted anew is white in it"
    )
    pictures.add_argument(
        "--strength", metavar="S", type=float, help="with --image: how much of it is changed, above 0 and 1 at most"
    )
    pictures.add_argument("--steps", metavar="N", type=int, help="steps of the scheduler (default 20)")
    pictures.add_argument("--negative-prompt", metavar="TEXT", help="what the picture should not show")
    pictures.add_argument(
        "--guidance-scale", metavar="G", type=float, help="how closely to follow the prompt (default: the pipeline's)"
    )
    pictures.add_argument(
        "--cache-threshold",
        metavar="T",
        type=float,
        help="programs with -O enable_first_block_cache=true: change of the first block up to which a step is not computed "
        "(default 0.05; 0 computes every step)",
    )
    add_runtime_options(generation)
    add_verify(parser)
    add_parallel(parser)
    add_compile_options(parser)


def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:
    """Compiles if needed, loads and runs."""
    check_draft(args)
    audio = given_audio(args)
    has_texts = args.prompt or args.prompts_file is not None or args.messages_file is not None
    # A model of images or sound alone takes no prompts; that there are some where they are needed is checked with the task.
    prompts = given_prompts(args) if has_texts or not (audio or args.image or args.video) else []
    context = given_context(args)
    conversations = given_conversations(args, prompts)
    settings, images, videos = _settings(args), given_images(args), given_videos(args)
    pictures = given_pictures(args, len(prompts), images)

    from qeff_framework.model import GivenInput

    def check_task(task: str) -> None:
        _check_task(task, args, prompts=len(prompts), has_context=context is not None, has_settings=bool(settings))

    # Of a model for images and text, the text model alone is less to compile, and takes every option of text generation.
    prefer: Task = "image-text-to-text" if args.image or args.video else "causal-lm"
    compiled = given_artifact(args) or compile_model(
        args,
        check_task=check_task,
        prefer=prefer,
        given=GivenInput(
            texts=bool(prompts),
            prompts=conversations,
            chat_template_kwargs=settings.get("chat_template_kwargs", {}),
            settings=settings,
            images=images,
            videos=videos,
            clips=[each.seconds for each in audio],
            language=args.language,
            speech_task=args.speech_task,
        ),
        pictures=pictures,
    )
    check_task(compiled.task)
    if task_spec(compiled.task).makes_pictures:
        check_artifact(compiled, pictures)
    request = ResultsRequest(
        texts=prompts,
        prompts=conversations,
        images=images,
        videos=videos,
        audio=audio,
        context=context,
        settings=settings,
        pictures=pictures,
        args=args,
        progress=progress,
    )
    with opened_draft(args, compiled) as draft, load_program(args, compiled) as runner:
        if draft is not None:
            settings["draft"] = draft
        return task_spec(compiled.task).show_results(runner, request)


#: Options of pictures, by their attributes.
_OF_PICTURES = ("output", "mask", "strength", "steps", "negative_prompt", "guidance_scale", "cache_threshold")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of text generation. A seed beside options of pictures is theirs."""
    if args.steps is not None and args.steps < 1:
        raise OptionError(f"--steps {args.steps} is less than 1")
    of_pictures = bool(_given_of_pictures(args))
    return given_settings(argparse.Namespace(**{**vars(args), "seed": None}) if of_pictures else args)


def _given_of_pictures(args: argparse.Namespace) -> list[str]:
    return [name for name in _OF_PICTURES if getattr(args, name) not in (None, [])]


def _check_pictures(spec: TaskSpec, args: argparse.Namespace) -> None:
    given = [f"--{name.replace('_', '-')}" for name in _given_of_pictures(args)]
    if spec.makes_pictures:
        from qeff_framework.cli.results.pictures import check_output

        check_output(args.output)
    elif given:
        raise OptionError(f"the program is for {spec.name}: {', '.join(given)} is for pictures; leave it out")


def _check_task(task: str, args: argparse.Namespace, *, prompts: int, has_context: bool, has_settings: bool) -> None:
    """Raises `OptionError` for arguments that mean nothing for `task`, before anything is compiled or loaded for them."""
    spec = task_spec(task)
    if spec.needs_context != has_context:
        raise OptionError(
            "the program answers questions about a text; give it with --context TEXT or --context-file FILE"
            if spec.needs_context
            else f"the program is for {task}: --context is for question answering; leave it out"
        )
    if args.image and not spec.reads_images and not spec.makes_pictures:
        raise OptionError(f"the program is for {task}: --image is for models of images; leave it out")
    if args.video and not (spec.reads_images and spec.generates_text):
        raise OptionError(f"the program is for {task}: --video is for vision-language models; leave it out")
    has_texts = args.prompt or args.prompts_file is not None or args.messages_file is not None
    if (args.image or args.video) and spec.reads_images and spec.takes_prompts != bool(has_texts):
        raise OptionError(
            "a prompt belongs to the images or videos; give it with --prompt TEXT"
            if spec.takes_prompts
            else f"the program is for {task}: it works on images alone; leave the prompts out"
        )
    for name, files in (("image", args.image), ("video", args.video)):
        if files and spec.generates_text and len(files) != prompts:
            raise OptionError(
                f"{prompts} prompts and {len(files)} times --{name} were given; give --{name} once for each prompt, with all of "
                f"its {name}s"
            )
    if spec.reads_images and not spec.takes_prompts and not args.image:
        raise OptionError(f"the program is for {task}: it works on images; give them with --image FILE")
    if spec.reads_audio != bool(args.audio):
        raise OptionError(
            f"the program is for {task}: it works on sound; give it with --audio FILE"
            if spec.reads_audio
            else f"the program is for {task}: --audio is for models of speech and sound; leave it out"
        )
    if spec.reads_images and spec.takes_prompts and (args.chat or args.messages_file is not None):
        raise OptionError(
            "the chat template renders the prompts of vision-language models; leave --chat and --messages-file out"
        )
    _check_pictures(spec, args)
    if (args.language or args.speech_task or args.timestamps) and not (spec.reads_audio and spec.is_encoder_decoder):
        raise OptionError(
            f"the program is for {task}: --language, --speech-task and --timestamps are for speech models with encoder and "
            "decoder; leave them out"
        )
    of_generation = (
        ((has_settings or args.stream) and not (spec.reads_audio and spec.is_encoder_decoder))
        or args.chat
        or args.messages_file is not None
    )
    if of_generation and not spec.generates_text:
        raise OptionError(
            f"the program is for {task}: it generates no text, and the options of text generation do not apply"
        )
