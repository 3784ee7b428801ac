"""`mv2 studio`: `mv2 serve` with a page to make videos on, which shows stages as they appear."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "page"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_EXAMPLES = ("a red ball bouncing over a meadow", "a golden star spinning at night",
             "a blue cube moving left in the snow", "a green ring rising by the sea")  # fmt: skip


def add(app: Any, model: str, tokenizer: Any) -> None:
    """The page's routes, which are no part of the described API.

    Args:
        tokenizer: of the weights that are served: words that it does not know are hinted at.
    """
    from fastapi.responses import Response

    from mv2_jax.infer import words

    vocabulary = words.vocabulary(tokenizer)
    told = {
        "model": model,
        "examples": _EXAMPLES,
        "words": sorted(vocabulary.words) if vocabulary else None,
    }

    def file(name: str) -> Response:
        path = PAGE / name
        return Response(path.read_bytes(), headers=_HEADERS, media_type=_KINDS[path.suffix])

    @app.get("/", include_in_schema=False, response_class=Response)
    def page() -> Any:
        return file("studio.html")

    @app.get("/static/{name}", include_in_schema=False, response_class=Response)
    def static(name: str) -> Any:
        return file(name) if name in ("studio.css", "studio.js") else Response(status_code=404)

    @app.get("/favicon.ico", include_in_schema=False, response_class=Response)
    def no_icon() -> Any:
        return Response(status_code=204)

    @app.get("/studio/words", include_in_schema=False)
    def known() -> Any:
        return told


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 studio`; returns the exit code. Raises InputError as `mv2 serve`."""
    from mv2_jax.infer.serve import command

    return command.main(arguments, studio=True)
