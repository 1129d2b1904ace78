"""Running the application until the process is told to end."""

from __future__ import annotations

import signal
import socket
import threading

import uvicorn
from fastapi import FastAPI

from qeff_framework.errors import OptionError


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections. Raises `OptionError` where the address cannot be used."""
    if not 0 <= port <= 65535:
        raise OptionError(f"--port {port} must be from 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OptionError(
            f"--host {host} --port {port}: the address cannot be used ({error}); choose another port, or --port 0 for a free one"
        ) from error


def address(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, listener: socket.socket, *, drain_seconds: float) -> None:
    """Serves until SIGTERM or SIGINT: then no connection is accepted, and the answers that are under way are finished.

    Those that take longer than `drain_seconds` are broken off.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = uvicorn.Server(config)
    if threading.current_thread() is threading.main_thread():
        # uvicorn raises the signal once more when it has drained; the process then ends by itself, with success.
        signal.signal(signal.SIGTERM, lambda *_: None)
    server.run(sockets=[listener])
