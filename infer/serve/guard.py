"""Who may ask, how often, and how much: tokens, other sites' pages, rates, sizes of bodies."""

from __future__ import annotations

import hmac
import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from mv2_jax.infer.serve.fields import Refused

_CLIENTS = 10_000  # that are remembered
_OPEN = ("/health",)  # what needs no token
_OF_PAGE = ("/", "/favicon.ico", "/studio/enter")  # nor does what a page needs to ask for one


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which no other can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Rate:
    """So many requests a minute from each client: a bucket that fills again."""

    def __init__(self, a_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = a_minute, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, client: str) -> None:
        """Counts a request. Raises Refused, 429, with how long to wait."""
        now = self._clock()
        with self._lock:
            left, then = self._left.pop(client, (float(self._most), now))
            left = min(self._most, left + (now - then) * self._most / 60)
            self._left[client] = (left - 1 if left >= 1 else left, now)
            while len(self._left) > _CLIENTS:
                self._left.popitem(last=False)
        if left < 1:
            wait = math.ceil((1 - left) * 60 / self._most)
            raise too_many(f"{self._most} requests a minute are the most from one client", wait)


def too_many(message: str, wait: float) -> Refused:
    """The refusal that says when to come again."""
    after = str(max(1, math.ceil(wait)))
    return Refused(f"{message}; come again in {after} s", None, 429, "rate_limit_exceeded",
                   {"Retry-After": after})  # fmt: skip


class Cookie:
    """How a browser shows a token: an <img> or <video> cannot send a header along.

    Its name is of the token, so that two servers on one host do not take each other's.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self.name, self.value = f"mv2_{self._of('name')[:12]}", self._of("value")

    def _of(self, what: str) -> str:
        return hmac.digest(self._token.encode(), what.encode(), "sha256").hex()

    def opens(self, token: str) -> bool:
        """Whether a token is the right one."""
        return hmac.compare_digest(token.strip().encode(), self._token.encode())

    def shown(self, headers: Mapping[str, str]) -> bool:
        """Whether a request brings it along."""
        pairs = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        return any(
            name == self.name and hmac.compare_digest(value.encode(), self.value.encode())
            for name, _, value in pairs
        )


class Gate:
    """What every request passes first, as ASGI middleware.

    Args:
        token: that `Authorization: Bearer` must hold; None on a loopback address. There pages of
            other sites are kept out instead, whose requests a browser sends along.
        largest: bytes of a body.
        local: False where other machines may ask and the routes know tokens of their own.
        page: whether a browser may show the token as a `Cookie`.
    """

    def __init__(
        self, app: Any, token: str | None, largest: int, local: bool = True, page: bool = False
    ) -> None:
        self._app, self._largest, self._local, self._page = app, largest, local, page
        self._cookie = Cookie(token) if token is not None else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in
                   scope["headers"]}  # fmt: skip
        try:
            path = scope["path"]
            free = self._page and self._cookie and (
                path in _OF_PAGE or path.startswith("/static/")
            )  # fmt: skip
            if path not in _OPEN and not free:
                self._check(headers)
            declared = headers.get("content-length", "0")
            if declared.isdecimal() and int(declared) > self._largest:
                raise self._too_large()
        except Refused as error:
            await answer(error)(scope, receive, send)
            return
        taken = 0

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._largest:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> Refused:
        most = f"{self._largest / 2**20:.4g} MiB"
        return Refused(f"the request is too large; {most} are the most", None, 413)

    def _check(self, headers: Mapping[str, str]) -> None:
        if self._cookie is not None:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() == "bearer" and self._cookie.opens(given):
                return
            if self._page and self._cookie.shown(headers):
                _same_site(headers)  # a browser sends a cookie along, whoever wrote the page
                return
            raise Refused("a token is needed: Authorization: Bearer TOKEN", None, 401,
                          "invalid_api_key", {"WWW-Authenticate": "Bearer"})  # fmt: skip
        if not self._local:
            return
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if not is_loopback(host):
            raise Refused(f"this server is for this machine alone, not for {host[:100]!r}", None,
                          403, "wrong_host")  # fmt: skip
        _same_site(headers)


def _same_site(headers: Mapping[str, str]) -> None:
    """Raises Refused, 403, for a request that a page of another site makes."""
    origin = headers.get("origin")
    if origin and urlsplit(origin).netloc != headers.get("host"):
        raise Refused("pages of other sites may not use this server", None, 403, "wrong_origin")


def answer(error: Refused) -> Any:
    """The response that a refusal becomes."""
    from starlette.responses import JSONResponse

    return JSONResponse(error.body, error.status, error.headers)
