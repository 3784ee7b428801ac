"""The studio: a page to make videos on, which shows stages as they appear.

Where a token is needed, a browser is let in by a cookie (`guard.Cookie`): the address that is
printed holds the token behind a #, which browsers send to nobody; the page that finds it there, or
asks for it, hands it in once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from mv2_jax import numbers
from mv2_jax.infer import interpolators, words
from mv2_jax.infer.choices import CHOICES, Choice
from mv2_jax.infer.ready import Ready, interpolator
from mv2_jax.infer.serve import guard, pages
from mv2_jax.infer.serve.server import Server
from mv2_jax.infer.settings import SETTINGS, Setting
from mv2_jax.number_kinds import About, Word

_EXAMPLES = ("a red ball bouncing over a meadow", "a golden star spinning at night",
             "a blue cube moving left in the snow", "a green ring rising by the sea")  # fmt: skip
_LONGEST = 4096  # bytes of a token's form
_OWN = "the weights'"


def add(app: FastAPI, server: Server, token: str | None = None) -> None:
    """The page's routes, which are no part of the described API.

    Args:
        token: as `app.build` has it.
    """
    cookie = guard.Cookie(token) if token is not None else None
    told = about(server.admission.ready)
    pages.add(app, pages.OWN)

    @app.get("/", include_in_schema=False, response_class=Response)
    def page(request: Request) -> Any:
        if cookie is None or cookie.shown(request.headers):
            return pages.file(pages.OWN / "studio.html")
        return pages.file(pages.OWN / "enter.html")

    @app.post("/studio/enter", include_in_schema=False, response_class=Response)
    async def enter(request: Request) -> Any:
        server.rate.take(request.client.host if request.client else "unknown")
        said = b""
        async for part in request.stream():
            said += part
            if len(said) > _LONGEST:
                return pages.file(pages.OWN / "enter.html", 413)
        given = parse_qs(said.decode(errors="replace")).get("token", [""])[0]
        if cookie is not None and not cookie.opens(given):
            return pages.file(pages.OWN / "enter.html", 401)
        answer = RedirectResponse("/", 303, pages.HEADERS)
        if cookie is not None:
            answer.set_cookie(cookie.name, cookie.value, httponly=True, samesite="strict")
        return answer

    @app.get("/studio/about", include_in_schema=False)
    def known() -> Any:
        return told


def about(ready: Ready) -> dict[str, Any]:
    """What the page is told of the weights: examples, words they know, settings and defaults."""
    vocabulary, stage = words.vocabulary(ready.tokenizer), ready.sized.stages["v2v"]
    between = int(ready.used["vfi"]["between"])
    return {
        "model": ready.bundle.name,
        "examples": _EXAMPLES,
        "words": sorted(vocabulary.words) if vocabulary else None,
        "size": f"{stage.size[1]}x{stage.size[0]}",
        "num_frames": (stage.frames - 1) * (between + 1) + 1,
        "settings": [*(_setting(each, ready) for each in SETTINGS),
                     *(_choice(each, ready) for each in CHOICES)],
        "interpolators": interpolators.NAMES,
    }  # fmt: skip


def _setting(setting: Setting, ready: Ready) -> dict[str, Any]:
    """A number as a field of the page."""
    whole = {
        stage: numbers.changed(stage, own, {"steps": ready.numbers[stage].get("steps")})
        if stage in numbers.DIFFUSION
        else own
        for stage, own in ready.sized.numbers.items()
    }
    told, limits = setting.about, {}
    if type(told) is About:
        limits = {"low": told.low, "high": told.high, "whole": told.kind is int}
    if isinstance(told, Word):
        limits = {"known": told.known}
    return _field(setting, told.help, setting.default(whole)) | limits


def _choice(choice: Choice, ready: Ready) -> dict[str, Any]:
    """A choice as a field of the page."""
    first = choice.known[0]
    limits = {"known": choice.known} if isinstance(first, str) else {
        "low": first, "high": choice.known[1], "whole": True}  # fmt: skip
    return _field(choice, choice.help, _chosen(choice, ready)) | limits


def _chosen(choice: Choice, ready: Ready) -> str:
    """What the weights choose themselves, by stage where they differ."""
    if choice.name == "network":
        return interpolator(ready.sized) or _OWN
    found: dict[str, list[str]] = {}
    for name in choice.stages:
        stage = ready.sized.stages.get(name)
        value = getattr(stage, choice.name, getattr(getattr(stage, "schedule", None),
                                                    choice.name, None))  # fmt: skip
        found.setdefault(_OWN if value is None else str(value), []).append(name)
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{'/'.join(names).upper()} {value}" for value, names in found.items())


def _field(one: Setting | Choice, told: str, default: str) -> Mapping[str, Any]:
    stages = one.stages
    label = one.dest.removeprefix(f"{stages[0]}_") if len(stages) == 1 else one.dest
    return {
        "name": one.dest,
        "label": label.replace("_", " "),
        "stage": stages[0] if len(stages) == 1 and stages[0] in numbers.STAGES else "several",
        "stages": [stage.upper() for stage in stages],
        "help": told,
        "default": default,
    }
