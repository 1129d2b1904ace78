"""Errors in the form that OpenAI's clients read. No answer holds a traceback."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qeff_framework.errors import EngineClosedError, InputError, OptionError, QEFFError, QueueFullError

logger = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """The JSON document."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, headers: dict[str, str] | None = None) -> JSONResponse:
        """The HTTP answer."""
        further = {"retry-after": "1"} if self.status in (429, 503) else {}
        if self.status == 401:
            further["www-authenticate"] = "Bearer"
        return JSONResponse(self.body, status_code=self.status, headers={**further, **(headers or {})})


def api_error(error: Exception) -> ApiError:
    """What a client is told about `error`. The details of an unexpected one stay in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full")
    if isinstance(error, EngineClosedError):
        return ApiError(503, str(error), code="shutting_down")
    if isinstance(error, InputError | OptionError):
        return ApiError(400, str(error))
    if isinstance(error, QEFFError):
        logger.error("a request failed: %s", error)
        return ApiError(500, "the program failed; the server's log has the reason", code="program_failed")
    logger.error("a request failed unexpectedly", exc_info=error)
    return ApiError(500, "the server failed; its log has the reason", code="internal_error")


def add_handlers(app: FastAPI) -> None:
    """Answers every error of `app` in OpenAI's form."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        if unread := _unread_body(request, problems):
            return ApiError(400, unread).response()
        told = [f"{_place(problem)}: {problem['msg'].removeprefix('Value error, ')}" for problem in problems]
        param = _place(problems[0]) if problems else None
        return ApiError(400, "; ".join(told) or "the request is not valid", param=param).response()

    async def refused(_: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        told = {404: "there is no such page", 405: "the page does not take this method"}
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        return ApiError(status, told.get(status, str(getattr(error, "detail", "refused")))).response(headers)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)
    for kind in (ApiError, QEFFError):
        app.add_exception_handler(kind, answer)


def _unread_body(request: Request, problems: Sequence[Any]) -> str:
    """Why a body is no JSON object; empty where it is one, in which something is wrong."""
    for problem in problems:
        if problem["type"] == "json_invalid":
            return f"the body is no valid JSON: {problem['ctx']['error']} at character {problem['loc'][-1]}"
        if problem["type"] == "model_attributes_type" and tuple(problem["loc"]) == ("body",):
            kind = request.headers.get("content-type", "")
            if not _is_json(kind):
                stated = f"and the header says {kind!r}" if kind else "and no header says so"
                return f"the body must be JSON, {stated}; send it with 'Content-Type: application/json'"
            return "the body is JSON, but no object"
    return ""


def _is_json(content_type: str) -> bool:
    """Whether the header of a body says that it is JSON, by FastAPI's rule."""
    main, _, sub = content_type.partition(";")[0].strip().lower().partition("/")
    return main == "application" and (sub == "json" or sub.endswith("+json"))


def _place(problem: Any) -> str:
    """The field that a validation error is about."""
    parts = [str(part) for part in problem.get("loc", ()) if part != "body"]
    return ".".join(parts) or "body"
