"""The HTTP server in a thread of the test's process."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import uvicorn

from qeff_framework.runtime import CompiledRunner
from qeff_framework.serving.http.app import create_app
from qeff_framework.serving.http.guard import LOOPBACK
from qeff_framework.serving.http.server import address, listen

KEY = "sesame"
HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}


class Served:
    """A server in a thread of this process."""

    def __init__(self, url: str, runner: CompiledRunner) -> None:
        self.url, self.runner = url, runner
        self.port = int(url.rpartition(":")[2])
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, raw, {**HEADERS, **(headers or {})})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        kind = answer.headers.get("content-type", "")
        return (
            answer.status,
            {k.lower(): v for k, v in answer.headers.items()},
            json.loads(text) if "json" in kind else text,
        )


@contextmanager
def serving(runner: CompiledRunner, model: str = "tiny", **options: Any) -> Iterator[Served]:
    with listen("127.0.0.1", 0) as listener:
        app = create_app(runner, model=model, api_key=KEY, hosts=LOOPBACK, **options)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        served = Served(address(listener), runner)
        try:
            yield served
        finally:
            served.client.close()
            server.should_exit = True
            thread.join()
