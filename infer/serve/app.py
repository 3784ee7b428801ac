"""The HTTP API (FastAPI): OpenAI's videos API, and what open servers have beside it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from mv2_jax.infer.release import version
from mv2_jax.infer.serve import fields, guard, metrics, objects, pages
from mv2_jax.infer.serve.fields import Refused
from mv2_jax.infer.serve.objects import Deleted, Error, Health, Models, Page, Video
from mv2_jax.infer.serve.server import POLL, Server
from mv2_jax.infer.serve.store import EXPLANATION, Unreachable, explanation_of
from mv2_jax.lookup import one_of

VARIANTS = {
    "video": ("video.mp4", "video/mp4"),
    "thumbnail": ("thumbnail.webp", "image/webp"),
    "spritesheet": ("video.png", "image/png"),
    "picture": ("picture.png", "image/png"),
    "keyframes": ("keyframes.mp4", "video/mp4"),
    "refined": ("refined.mp4", "video/mp4"),
    "sidecar": ("video.json", "application/json"),
    "reference": ("", ""),
    EXPLANATION: ("explanation.html", "text/html"),
}
"""What /content has of a video: OpenAI's three, then ours. A reference is of many kinds."""
_REFERENCES = {".png": "image/png", ".mp4": "video/mp4", ".mkv": "video/x-matroska",
               ".avi": "video/x-msvideo", ".gif": "image/gif"}  # fmt: skip
_ALIVE = 15.0  # seconds after which a silent stream says that it lives
_WITHIN = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"


def build(
    server: Server, token: str | None = None, collector: Any = None, page: bool = False
) -> FastAPI:
    """The application.

    Args:
        token: that clients must send; None on a loopback address.
        page: whether browsers may show it as a cookie (`serve.studio`).
        collector: of the metrics (`serve.metrics`).
    """
    app = FastAPI(
        title="mv2 serve",
        version=version(),
        description="Videos from prompts: OpenAI's videos API, and more under `mv2`.",
        docs_url=None,  # their pages come from other hosts
        redoc_url=None,
    )
    app.add_exception_handler(Refused, lambda _, error: _answered(error))
    app.add_exception_handler(RequestValidationError, lambda _, error: _answered(_invalid(error)))
    app.add_exception_handler(HTTPException, lambda _, error: _answered(_of_http(error)))
    app.add_exception_handler(sqlite3.OperationalError, lambda _, error: _answered(_full(error)))
    app.add_exception_handler(Unreachable, lambda _, error: _answered(_away(error)))
    app.add_exception_handler(OSError, lambda _, error: _answered(_full(error)))
    watched = collector or metrics.Metrics(server.store, server.ready)
    app.add_middleware(metrics.Timed, metrics=watched)
    app.add_middleware(guard.Gate, token=token, largest=server.limits.upload, page=page)
    _add_making(app, server)
    _add_videos(app, server)
    _add_rest(app, server, watched)
    _document(app)
    return app


def _errors(*codes: int) -> dict[int | str, Any]:
    """Answers beside 2xx, for the OpenAPI description. Every route may have the first five."""
    usual = {400, 401, 403, 413, 503, *codes}
    return {code: {"model": Error} for code in sorted(usual)}


_OF_VIDEO = {"openapi_extra": {"requestBody": fields.schema(fields.VIDEO, "input_reference")}}
_OF_CLIP = {"openapi_extra": {"requestBody": fields.schema(fields.INTERPOLATION, "video")}}
_MAKING = _errors(404, 415, 429, 507)


