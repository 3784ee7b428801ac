"""`mv2 serve`: videos for other programs, by HTTP."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mv2_jax.arguments import Parser, whole
from mv2_jax.errors import InputError
from mv2_jax.infer import meshes

_NEEDED = ("fastapi", "uvicorn", "multipart", "prometheus_client")
TOKEN = "MV2_SERVE_TOKEN"


def main(arguments: Sequence[str], studio: bool = False) -> int:
    """Runs `mv2 serve`, or `mv2 studio`, until it is stopped; returns the exit code.

    Raises:
        InputError: a bad flag, weights that cannot be used, an address that is taken.
    """
    args = _parser(studio).parse_args(list(arguments))
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        name = "studio" if studio else "serve"
        raise InputError(f'mv2 {name} needs {missing[0]}; pip install "mv2-jax[serve]"')
    meshes.of_one(args.mesh)
    told = json.dumps({"weights": args.weights, "mesh": args.mesh, "resident": args.resident})
    worker = [sys.executable, "-m", "mv2_jax.infer.serve.maker"]
    return serve(args, worker, [told])


def serve(args: Any, worker: Sequence[str], more: Sequence[str] = ()) -> int:
    """Serves what `args` says by workers of a command (`serve.supervisor`).

    Raises:
        InputError: as `main`.
    """
    from mv2_jax.infer.serve import guard, listen
    from mv2_jax.infer.serve.admission import Admission, Limits
    from mv2_jax.infer.serve.app import build
    from mv2_jax.infer.serve.server import Server
    from mv2_jax.infer.serve.store import Unreachable
    from mv2_jax.infer.serve.supervisor import Supervisor
    from mv2_jax.infer.serve.worker import QUEUE

    token = args.token or os.environ.get(TOKEN)
    made_up = token is None and not guard.is_loopback(args.host)
    token = secrets.token_urlsafe(24) if made_up else token
    folder = Path(args.out)
    limits = Limits(
        rate=args.rate,
        waiting=args.waiting,
        client=args.client,
        upload=args.upload << 20,
        frames=args.frames,
        pixels=args.pixels,
    )
    queue = args.queue or os.environ.get(QUEUE)
    with _store(folder, queue) as store, listen.bound(args.host, args.port) as address:
        admission = Admission(store, args.weights, limits)
        store.serves(f"{admission.model} ({admission.ready.bundle.digest[:12]})")
        supervisor = Supervisor(store, worker, more, queue)
        print(f"mv2: loading {admission.model}; the port opens when its programs are compiled",
              file=sys.stderr, flush=True)  # fmt: skip
        supervisor.start()
        try:
            if not supervisor.wait():
                return supervisor.code or 1  # it has said why
            server = Server(store, admission, limits, supervisor.wake, lambda: supervisor.ready)
            port = address.getsockname()[1]
            address.listen(2048)  # who reads the next line may ask at once
            host = f"[{args.host}]" if ":" in args.host else args.host
            print(f"mv2: serving {admission.model} at http://{host}:{port}/v1; jobs are kept in "
                  f"{folder}", flush=True)  # fmt: skip
            if made_up:
                print(f"mv2: clients need the token {token} (--token or {TOKEN} sets another)",
                      flush=True)  # fmt: skip
            app = build(server, token, page=args.studio)
            if args.studio:
                from mv2_jax.infer.serve import studio_page

                studio_page.add(app, server, token)
                print(f"mv2: the studio is at {_link(args.host, port, token)}", flush=True)
            listen.run(app, address, server)
        finally:
            supervisor.stop()
        with contextlib.suppress(Unreachable):
            waiting = store.waiting()
            print(f"mv2: stopped; {waiting} jobs wait for the next start", file=sys.stderr)
    return 0


def _link(host: str, port: int, token: str | None) -> str:
    """The studio's address, as somebody else would open it where others are let in at all."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/" + (f"#token={quote(token, safe='')}" if token else "")


@contextlib.contextmanager
def _store(folder: Path, queue: str | None) -> Iterator[Any]:
    """The store of a folder, which no other server uses, or those of one queue. Raises
    InputError."""
    from mv2_jax.infer import outputs
    from mv2_jax.infer.serve import store as stores

    folder = outputs.here(folder)
    with outputs.told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "server.lock", "w") if queue is None else contextlib.nullcontext()
    with lock:
        try:
            if queue is None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another mv2 serve uses {folder}; choose another -o") from None
        with outputs.told(folder):
            store = stores.opened(folder, queue)
            store.sweep()
        try:
            yield store
        finally:
            store.close()


def _parser(studio: bool = False) -> Parser:
    parser = Parser(
        prog="mv2 studio" if studio else "mv2 serve",
        description=("Serves a page on which videos are made, beside " if studio else "Serves ")
        + "OpenAI's videos API: POST /v1/videos and so on (docs/serving.md). Jobs are kept in a "
        "folder and survive a restart.",
    )
    parser.set_defaults(studio=studio)
    add = parser.add_argument
    add("-o", "--out", default="served", metavar="DIR", help="folder of jobs and videos (served)")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (127.0.0.1); "
        "any but loopback needs a token")  # fmt: skip
    add(
        "--port",
        type=whole(0, 65535),
        default=8000,
        metavar="N",
        help="port to listen on (8000; 0 to 65535, 0: any free one)",
    )
    add("--token", metavar="TEXT", help=f"token that clients must send ({TOKEN}; by default "
        "one is generated and printed where it is needed)")  # fmt: skip
    add("--queue", metavar="URL", help="redis://HOST:PORT/N: all servers of that address share its "
        "jobs, with -o a folder that all of them see (MV2_SERVE_QUEUE; none: a table in -o, for "
        "one server)")  # fmt: skip
    add("--weights", metavar="DIR", help="a cascade folder (the shipped one)")
    add("--mesh", metavar="AXES", help=meshes.HELP)
    add(
        "--resident",
        choices=("all", "stage"),
        default="all",
        help="weights kept on the devices, as in mv2 generate (all)",
    )
    _add_limits(parser.add_argument_group("limits (answered with 4xx beyond)"))
    return parser


def _add_limits(group: Any) -> None:
    add, many = group.add_argument, {"type": whole(1, 10**6), "metavar": "N"}
    add(
        "--rate",
        default=60,
        help="requests per minute from one client (60; 1 to 1000000)",
        **many,
    )
    add("--waiting", default=1000, help="waiting jobs (1000; 1 to 1000000)", **many)
    add("--client", default=100, help="waiting jobs of one client (100; 1 to 1000000)", **many)
    add(
        "--upload",
        type=whole(1, 4096),
        default=64,
        metavar="N",
        help="size of a request in MiB (64; 1 to 4096)",
    )
    add(
        "--frames",
        type=whole(1, 1024),
        metavar="N",
        help="keyframes of a video (eight times the weights'; 1 to 1024)",
    )
    add(
        "--pixels",
        type=whole(256, 2**26),
        metavar="N",
        help="pixels of a frame (four times the weights'; 256 to 67108864)",
    )
