"""The API's answers: their shapes for the OpenAPI description, and how a job becomes one."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from mv2_jax.infer.serve.store import Job
from mv2_jax.numbers import STAGES

_MADE = {"picture": "t2i", "keyframes": "i2v", "refined": "v2v"}


class ErrorBody(BaseModel):
    """What is wrong, in one line; `param` is the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """Every answer that is not 2xx."""

    error: ErrorBody


class Failure(BaseModel):
    """Why a video could not be made."""

    code: str
    message: str


class Own(BaseModel):
    """What this server says beside OpenAI's fields.

    stage: the one that runs. done, total: its steps. compiling: whether its program is compiled.
    durations: seconds of every stage so far, or as it was. previews: variants of /content that are
    there already. ahead: jobs that will be begun before this one.
    """

    kind: Literal["video", "interpolation"]
    seed: int | None
    fps: float
    num_frames: int
    started_at: int | None
    attempts: int
    ahead: int | None
    stage: str | None
    done: int
    total: int
    compiling: bool
    durations: dict[str, float]
    previews: list[str]
    notes: list[str]


class Video(BaseModel):
    """A video, made or to be made; OpenAI's fields, and ours under `mv2`."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None
    expires_at: int | None = None
    error: Failure | None
    prompt: str | None
    remixed_from_video_id: str | None = None
    seconds: str
    size: str
    mv2: Own


class Page(BaseModel):
    """Some of all videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A video is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class Model(BaseModel):
    """The weights that are served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class Models(BaseModel):
    """One model: a server has one cascade."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """ok, or starting where the worker is (again) being started."""

    status: Literal["ok", "starting"]
    queued: int


def video(job: Job, ahead: int | None = None) -> Video:
    """A job as clients see it."""
    told, facts = job.progress, {**job.asked["facts"], **job.result}
    now = told if job.status == "in_progress" else {}
    seconds = facts.get("seconds", facts["frames"] / facts["fps"])
    ended = int(job.ended) if job.ended and job.status == "completed" else None
    return Video(
        id=job.id,
        model=job.asked["model"],
        status=job.status,
        progress=_percent(job),
        created_at=int(job.created),
        completed_at=ended,
        error=Failure(**job.error) if job.error else None,
        prompt=job.asked.get("prompt"),
        seconds=f"{seconds:.4g}",
        size=f"{facts['width']}x{facts['height']}",
        mv2=Own(
            kind=job.kind,
            seed=job.asked.get("seed"),
            fps=facts["fps"],
            num_frames=facts["frames"],
            started_at=int(job.started) if job.started else None,
            attempts=job.attempts,
            ahead=ahead,
            stage=now.get("stage"),
            done=now.get("done", 0),
            total=now.get("total", 0),
            compiling=now.get("compiling", False),
            durations=job.result.get("durations") or told.get("durations", {}),
            previews=told.get("previews", []),
            notes=[*job.asked.get("notes", []), *told.get("notes", [])],
        ),
    )


def _percent(job: Job) -> int:
    """How much of a job is done: each stage that runs counts the same."""
    if job.status == "completed":
        return 100
    stage, stages = job.progress.get("stage"), job.asked["stages"]
    if job.status != "in_progress" or stage not in stages:
        return 99 if job.status == "in_progress" and stage == "writing" else 0
    share = job.progress["done"] / max(job.progress["total"], 1)
    return min(99, int(100 * (stages.index(stage) + share) / len(stages)))


def stages_of(start: str, between: bool) -> list[str]:
    """The stages that a video runs through, from its first."""
    order = list(STAGES)
    return order[order.index(start) : None if between else -1]
