"""A server for tests: a maker that is quick, and the two processes of a server around it.

python tests/serving.py server FOLDER WEIGHTS PORT SECONDS [QUEUE]
python tests/serving.py worker FOLDER NAME SECONDS
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

from mv2_jax import files
from mv2_jax.signals import stopped_in_order


class Served:
    """A server in this process, whose jobs are made when it is told to."""

    def __init__(self, folder, weights, token=None, **limits):
        from fastapi.testclient import TestClient

        from mv2_jax.infer.serve import app, maker, server, studio_page
        from mv2_jax.infer.serve.admission import Admission, Limits
        from mv2_jax.infer.serve.store_sqlite import SqliteStore

        self.store = SqliteStore(folder)
        self.limits = Limits(**{"rate": 10**6, **limits})
        self.admission = Admission(self.store, str(weights), self.limits)
        self.server = server.Server(self.store, self.admission, self.limits)
        self.app = app.build(self.server, token, page=True)
        studio_page.add(self.app, self.server, token)
        self.client = TestClient(self.app, base_url="http://127.0.0.1")
        self.maker = maker.Cascade(str(weights))

    def post(self, path="/v1/videos", **fields):
        return self.client.post(path, json=fields)

    def work(self, owner="w"):
        """Makes what is queued; how much it was."""
        from mv2_jax.infer.serve import worker

        made = 0
        while job := self.store.claim(owner):
            worker.one(self.store, job, self.maker)
            made += 1
        return made

    def get(self, name, rest=""):
        return self.client.get(f"/v1/videos/{name}{rest}")


def frames(content):
    with av.open(io.BytesIO(content)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def png(height=40, width=50):
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(file, "PNG")
    return file.getvalue()


DEADLY = "a red cube in the snow"


class Quick:
    """Makes files that are no videos, each in so many seconds, and writes down what it made.

    `DEADLY` takes the worker down.
    """

    def __init__(self, seconds: float, log: Path) -> None:
        self.seconds, self.log = seconds, log

    def warm(self):
        pass

    def make(self, job, folder, report):
        prompt = job.asked["prompt"]
        if prompt == DEADLY:
            os._exit(9)
        for k in range(10):
            report("t2i", k, 10)
            time.sleep(self.seconds / 10)
        with files.whole(folder / "video.mp4") as scratch:
            scratch.write_bytes(job.id.encode())
        with open(self.log, "a") as log:  # a video that is made twice stands there twice
            log.write(f"{job.id}\n")
        report.end()
        return self.found(job, folder)

    def found(self, job, folder):
        return {}


def server(folder: str, weights: str, port: str, seconds: str, *queue: str) -> int:
    from mv2_jax.infer.serve import command

    flags = f"-o {folder} --weights {weights} --port {port} --rate 100000 --client 100000"
    if queue:
        flags += f" --queue {queue[0]}"
    args: argparse.Namespace = command._parser().parse_args(flags.split())
    with stopped_in_order():
        return command.serve(args, [sys.executable, __file__, "worker"], [seconds])


def worker(folder: str, name: str, seconds: str) -> int:
    from mv2_jax.infer.serve import store_redis
    from mv2_jax.infer.serve import worker as process

    store_redis.LEASE = 3.0
    return process.run(Path(folder), name, Quick(float(seconds), Path(folder) / "made.txt"))


if __name__ == "__main__":
    sys.exit({"server": server, "worker": worker}[sys.argv[1]](*sys.argv[2:]))
