"""What ``/metrics`` shows, in Prometheus' text form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server. They have a registry of their own, so that several servers can be in one process."""

    CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "qeff_requests", "Requests by page and status.", ["path", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "qeff_request_seconds",
            "Time to the end of the answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_token = Histogram(
            "qeff_time_to_first_token_seconds",
            "Time to the first token, with the time in the queue.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.prompt_tokens = Counter("qeff_prompt_tokens", "Tokens of prompts.", registry=self._registry)
        self.generated_tokens = Counter("qeff_generated_tokens", "Tokens of answers.", registry=self._registry)
        self.shared_tokens = Counter(
            "qeff_shared_prompt_tokens", "Tokens of prompts that were in the cache already.", registry=self._registry
        )
        self.drafts_proposed = Counter(
            "qeff_drafts_proposed", "Tokens that drafts have proposed.", registry=self._registry
        )
        self.drafts_accepted = Counter(
            "qeff_drafts_accepted", "Proposed tokens that spared a step.", registry=self._registry
        )

    def show(self, name: str, told: str, value: Callable[[], float]) -> None:
        """Adds a number that is read when it is asked for."""
        Gauge(name, told, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All numbers."""
        return generate_latest(self._registry)
