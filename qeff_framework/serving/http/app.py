"""The application: which pages there are for a loaded program."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from qeff_framework.errors import InputError
from qeff_framework.runtime import CompiledCausalLM, CompiledRunner
from qeff_framework.serving.async_engine import AsyncEngine
from qeff_framework.serving.engine import Engine
from qeff_framework.serving.http.encoders import EncoderPages, EncoderService, is_encoder
from qeff_framework.serving.http.errors import ApiError, add_handlers
from qeff_framework.serving.http.generation import GenerationPages
from qeff_framework.serving.http.guard import Guard, Limits
from qeff_framework.serving.http.metrics import Metrics

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
) -> FastAPI:
    """An ASGI application over a loaded program, which it takes over and closes when it ends.

    Args:
        runner: of text generation, embeddings or classes of texts.
        model: the name by which clients ask for it.
        api_key: what clients must send; `None` for none.
        max_queue: answers that may wait; further ones are refused with status 429.
        max_model_len: prompt and answer together at most.
        timeout: seconds that an answer may take, with its time in the queue.
        limits: of the size of requests and the time that sending them takes.
        origins: other origins whose pages may use the server.
        hosts: names by which the server may be called; `None`: any.

    Raises:
        InputError: there are no pages for what the program computes.
    """
    metrics = Metrics()
    service: AsyncEngine | EncoderService
    if isinstance(runner, CompiledCausalLM):
        service = AsyncEngine(Engine(runner, max_queue=max_queue, max_model_len=max_model_len))
        pages = GenerationPages(service, metrics, model, timeout).router
        engine = service.engine
        metrics.show("qeff_answers_waiting", "Answers in the queue.", lambda: engine.waiting)
        metrics.show("qeff_answers_running", "Answers that have a place in the program.", lambda: engine.running)
        metrics.show(
            "qeff_places", "Answers that the program computes at once.", lambda: engine.generator.shape.batch_size
        )
    elif isinstance(runner, CompiledRunner) and is_encoder(runner):
        service = encoder = EncoderService(runner, max_queue=max_queue)  # type: ignore[arg-type]
        pages = EncoderPages(service, metrics, model).router
        metrics.show("qeff_answers_waiting", "Requests that wait or run.", lambda: encoder.pending)
    else:
        raise InputError(
            f"there is no HTTP interface for programs of the task {runner.compiled.task}; use load_compiled in Python"
        )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="qeff serve", docs_url=None, redoc_url=None, lifespan=lifespan)
    add_handlers(app)

    async def check_model(request: Request) -> None:
        try:
            asked: Any = await request.json()
        except (ValueError, RecursionError):
            return  # the page says what is wrong with the body
        if isinstance(asked, dict) and isinstance(asked.get("model"), str) and asked["model"] != model:
            raise ApiError(
                404,
                f"the model {asked['model']!r} is not served here; {model!r} is",
                code="model_not_found",
                param="model",
            )

    app.include_router(pages, dependencies=[Depends(check_model)])
    common = _common_pages(service, metrics, model)
    app.include_router(common)
    app.add_middleware(
        Guard,
        metrics=metrics,
        limits=limits or Limits(),
        api_key=api_key,
        origins=origins,
        hosts=hosts,
        paths=_paths(pages) | _paths(common),
    )
    return app


def _common_pages(service: AsyncEngine | EncoderService, metrics: Metrics, model: str) -> APIRouter:
    router = APIRouter()
    described = {"id": model, "object": "model", "created": int(time.time()), "owned_by": "qeff"}
    length = service.engine.max_model_len if isinstance(service, AsyncEngine) else None
    described |= {} if length is None else {"max_model_len": length}

    @router.get("/v1/models", response_model=None)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described]}

    @router.get("/v1/models/{name:path}", response_model=None)
    async def one_model(name: str) -> dict[str, Any]:
        if name != model:
            raise ApiError(404, f"the model {name!r} is not served here; {model!r} is", code="model_not_found")
        return described

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


def _paths(router: APIRouter) -> frozenset[str]:
    return frozenset(getattr(route, "path", "") for route in router.routes)
