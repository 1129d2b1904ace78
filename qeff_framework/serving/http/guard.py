"""What stands before every page: key, origin, size and time of requests, and a line in the log for each."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qeff_framework.serving.http.errors import ApiError, api_error
from qeff_framework.serving.http.metrics import Metrics

logger = logging.getLogger("qeff_framework.serving")

#: Pages that need no key: probes, and the page where a key can be typed.
_OPEN = frozenset({"/", "/page.css", "/page.js", "/health", "/ready"})
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
#: Size of a request; images and sound are larger than texts.
TEXT_BYTES, MEDIA_BYTES = 4 * 2**20, 25 * 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may cost before it is read."""

    body_bytes: int = TEXT_BYTES
    #: Seconds for sending the body.
    body_seconds: float = 30.0


class Guard:
    """ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        limits: Limits,
        api_key: str | None,
        origins: Collection[str],
        hosts: Collection[str] | None,
        paths: Collection[str],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._limits = limits
        self._key = None if api_key is None else _digest(api_key.encode())
        self._origins = frozenset(origins)
        #: Names by which the server may be called; `None`: any.
        self._hosts = None if hosts is None else frozenset(hosts)
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        started, status = time.perf_counter(), 0
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            self._check(scope["path"], headers)
            body = await self._body(headers, receive)
            await self._app(scope, _replay(body, receive), send_on)
        except ApiError as error:
            await error.response()(scope, receive, send_on)
        except Exception as error:
            if status:
                raise
            await api_error(error).response()(scope, receive, send_on)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            seconds = time.perf_counter() - started
            # 499: the client went away before there was an answer.
            self._metrics.requests.labels(path, str(status or 499)).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            told = {"request_id": request_id, "method": scope["method"], "path": scope["path"], "status": status or 499}
            told |= {"seconds": round(seconds, 4), **scope["state"].get("told", {})}
            logger.info("%s", json.dumps(told))

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts is not None and _split(f"//{host}")[1] not in self._hosts:
            raise ApiError(403, "the server is not called by this host name", code="host_refused")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin not in self._origins and _split(origin)[0] != host:
            raise ApiError(403, "pages of other origins may not use this server", code="origin_refused")
        if self._key is None or path in _OPEN:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(_digest(given.strip()), self._key):
            told = "the API key is wrong" if given else "an API key is needed: Authorization: Bearer KEY"
            raise ApiError(401, told, code="invalid_api_key")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        most = self._limits.body_bytes
        too_large = ApiError(413, f"the request is larger than {most} bytes", code="request_too_large")
        stated = headers.get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the request ended before its body did")
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(
                408, f"the body did not arrive within {self._limits.body_seconds:g} s", code="request_timeout"
            ) from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hands `body` out once, then waits for the end of the connection."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _digest(key: bytes) -> bytes:
    """Keys are compared by digests of one length, in constant time."""
    return hashlib.sha256(key).digest()


def _split(url: str) -> tuple[str | None, str | None]:
    """Host with port, and host alone; `None` where `url` is none."""
    try:
        parts = urlsplit(url)
        return parts.netloc, parts.hostname
    except ValueError:
        return None, None


def _request_id(headers: dict[bytes, bytes]) -> str:
    given: Any = headers.get(b"x-request-id", b"").decode("latin-1")
    usable = 0 < len(given) <= 64 and all(char.isascii() and (char.isalnum() or char in "-_.") for char in given)
    return given if usable else uuid.uuid4().hex
