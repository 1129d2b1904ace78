"""The application: which pages there are for a loaded program."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from qeff_framework.errors import InputError
from qeff_framework.runtime import CompiledCausalLM, CompiledRunner
from qeff_framework.runtime.image_text import CompiledImageTextToText
from qeff_framework.runtime.sound import CompiledCTC
from qeff_framework.runtime.speech import CompiledSpeechSeq2Seq
from qeff_framework.serving.async_engine import AsyncEngine
from qeff_framework.serving.engine import Engine
from qeff_framework.serving.http.encoders import EncoderPages, EncoderService, is_encoder
from qeff_framework.serving.http.errors import ApiError, add_handlers
from qeff_framework.serving.http.generation import GenerationPages
from qeff_framework.serving.http.guard import MEDIA_BYTES, TEXT_BYTES, Guard, Limits
from qeff_framework.serving.http.images import check_pillow
from qeff_framework.serving.http.metrics import Metrics
from qeff_framework.serving.http.transcription import TranscriptionPages, TranscriptionService
from qeff_framework.serving.http.worker import SessionWorker

#: What a body is read as once; as JSON it cannot be read again.
_FORMS = frozenset({"multipart/form-data", "application/x-www-form-urlencoded"})
_PAGE = Path(__file__).parent / "page"
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"


def create_app(
    runner: CompiledRunner,
    *,
    model: str,
    api_key: str | None = None,
    max_queue: int = 256,
    max_model_len: int | None = None,
    timeout: float = 600.0,
    limits: Limits | None = None,
    origins: Collection[str] = (),
    hosts: Collection[str] | None = None,
    draft: CompiledRunner | None = None,
    prompt_lookup_num_tokens: int | None = None,
) -> FastAPI:
    """An ASGI application over a loaded program, which it takes over and closes when it ends.

    Args:
        runner: of text generation (from texts, or images and text), speech recognition, embeddings or classes of texts.
        model: the name by which clients ask for it. Adapters that the program holds are asked for by their own names.
        api_key: what clients must send; `None` for none.
        max_queue: answers that may wait; further ones are refused with status 429.
        max_model_len: prompt and answer together at most.
        timeout: seconds that an answer may take, with its time in the queue.
        limits: of the size of requests and the time that sending them takes; by default 4 MiB, and 25 MiB for programs of
            images or sound, in 30 s.
        origins: other origins whose pages may use the server.
        hosts: names by which the server may be called; `None`: any.
        draft: a program that proposes tokens, see `Engine`.
        prompt_lookup_num_tokens: tokens that are proposed from a request's own text, see `Engine`.

    Raises:
        InputError: there are no pages for what the program computes.
    """
    metrics = Metrics()
    adapters: tuple[str, ...] = ()
    service: AsyncEngine | SessionWorker
    reads_images = isinstance(runner, CompiledImageTextToText)
    if isinstance(runner, CompiledCausalLM | CompiledImageTextToText):
        if isinstance(runner, CompiledImageTextToText):
            check_pillow()
            _ = runner.processor  # is missed now, not by the first request
        engine = Engine(
            runner,
            max_queue=max_queue,
            max_model_len=max_model_len,
            draft=draft,
            prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        )
        service = AsyncEngine(engine)
        adapters = tuple(engine.generator.shape.adapters)
        if model in adapters:
            raise InputError(f"the program has an adapter that is called {model!r}; give the model another name")
        pages = GenerationPages(service, metrics, model, timeout, reads_images=reads_images).router
        metrics.show("qeff_answers_waiting", "Answers in the queue.", lambda: engine.waiting)
        metrics.show("qeff_answers_running", "Answers that have a place in the program.", lambda: engine.running)
        metrics.show(
            "qeff_places", "Answers that the program computes at once.", lambda: engine.generator.shape.batch_size
        )
    elif draft is not None or prompt_lookup_num_tokens is not None:
        raise InputError(
            f"drafts are for text generation, and the program was compiled for {runner.compiled.task}; leave them out"
        )
    elif isinstance(runner, CompiledRunner) and is_encoder(runner):
        service = encoder = EncoderService(runner, max_queue=max_queue, timeout=timeout)  # type: ignore[arg-type]
        pages = EncoderPages(encoder, metrics, model).router
    elif isinstance(runner, CompiledSpeechSeq2Seq | CompiledCTC):
        service = TranscriptionService(runner, max_queue=max_queue, timeout=timeout)
        pages = TranscriptionPages(service, metrics).router
    else:
        raise InputError(
            f"there is no HTTP interface for programs of the task {runner.compiled.task}; use load_compiled in Python"
        )
    if isinstance(service, SessionWorker):
        worker = service
        metrics.show("qeff_answers_waiting", "Requests that wait or run.", lambda: worker.pending)
    names = (model, *adapters)
    default_limits = Limits(
        body_bytes=MEDIA_BYTES if reads_images or isinstance(service, TranscriptionService) else TEXT_BYTES
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="qeff serve", docs_url=None, redoc_url=None, lifespan=lifespan)
    add_handlers(app)

    async def check_model(request: Request) -> None:
        try:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            asked: Any = await (request.form() if kind in _FORMS else request.json())
        except (ValueError, RecursionError):
            return  # the page says what is wrong with the body
        name = asked.get("model") if isinstance(asked, Mapping) else None
        if isinstance(name, str) and name not in names:
            raise _not_served(name, names)

    app.include_router(pages, dependencies=[Depends(check_model)])
    common = _common_pages(service, metrics, names)
    app.include_router(common)
    app.add_middleware(
        Guard,
        metrics=metrics,
        limits=limits or default_limits,
        api_key=api_key,
        origins=origins,
        hosts=hosts,
        paths=_paths(pages) | _paths(common),
    )
    return app


def _common_pages(service: AsyncEngine | SessionWorker, metrics: Metrics, names: Sequence[str]) -> APIRouter:
    router = APIRouter()
    model, created = names[0], int(time.time())
    length = {"max_model_len": service.engine.max_model_len} if isinstance(service, AsyncEngine) else {}
    described: dict[str, dict[str, Any]] = {
        name: {"id": name, "object": "model", "created": created, "owned_by": "qeff"}
        | ({} if name == model else {"parent": model})
        | length
        for name in names
    }

    @router.get("/v1/models", response_model=None)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [*described.values()]}

    @router.get("/v1/models/{name:path}", response_model=None)
    async def one_model(name: str) -> dict[str, Any]:
        if name not in described:
            raise _not_served(name, names)
        return described[name]

    @router.get("/health", response_model=None)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready", response_model=None)
    async def ready() -> Response:
        return JSONResponse({"ready": service.ready}, status_code=200 if service.ready else 503)

    @router.get("/metrics", response_model=None)
    async def numbers() -> Response:
        return Response(metrics.text(), media_type=metrics.CONTENT_TYPE)

    def file(path: str, name: str) -> None:
        async def page() -> Response:
            return FileResponse(_PAGE / name, headers={"content-security-policy": _POLICY})

        router.add_api_route(path, page, methods=["GET"], response_model=None, include_in_schema=False)

    file("/", "index.html")
    file("/page.css", "page.css")
    file("/page.js", "page.js")
    return router


def _not_served(name: str, names: Sequence[str]) -> ApiError:
    told = f"{', '.join(map(repr, names))} {'is' if len(names) == 1 else 'are'}"
    return ApiError(404, f"the model {name!r} is not served here; {told}", code="model_not_found", param="model")


def _paths(router: APIRouter) -> frozenset[str]:
    return frozenset(getattr(route, "path", "") for route in router.routes)
