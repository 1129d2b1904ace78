"""A program behind Ray Serve."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from qeff_framework.errors import OptionError
from qeff_framework.scale.extra import needs_ray

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application


def deployment(
    artifact: str | os.PathLike[str],
    *,
    model: str,
    replicas: int = 1,
    max_replicas: int | None = None,
    target_ongoing_requests: float = 8,
    api_key_env: str | None = None,
    max_queue: int = 256,
    max_model_len: int | None = None,
    timeout: float = 600.0,
    max_body_bytes: int | None = None,
    origins: Collection[str] = (),
    verify: Literal["quick", "full"] = "quick",
    extensions: Sequence[str] | None = None,
    ray_actor_options: Mapping[str, Any] | None = None,
    **runtime_options: Any,
) -> Application:
    """A Ray Serve application with the HTTP interface of ``qeff serve``.

    >>> serve.run(deployment("s3://models/gpt2-compiled", model="gpt2", replicas=2, api_key_env="QEFF_KEY"))

    A replica is a process with a program and an engine of its own; Ray Serve hands each request to one that has few.

    Args:
        artifact: a compiled artifact: a directory that every node sees under this path, or a URL of fsspec, which each node
            fetches once and verifies.
        model: the name by which clients ask for it.
        replicas: processes; with `max_replicas` the least.
        max_replicas: Ray Serve starts and ends replicas between `replicas` and this number, so that each has about
            `target_ongoing_requests`. `None`: always `replicas`.
        target_ongoing_requests: requests per replica, those in its queue included; the compiled batch size keeps it full.
        api_key_env: the variable that holds the key which clients must send, in the environment of the replicas.
        max_queue: answers that may wait in a replica; further ones are refused with status 429.
        max_model_len: prompt and answer together at most.
        timeout: seconds that an answer may take.
        max_body_bytes: size of a request; by default 4 MiB, and 25 MiB for programs of images or sound.
        origins: other origins whose pages may use the server.
        verify: as for `load_compiled`.
        extensions: as for `load_compiled`.
        ray_actor_options: resources of a replica (``num_cpus``, ``resources``, ``runtime_env``, ...).
        **runtime_options: as for `load_compiled`.

    Raises:
        OptionError: Ray Serve or the HTTP server is not installed, or a number is out of range.
    """
    needs_ray("deployment", "fastapi", "uvicorn", "prometheus_client", "python_multipart", "grpc_reflection")
    for name, value in (("replicas", replicas), ("max_replicas", max_replicas), ("max_queue", max_queue)):
        if value is not None and value < 1:
            raise OptionError(f"{name}={value} must be at least 1")
    if max_replicas is not None and max_replicas < replicas:
        raise OptionError(f"max_replicas={max_replicas} is below replicas={replicas}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray import serve

    text = os.fspath(artifact)
    place = text if "://" in text else os.path.abspath(text)  # noqa: PTH100 - of a text that may be a URL
    load = {"verify": verify, "extensions": extensions, **runtime_options}
    options: dict[str, Any] = {
        "model": model,
        "max_queue": max_queue,
        "max_model_len": max_model_len,
        "timeout": timeout,
        "origins": tuple(origins),
    }

    def build() -> FastAPI:
        return _replica_app(place, load, api_key_env, max_body_bytes, options)

    scaling: dict[str, Any] = {"num_replicas": replicas}
    if max_replicas is not None:
        scaling = {
            "autoscaling_config": {
                "min_replicas": replicas,
                "max_replicas": max_replicas,
                "target_ongoing_requests": target_ongoing_requests,
            }
        }
    configured = serve.deployment(
        name="qeff",
        # The engine refuses with status 429 before Ray Serve stops handing requests to the replica.
        max_ongoing_requests=2 * max_queue + 64,
        ray_actor_options=dict(ray_actor_options or {}),
        **scaling,
    )
    return configured(serve.ingress(build)()).bind()


def _replica_app(
    artifact: str,
    load: Mapping[str, Any],
    api_key_env: str | None,
    max_body_bytes: int | None,
    options: Mapping[str, Any],
) -> FastAPI:
    """The application of one replica, in its process."""
    from qeff_framework.runtime import load_compiled
    from qeff_framework.scale.fetching import local_artifact
    from qeff_framework.serving.http.app import create_app
    from qeff_framework.serving.http.guard import Limits
    from qeff_framework.serving.http.keys import key_of_environment

    key = None if api_key_env is None else key_of_environment(api_key_env, "api_key_env")
    runner = load_compiled(local_artifact(artifact), **load)
    limits = None if max_body_bytes is None else Limits(body_bytes=max_body_bytes)
    return create_app(runner, api_key=key, limits=limits, **options)
