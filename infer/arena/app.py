"""The arena over HTTP: a page a rater, reached by a link that holds the rater's token.

No answer says which system a video is of: a video is the left or the right one of a ballot, and has
no name, date or tag.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from mv2_jax.infer.arena.store import CRITERIA, Arena, Taken
from mv2_jax.infer.serve import guard, pages

PAGE = Path(__file__).parent / "page"
_LARGEST = 1 << 16  # bytes of a request

Answer = Literal["left", "same", "right"]


class Ballot(BaseModel):
    """A rater's answers: of every criterion which side is better."""

    model_config = ConfigDict(extra="forbid")

    answers: dict[str, Answer]
    seconds: float = Field(0.0, ge=0.0, le=1e6, allow_inf_nan=False)
    change: bool = False


class _Unnamed(FileResponse):
    """A file without what tells one folder's files from another's: dates, and tags made of them."""

    def set_stat_headers(self, stat_result: os.stat_result) -> None:
        self.headers.setdefault("content-length", str(stat_result.st_size))

    @staticmethod
    def _should_use_range(http_if_range: str) -> bool:
        return False


def build(arena: Arena, local: bool = True) -> FastAPI:
    """The application. `local`: it is for this machine alone, and refuses other hosts' names."""
    app = FastAPI(title="mv2 arena", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(guard.Gate, token=None, largest=_LARGEST, local=local)
    app.add_exception_handler(HTTPException, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(sqlite3.OperationalError, _full)

    @app.get("/health")
    def health() -> Any:
        return {"status": "ok"}

    pages.add(app, PAGE)

    @app.get("/")
    def hint() -> Any:
        return pages.file(PAGE / "hint.html")

    @app.get("/r/{token}")
    def page(token: str) -> Any:
        if arena.ballots(token):
            return pages.file(PAGE / "arena.html")
        return pages.file(PAGE / "hint.html", 404)

    @app.get("/r/{token}/state")
    def state(token: str) -> Any:
        """All of a rater's ballots, and what is asked."""
        ballots = _known(arena.ballots(token))
        return _said(
            criteria=[{"id": name, "title": title} for name, title in CRITERIA.items()],
            ballots=[{"id": b["id"], "prompt": b["prompt"], "done": bool(b["done"])}
                     for b in ballots],
        )  # fmt: skip

    @app.get("/r/{token}/ballots/{ballot}")
    def answers(token: str, ballot: str) -> Any:
        """What a rater has answered on a ballot."""
        return _said(answers=_known(arena.answers(token, ballot)))

    @app.post("/r/{token}/ballots/{ballot}")
    def vote(token: str, ballot: str, said: Ballot) -> Any:
        """Takes a ballot."""
        if set(said.answers) != set(CRITERIA):
            raise HTTPException(400, f"answers are needed for {', '.join(CRITERIA)}")
        try:
            _known(arena.vote(token, ballot, said.answers, said.seconds, said.change) or None)
        except Taken:
            raise HTTPException(409, "this one has been answered already") from None
        return _said(done=True)

    @app.get("/r/{token}/ballots/{ballot}/{side}")
    def video(token: str, ballot: str, side: Literal["left", "right"]) -> Any:
        """The video on one side."""
        path = _known(arena.side(token, ballot, side))
        return _Unnamed(path, media_type="video/mp4", headers=pages.HEADERS)

    return app


def _known(found: Any) -> Any:
    """What was found; 404 where it is none: an unknown token, or another rater's ballot."""
    if not found and found != {}:
        raise HTTPException(404, "there is nothing at this address")
    return found


def _said(**body: Any) -> JSONResponse:
    return JSONResponse(body, headers=pages.HEADERS)


def _failed(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, pages.HEADERS)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse(
        {"error": f"{first['loc'][-1]}: {first['msg'].lower()}"}, 400, pages.HEADERS
    )


def _full(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": f"the vote was not kept: {error}"}, 507, pages.HEADERS)
