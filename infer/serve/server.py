"""What the routes share: requests become jobs here, and jobs are looked up and waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from mv2_jax.infer.serve import guard, objects
from mv2_jax.infer.serve.admission import Admission, Limits
from mv2_jax.infer.serve.fields import Refused
from mv2_jax.infer.serve.objects import Video, video
from mv2_jax.infer.serve.store import EXPLANATION, Job, Store, explanation_of

POLL = 0.1
"""Seconds between two looks at a job that somebody waits for."""
_AT_ONCE = 4  # requests that are looked into at a time


class Server:
    """What the routes share.

    Args:
        wake: tells the worker that a job is there. ready: whether there is a worker.
    """

    def __init__(
        self,
        store: Store,
        admission: Admission,
        limits: Limits,
        wake: Callable[[], None] = lambda: None,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self.store, self.admission, self.limits = store, admission, limits
        self.wake, self.ready = wake, ready
        self.rate = guard.Rate(limits.rate)
        self.began = int(time.time())
        self.looking: Any = None
        self.stopping: Callable[[], bool] = lambda: False

    async def accept(self, request: Request, known: Mapping[str, Any], add: Any) -> Job:
        """The job that a request becomes. Raises Refused."""
        client = await run_in_threadpool(self.client, request)
        self.looking = self.looking or anyio.CapacityLimiter(_AT_ONCE)
        said, files, close = await _body(request, known)
        try:
            job = await anyio.to_thread.run_sync(add, said, files, client, limiter=self.looking)
        finally:
            await close()
        self.wake()
        return job

    def client(self, request: Request) -> str:
        """Who asks for a job. Raises Refused, 429, for one who asked for too many."""
        client = request.client.host if request.client else "unknown"
        self.rate.take(client)
        waiting, mine = self.store.waiting(), self.store.waiting(client)
        if waiting >= self.limits.waiting or mine >= self.limits.client:
            whose = "of yours " if waiting < self.limits.waiting else ""
            raise guard.too_many(f"{mine if whose else waiting} jobs {whose}wait already", 30)
        return client

    def explanation(self, request: Request, name: str) -> Job:
        """The job that explains a video, queued where there is none. Raises Refused."""
        job = self.job(name)
        why = objects.unexplained(job)
        if why:
            raise Refused(f"{name} cannot be explained: {why}", "video_id", 400)
        client, own = self.client(request), explanation_of(name)
        old = self.store.get(own)
        if old is not None and old.status != "failed":
            return old
        self.store.delete(own)
        made = self.store.add(own, EXPLANATION, client, job.asked)
        self.wake()
        return made

    def job(self, name: str) -> Job:
        """A job by its name. Raises Refused, 404."""
        job = self.store.get(name)
        if job is None:
            raise Refused(f"there is no video {name[:100]!r}", "video_id", 404, "not_found")
        return job

    def shown(self, job: Job) -> Video:
        """A job as clients see it."""
        return video(job, self.store.ahead(job) if job.status == "queued" else None)

    async def ended(self, name: str, request: Request) -> Job:
        """Waits for a job; where the client goes meanwhile, it is deleted. Raises Refused."""
        while True:
            job = await run_in_threadpool(self.job, name)
            if job.status in ("completed", "failed"):
                return job
            if await request.is_disconnected():
                await run_in_threadpool(self.store.delete, name)
                raise Refused("the client is gone", None, 400)
            if self.stopping():
                raise Refused(f"the server is stopping; {name} goes on when it is started again",
                              None, 503, "stopping")  # fmt: skip
            await asyncio.sleep(POLL)


async def _body(request: Request, known: Mapping[str, Any]) -> tuple[dict, dict, Any]:
    """(fields, {field: uploaded file}, what closes them) of a JSON or form request.

    Raises:
        Refused: it is neither, or has a field twice.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _form(request)
    if kind != "application/json":
        raise Refused("send application/json or multipart/form-data", "content-type", 415)
    try:
        said = await request.json()
    except (ValueError, RecursionError):
        raise Refused("the body is not JSON") from None
    if not isinstance(said, dict):
        raise Refused('the body must be a JSON object, such as {"prompt": "a red ball"}')
    return said, {}, _nothing


async def _nothing() -> None:
    pass


async def _form(request: Request) -> tuple[dict, dict, Any]:
    """A form. OpenAI's client spells an object's parts as fields: mv2[i2v_steps]."""
    try:
        form = await request.form(max_files=2, max_fields=200)
    except HTTPException as error:
        raise Refused(f"the form is damaged: {error.detail}") from None
    said: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            files[key] = value.file
            continue
        name, *parts = key.replace("]", "").split("[")
        place = said
        for part in parts:
            place, name = place.setdefault(name, {}), part
            if not isinstance(place, dict):
                raise Refused(f"{key[:100]} is given twice", key[:100])
        if name in place:
            raise Refused(f"{key[:100]} is given twice", key[:100])
        place[name] = value

    return said, files, form.close
