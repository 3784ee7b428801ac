"""The API's answers: their shapes for the OpenAPI description, and how a job becomes one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from mv2_jax.infer.serve.store import EXPLANATION, Job
from mv2_jax.numbers import STAGES
from mv2_jax.text import timing


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
    there already. ahead: jobs that will be begun before this one. asked: the fields of a request
    that would make it again, but for the picture or clip that it began from: the variant reference,
    if there is one (`reference`). explained: whether it can be explained.
    """

    kind: Literal["video", "interpolation", "explanation"]
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
    asked: dict[str, Any]
    reference: bool
    explained: bool


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
    """ok; starting where the worker is (again) being started; unreachable where the queue is."""

    status: Literal["ok", "starting", "unreachable"]
    queued: int | None


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
            asked=asked(job),
            reference=reference(job) is not None,
            explained=unexplained(job) is None,
        ),
    )


def asked(job: Job) -> dict[str, Any]:
    """The fields of a request that would make a job again, without its file."""
    if job.kind == "interpolation":
        return dict(job.asked["fields"])
    line = {name: said for name, said in job.asked["line"].items() if name not in _FILES}
    made = {_FIELDS.get(name, name): line.pop(name) for name in _PLAIN if name in line}
    if job.asked.get("frames"):
        line.pop("frames", None)  # keyframes: so many as those frames need
        made["num_frames"] = job.asked["frames"]
    return made | ({"mv2": line} if line else {})


_FILES = ("image", "video")
_PLAIN = ("prompt", "seed", "size", "fps", "negative")
_FIELDS = {"negative": "negative_prompt"}


def reference(job: Job) -> str | None:
    """The file that a job began from, in its folder."""
    if job.kind == "interpolation":
        return job.asked["clip"]
    return next((job.asked["line"][name] for name in _FILES if name in job.asked["line"]), None)


def unexplained(job: Job) -> str | None:
    """Why a job cannot be explained; None where it can (see `infer.explain`)."""
    if job.kind == "interpolation":
        return "an interpolation has no stages to explain"
    if job.kind == EXPLANATION:
        return "it is an explanation itself"
    line = job.asked["line"]
    if reference(job):
        return "only videos made from a prompt alone are explained"
    said = [line["prompt"], line.get("negative", "")]
    if not all(timing.is_one(text) for text in said):
        return "its prompt changes over steps or frames"
    own = [name for name in line if name.endswith("_negative") or name == "tell"]
    return f"videos with {own[0]} are not explained" if own else None


def _percent(job: Job) -> int:
    """How much of a job is done: each stage that runs counts the same. An explanation runs them
    over and over, and is not measured."""
    if job.status == "completed":
        return 100
    stage, stages = job.progress.get("stage"), job.asked["stages"]
    if job.status != "in_progress" or job.kind == EXPLANATION or stage not in stages:
        return 99 if job.status == "in_progress" and stage == "writing" else 0
    share = job.progress["done"] / max(job.progress["total"], 1)
    return min(99, int(100 * (stages.index(stage) + share) / len(stages)))


def stages_of(start: str, between: bool) -> list[str]:
    """The stages that a video runs through, from its first."""
    order = list(STAGES)
    return order[order.index(start) : None if between else -1]
