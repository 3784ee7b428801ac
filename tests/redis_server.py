"""A Redis of its own for a test: Debian's redis-server, which keeps what it was told on disk."""

import shutil
import socket
import subprocess
import time

import pytest

SERVER = shutil.which("redis-server")


def needed():
    """Skips a test, with the reason, where there is no Redis to start."""
    pytest.importorskip("redis", reason="the queue of several machines needs redis")
    if SERVER is None:
        pytest.skip("no redis-server on this machine: apt-get install redis-server")


class Redis:
    """It runs from `start` to `stop`, or until it is killed, and may be started again."""

    def __init__(self, folder):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        folder.mkdir(exist_ok=True)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.command = [
            SERVER, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder),
            "--save", "", "--appendonly", "yes", "--appendfsync", "always",
        ]  # fmt: skip
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        give_up = time.monotonic() + 30
        while time.monotonic() < give_up:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError("redis-server does not start")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
