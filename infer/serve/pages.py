"""Files of pages: what the studio's and the arena's have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",  # an address may hold a token
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""A page asks no other host for anything, and tells none where it is."""
OWN = Path(__file__).parent / "page"
_SHARED = ("common.css",)
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def file(path: Path, status: int = 200, headers: Mapping[str, str] = HEADERS) -> Response:
    """A page's file as an answer."""
    return Response(path.read_bytes(), status, dict(headers), _KINDS[path.suffix])


def add(app: FastAPI, folder: Path) -> None:
    """The routes of a page's styles and scripts, which lie in its folder or are `_SHARED`. They are
    no part of the described API."""
    files = {path.name: path for path in folder.iterdir() if path.suffix in (".css", ".js")}
    files |= {name: OWN / name for name in _SHARED}

    @app.get("/static/{name}", include_in_schema=False, response_class=Response)
    def static(name: str) -> Any:
        return file(files[name]) if name in files else Response(status_code=404)

    @app.get("/favicon.ico", include_in_schema=False, response_class=Response)
    def no_icon() -> Any:
        return Response(status_code=204)