def _add_making(app: FastAPI, server: Server) -> None:
    """The routes that make jobs."""

    @app.post("/v1/videos", response_model=Video, responses=_MAKING, **_OF_VIDEO)
    async def create_video(request: Request) -> Any:
        """Queues a video."""
        job = await server.accept(request, fields.VIDEO, server.admission.video)
        return await run_in_threadpool(server.shown, job)

    @app.post(
        "/v1/videos/sync",
        response_class=FileResponse,
        responses={
            200: {"content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}},
            **_MAKING,
            422: {"model": Error, "description": "the video could not be made"},
        },
        **_OF_VIDEO,
    )
    async def create_video_and_wait(request: Request) -> Any:
        """Makes a video and answers with its MP4; the header X-Video-Id is its name. Where the
        client goes meanwhile, the video is deleted."""
        job = await server.accept(request, fields.VIDEO, server.admission.video)
        job = await server.ended(job.id, request)
        if job.status == "failed":
            said = job.error or {}
            raise Refused(said.get("message", "it failed"), None, 422, said.get("code"))
        return _file(server.store.place(job.id), "video", {"X-Video-Id": job.id})

    @app.post("/v1/interpolations", response_model=Video, responses=_MAKING, **_OF_CLIP)
    async def create_interpolation(request: Request) -> Any:
        """Queues an uploaded clip to be made smoother. What comes of it is a video like others."""
        job = await server.accept(request, fields.INTERPOLATION, server.admission.interpolation)
        return await run_in_threadpool(server.shown, job)

    @app.post(
        "/v1/videos/{video_id}/explanation",
        response_model=Video,
        responses=_errors(404, 429, 507),
    )
    def create_explanation(video_id: str, request: Request) -> Any:
        """Queues the page that explains a video made from a prompt: what each stage and each
        mechanism did. It is a video's object of a name of its own, whose content is the variant
        explanation. Asked for again, it is the same one."""
        return server.shown(server.explanation(request, video_id))


def _add_videos(app: FastAPI, server: Server) -> None:
    """The routes of videos that are there."""
    there = _errors(404)

    @app.get("/v1/videos", response_model=Page, responses=_errors())
    def list_videos(
        after: Annotated[str | None, Query(description="the last video of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> Any:
        """Videos in the order they were asked for."""
        last = None
        if after is not None:
            last = server.store.get(after)
            if last is None:
                raise Refused(f"there is no video {after[:100]!r} to go on from", "after")
        jobs, more = server.store.page(last, limit, order == "desc")
        ends = {"first_id": jobs[0].id, "last_id": jobs[-1].id} if jobs else {}
        return Page(
            data=[server.shown(job) for job in jobs],
            has_more=more,
            **({"first_id": None, "last_id": None} | ends),
        )

    @app.get("/v1/videos/{video_id}", response_model=Video, responses=there)
    def retrieve_video(video_id: str) -> Any:
        """A video, and where it stands."""
        return server.shown(server.job(video_id))

    @app.delete("/v1/videos/{video_id}", response_model=Deleted, responses=there)
    def delete_video(video_id: str) -> Any:
        """Deletes a video and its files; one that is being made stops at its next step."""
        server.job(video_id)
        server.store.delete(explanation_of(video_id))
        server.store.delete(video_id)
        return Deleted(id=video_id)

    binary = {"schema": {"type": "string", "format": "binary"}}
    names = {kind for _, kind in VARIANTS.values() if kind} | {*_REFERENCES.values()}
    kinds = {kind: binary for kind in sorted(names)}

    @app.get(
        "/v1/videos/{video_id}/content",
        response_class=FileResponse,
        responses={200: {"content": kinds}, 206: {"content": kinds}, 416: {}, **_errors(404, 409)},
    )
    def download_content(video_id: str, variant: str = "video") -> Any:
        """A file of a video: video, thumbnail, spritesheet, sidecar once it is completed; picture,
        keyframes, refined as soon as their stage is done; reference, the picture or clip that it
        began from; explanation, of an explanation."""
        job = server.job(video_id)
        with fields.as_refused():
            one_of(variant, VARIANTS, "variant")
        folder = server.store.place(video_id)
        began = objects.reference(job)
        if variant == "reference" and began and (folder / began).is_file():
            kind = _REFERENCES[Path(began).suffix]
            return FileResponse(folder / began, media_type=kind, filename=began)
        early = variant in ("picture", "keyframes", "refined")
        if job.status != "completed" and not (early and job.status == "in_progress"):
            raise Refused(f"the video is {job.status}", "video_id", 409, "not_ready")
        if not (folder / VARIANTS[variant][0]).is_file():
            raise Refused(f"the video has no {variant} (yet)", "variant", 404, "not_found")
        return _file(folder, variant)

    @app.get(
        "/v1/videos/{video_id}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}, **there},
    )
    async def watch_video(video_id: str) -> Any:
        """Server-sent events: `video`, whose data is the video, whenever it changes; the stream
        ends with `done` when it is completed, failed or deleted."""
        await run_in_threadpool(server.job, video_id)
        return StreamingResponse(_events(server, video_id), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-cache"})  # fmt: skip


async def _events(server: Server, name: str) -> AsyncIterator[str]:
    last, spoke = "", time.monotonic()
    while True:
        job = await run_in_threadpool(server.store.get, name)
        if job is None:
            yield f'event: done\ndata: {{"id": "{name}", "deleted": true}}\n\n'
            return
        told = (await run_in_threadpool(server.shown, job)).model_dump_json()
        if told != last:
            yield f"event: video\ndata: {told}\n\n"
            last, spoke = told, time.monotonic()
        if job.status in ("completed", "failed"):
            yield f"event: done\ndata: {told}\n\n"
            return
        if server.stopping():
            return
        if time.monotonic() - spoke > _ALIVE:
            yield ": waiting\n\n"
            spoke = time.monotonic()
        await asyncio.sleep(POLL)


def _add_rest(app: FastAPI, server: Server, watched: Any) -> None:
    """Models, health, metrics."""

    @app.get("/v1/models", response_model=Models, responses=_errors())
    def list_models() -> Any:
        """The weights that are served."""
        one = {"id": server.admission.model, "created": server.began, "owned_by": "mv2_jax"}
        return Models(data=[objects.Model(**one)])

    @app.get(
        "/health", response_model=Health, responses={503: {"model": Health}, 413: {"model": Error}}
    )
    def health() -> Any:
        """200 where a worker is ready, else 503."""
        try:
            status, queued = "ok" if server.ready() else "starting", server.store.waiting()
        except Unreachable:
            status, queued = "unreachable", None
        told = Health(status=status, queued=queued)
        return JSONResponse(told.model_dump(), 200 if status == "ok" else 503)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **_errors()},
    )
    def read_metrics() -> Any:
        """Prometheus metrics."""
        return Response(watched.text(), media_type=metrics.TYPE)


def _file(folder: Path, variant: str, headers: Mapping[str, str] | None = None) -> FileResponse:
    name, kind = VARIANTS[variant]
    shown = f"{folder.name}-{name}"
    if variant == EXPLANATION:  # to be looked at: pictures and style are within, scripts are not
        return FileResponse(folder / name, media_type=kind, filename=shown,
                            headers={**pages.HEADERS, "Content-Security-Policy": _WITHIN},
                            content_disposition_type="inline")  # fmt: skip
    return FileResponse(folder / name, media_type=kind, filename=shown, headers=headers)


def _answered(error: Refused) -> Any:
    return guard.answer(error)


def _invalid(error: RequestValidationError) -> Refused:
    """FastAPI's list of faults as the first of them, in a line."""
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return Refused(f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}", name)


def _of_http(error: HTTPException) -> Refused:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    said = {404: "there is nothing at this address", 405: "this address does not do that"}
    text = said.get(error.status_code, str(error.detail))
    return Refused(text, None, error.status_code, code, error.headers)


def _full(error: Exception) -> Refused:
    """The disk, or the table of jobs on it, cannot be written."""
    reason = getattr(error, "strerror", None) or str(error)
    return Refused(f"the server's disk failed: {reason.lower()}", None, 507, "disk")


def _away(error: Exception) -> Refused:
    """The queue of several machines does not answer."""
    return Refused(str(error), None, 503, "unreachable", {"Retry-After": "5"})


def _document(app: FastAPI) -> None:
    """Leaves FastAPI's own 422 out of the description: such requests are answered by 400."""
    made = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            for path in made()["paths"].values():
                for operation in path.values():
                    found = operation["responses"].get("422", {})
                    if "HTTPValidationError" in str(found):
                        del operation["responses"]["422"]
        return app.openapi_schema

    app.openapi = described
