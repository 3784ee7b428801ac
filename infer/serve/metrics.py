"""What Prometheus reads: jobs from the store's table, requests from this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client import generate_latest as text_of
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from mv2_jax.infer.serve.store import Store

TYPE = CONTENT_TYPE_LATEST
_STATUSES = ("queued", "in_progress", "completed", "failed", "deleted")
_TOTALS = {
    "accepted": ("mv2_jobs_accepted", "kind", "Jobs accepted"),
    "completed": ("mv2_jobs_completed", "kind", "Jobs completed"),
    "failed": ("mv2_jobs_failed", "kind", "Jobs failed"),
    "deleted": ("mv2_jobs_deleted", "status", "Jobs deleted, by what they were then"),
    "wait_seconds": ("mv2_job_wait_seconds", "kind", "Seconds that jobs waited to begin"),
    "run_seconds": ("mv2_job_run_seconds", "kind", "Seconds from a job's begin to its end"),
    "stage_seconds": ("mv2_stage_seconds", "stage", "Seconds of stages of completed jobs"),
    "stage_runs": ("mv2_stage_runs", "stage", "Stages of completed jobs"),
}


class Metrics:
    """A registry of its own: several servers may live in one process."""

    def __init__(self, store: Store, ready: Callable[[], bool]) -> None:
        self._store, self._ready = store, ready
        self._registry = CollectorRegistry()
        self._registry.register(self)
        labels = ("method", "route", "status")
        self.requests = Counter(
            "mv2_http_requests", "Requests answered", labels, registry=self._registry
        )
        self.seconds = Histogram(
            "mv2_http_seconds", "Seconds to the first byte", labels[:2], registry=self._registry
        )

    def collect(self) -> Iterator[Any]:
        """Called by the registry."""
        counts = self._store.counts()
        jobs = GaugeMetricFamily("mv2_jobs", "Jobs there are", labels=["status"])
        for status in _STATUSES:
            jobs.add_metric([status], counts.get(status, 0))
        yield jobs
        yield GaugeMetricFamily("mv2_worker_ready", "1 where a worker is", float(self._ready()))
        made = {
            name: CounterMetricFamily(shown, words, labels=[label])
            for name, (shown, label, words) in _TOTALS.items()
        }
        for name, label, value in self._store.totals():
            if name in made:
                made[name].add_metric([label], value)
        yield from made.values()

    def describe(self) -> list[Any]:
        """Nothing: what there is does not change, and reading it at the start costs a query."""
        return []

    def text(self) -> bytes:
        """The answer of /metrics."""
        return text_of(self._registry)


class Timed:
    """ASGI middleware that counts and times requests, by route: addresses are endless."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, method = time.monotonic(), scope["method"]
        method = method if method in ("GET", "POST", "DELETE", "HEAD") else "other"

        async def noted(message: Any) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(method, route, message["status"]).inc()
                self._metrics.seconds.labels(method, route).observe(time.monotonic() - began)
            await send(message)

        await self._app(scope, receive, noted)
