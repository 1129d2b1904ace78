"""What ``qeff generate`` works on: prompts, conversations, contexts, images, sound and settings, from arguments and files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import add_grammar, given_grammar
from qeff_framework.errors import InputError, OptionError
from qeff_framework.images.upright import upright_rgb
from qeff_framework.textfiles import parse_json, read_input, split_lines

if TYPE_CHECKING:
    from qeff_framework.runtime.sound_files import SoundFile
    from qeff_framework.runtime.video_files import VideoFile

_SAMPLING = ("temperature", "top_k", "top_p", "seed")


def add_settings(generation: Any) -> None:
    """The options that `given_settings` reads."""
    generation.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=int,
        help="new tokens per prompt at most (default: the checkpoint's limit, else what ctx_len leaves)",
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
    add_grammar(generation)
    generation.add_argument(
        "--prompt-lookup-num-tokens",
        metavar="N",
        type=int,
        help="the same text in fewer steps: check up to N tokens that followed before (needs -O num_speculative_tokens=N)",
    )


def lines_of_prompts(file: str) -> list[str]:
    """The prompts in a file, a line each. Raises `InputError` where it holds none: nothing else stands in for them."""
    lines = [line for line in split_lines(_read(file, "prompts")) if line.strip()]
    if not lines:
        raise InputError(f"{file} holds no prompts: it is empty, or all of its lines are; write one text per line")
    return lines


def given_prompts(args: argparse.Namespace) -> list[str]:
    """The texts of ``--prompt`` and ``--prompts-file``. Raises `OptionError` where nothing was given to work on."""
    prompts = [*args.prompt]
    if args.prompts_file is not None:
        prompts += lines_of_prompts(args.prompts_file)
    if not prompts and args.messages_file is None:
        raise OptionError(
            "there is nothing to work on; give --prompt TEXT, --prompts-file FILE or --messages-file FILE; for models of images "
            "or sound --image FILE, --video FILE or --audio FILE"
        )
    return prompts


def given_conversations(args: argparse.Namespace, prompts: Sequence[str]) -> list[Any]:
    """The prompts of text generation: texts, or conversations with ``--chat`` and from ``--messages-file``."""
    if args.system is not None and not args.chat:
        raise OptionError("--system begins a conversation; add --chat")
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    told = [[*system, {"role": "user", "content": text}] for text in prompts] if args.chat else [*prompts]
    return [*told, *([] if args.messages_file is None else _messages(args.messages_file))]


def _messages(file: str) -> list[list[dict[str, Any]]]:
    """The conversations in a JSON file: one list of messages, or a list of such lists."""
    from qeff_framework.tokenization import is_conversation

    try:
        content = parse_json(_read(file, "messages"))
    except ValueError as error:
        raise InputError(f"the messages in {file} are not JSON: {error}") from error
    conversations = [content] if is_conversation(content) else content
    if not isinstance(conversations, list) or not conversations or not all(map(is_conversation, conversations)):
        raise InputError(
            f'{file} must hold a list of messages, [{{"role": "user", "content": "..."}}], or a list of such lists'
        )
    return conversations


def given_context(args: argparse.Namespace) -> str | None:
    """The text that holds the answers, for question answering."""
    context: str | None = args.context
    return _read(args.context_file, "context") if args.context_file is not None else context


def given_images(args: argparse.Namespace) -> list[list[Any]]:
    """The images of each ``--image``, opened."""
    return [[opened_image(file) for file in of_prompt] for of_prompt in args.image]


def given_videos(args: argparse.Namespace) -> list[list[VideoFile]]:
    """The videos of each ``--video``, opened."""
    if not args.video:
        return []
    from qeff_framework.runtime.video_files import read_video
    from qeff_framework.runtime.video_prompts import check_torchvision

    found = [[read_video(file) for file in of_prompt] for of_prompt in args.video]
    check_torchvision()
    return found


def given_audio(args: argparse.Namespace) -> list[SoundFile]:
    """The clips of ``--audio``, read."""
    if not args.audio:
        return []
    if args.prompt or args.prompts_file is not None or args.messages_file is not None or args.image or args.video:
        raise OptionError(
            "--audio takes the place of prompts; leave --prompt, --prompts-file, --messages-file, --image and --video out"
        )
    from qeff_framework.runtime.sound_files import read_sound

    return [read_sound(file) for file in args.audio]


def opened_image(file: str) -> Any:
    """An image in RGB, turned as its EXIF data say (photographs of telephones)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise OptionError(
            "--image needs Pillow, which is not installed; pip install 'qeff-framework[vision]', or for pipelines of diffusers "
            "'qeff-framework[diffusion]'"
        ) from error
    try:
        with Image.open(file) as image:
            return upright_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"the image {file} cannot be read: {error}; give a PNG, JPEG or the like") from error


def _read(file: str, what: str) -> str:
    try:
        return read_input(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the {what} in {file} cannot be read: {error}; give a UTF-8 text file") from error


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, checked before a model is compiled for them."""
    from qeff_framework.generation import resolve_settings
    from qeff_framework.generation.grammar import check_grammar

    given = {name: getattr(args, name) for name in _SAMPLING if getattr(args, name) is not None}
    if given and not args.do_sample:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionError(f"{flags} has no effect without sampling; add --do-sample")
    if args.do_sample:
        given["do_sample"] = True
    for name in ("max_new_tokens", "prompt_lookup_num_tokens", "num_beams"):
        if getattr(args, name, None) is not None:
            given[name] = getattr(args, name)
    given |= given_grammar(args)
    check_grammar(resolve_settings({}, None, **given))
    if getattr(args, "chat_template_kwargs", None) is not None:
        given["chat_template_kwargs"] = _template_variables(args)
    return given


def _template_variables(args: argparse.Namespace) -> dict[str, Any]:
    try:
        variables = parse_json(args.chat_template_kwargs)
    except ValueError as error:
        raise OptionError(f"--chat-template-kwargs is not JSON: {error}") from error
    if not isinstance(variables, dict):
        raise OptionError('--chat-template-kwargs must be a JSON object, {"enable_thinking": false}')
    if not args.chat and (args.messages_file is None or args.prompt or args.prompts_file is not None):
        raise OptionError("--chat-template-kwargs is for conversations; add --chat, or give --messages-file FILE alone")
    return variables
