"""An address, and what answers there."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from mv2_jax.errors import InputError


def run(app: Any, address: socket.socket, server: Any = None) -> None:
    """Serves an application until the process is told to stop.

    Args:
        address: from `bound`.
        server: whose `stopping` shall say that it has been told so.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # else a client could say that it is another
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    http = uvicorn.Server(config)
    if server is not None:
        server.stopping = lambda: http.should_exit
    with contextlib.suppress(KeyboardInterrupt):  # raised again once uvicorn has stopped in order
        http.run(sockets=[address])


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound, and so taken, but not open before it listens. Raises InputError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputError(f"cannot serve at {host}:{port}: {reason}") from None
        yield made
