"""``qeff serve``: OpenAI's HTTP interface over a model or a compiled artifact."""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import (
    add_compile_options,
    add_model,
    add_runtime_options,
    add_subcommand,
    add_verify,
)
from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.compile import compile_model
from qeff_framework.cli.drafts import add_draft, check_draft, opened_draft
from qeff_framework.cli.programs import given_artifact, load_program
from qeff_framework.errors import OptionError

if TYPE_CHECKING:
    from qeff_framework.cli.progress import ProgressHandler

logger = logging.getLogger(__name__)

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "serve",
        run,
        summary="serve a model or a compiled artifact over HTTP",
        description="Serves text generation, speech recognition, embeddings or classes of texts with OpenAI's HTTP interface, "
        "for instance for its official clients. A MODEL is compiled first, unless the artifact store has its program; "
        "--full-batch-size N lets N answers advance together. The server listens on this machine only unless --host says "
        "otherwise, SIGTERM lets it finish the answers that are under way, and / is a page to try it. Needs the extra: pip "
        "install 'qeff-framework[serve]'.",
        examples=[
            "qeff serve gpt2 --backend ort_sim --full-batch-size 8 --ctx-len 1024",
            "QEFF_KEY=secret qeff serve gpt2-compiled --host 0.0.0.0 --api-key-env QEFF_KEY",
        ],
    )
    add_model(parser, metavar="MODEL|ARTIFACT")
    server = parser.add_argument_group("server")
    server.add_argument("--host", metavar="NAME", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    server.add_argument("--port", metavar="N", type=int, default=8000, help="port; 0 takes a free one (default 8000)")
    key = server.add_mutually_exclusive_group()
    key.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable that holds the key that clients must send"
    )
    key.add_argument("--api-key-file", metavar="FILE", type=Path, help="file whose first line is that key")
    server.add_argument(
        "--model-name", metavar="NAME", help="name by which clients ask for the model (default: its own)"
    )
    server.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="pages of this origin may use the server too (https://example.org); may be repeated",
    )
    drafts = server.add_mutually_exclusive_group()
    add_draft(drafts)
    drafts.add_argument(
        "--prompt-lookup-num-tokens",
        metavar="N",
        type=int,
        help="the same texts in fewer steps: check up to N tokens that followed before (needs -O num_speculative_tokens=N)",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-queue",
        metavar="N",
        type=int,
        default=256,
        help="answers that may wait; more get status 429 (default 256)",
    )
    limits.add_argument(
        "--max-model-len",
        metavar="N",
        type=int,
        help="prompt and answer together at most (default: the compiled ctx_len)",
    )
    limits.add_argument(
        "--request-timeout",
        metavar="SECONDS",
        type=float,
        default=600.0,
        help="an answer ends after this time, waiting included (default 600)",
    )
    limits.add_argument(
        "--max-body-bytes",
        metavar="N",
        type=int,
        help="size of a request (default 4194304, and 26214400 for programs of images or sound)",
    )
    limits.add_argument(
        "--drain-seconds",
        metavar="SECONDS",
        type=float,
        default=30.0,
        help="time for answers that are under way when the server is told to end (default 30)",
    )
    add_runtime_options(server)
    add_verify(parser)
    add_compile_options(parser)


def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:
    """Compiles if needed, loads and serves until a signal comes."""
    _check_extra()
    check_draft(args)
    for name in ("max_queue", "request_timeout", "max_body_bytes", "drain_seconds", "prompt_lookup_num_tokens"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise OptionError(f"--{name.replace('_', '-')}={getattr(args, name)} must be above 0")
    api_key = _api_key(args)

    from qeff_framework.model import GivenInput
    from qeff_framework.serving.http import server
    from qeff_framework.serving.http.app import create_app
    from qeff_framework.serving.http.guard import LOOPBACK, Limits

    # The address is checked before anything is compiled.
    with server.listen(args.host, args.port) as listener, ExitStack() as stack:
        compiled = given_artifact(args) or compile_model(args, given=GivenInput(texts=True))
        name = args.model_name or str(compiled.metadata.get("model_name") or compiled.directory.name)
        is_local = args.host in LOOPBACK
        if not is_local and api_key is None:
            logger.warning("--host %s: other machines can use this server without a key; see --api-key-env", args.host)
        drafts = stack.enter_context(opened_draft(args, compiled))
        app = create_app(
            load_program(args, compiled),
            draft=drafts,
            prompt_lookup_num_tokens=args.prompt_lookup_num_tokens,
            model=name,
            api_key=api_key,
            max_queue=args.max_queue,
            max_model_len=args.max_model_len,
            timeout=args.request_timeout,
            limits=None if args.max_body_bytes is None else Limits(body_bytes=args.max_body_bytes),
            origins=args.allow_origin,
            # A page of another site can reach this machine by a name of its own.
            hosts=LOOPBACK if is_local else None,
        )
        progress.clear()
        url = server.address(listener)
        logger.info("serving %s at %s (%s)", name, url, compiled.backend)
        server.run(app, listener, drain_seconds=args.drain_seconds)
    return CommandResult(document={"model": name, "url": url}, text="", summary="")


def _check_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise OptionError(
            f"qeff serve needs {', '.join(missing)}, not installed here: pip install 'qeff-framework[serve]'"
        )


def _api_key(args: argparse.Namespace) -> str | None:
    from qeff_framework.serving.http.keys import key_of_environment, key_of_file

    if args.api_key_env is not None:
        return key_of_environment(args.api_key_env, "--api-key-env")
    return None if args.api_key_file is None else key_of_file(args.api_key_file, "--api-key-file")
