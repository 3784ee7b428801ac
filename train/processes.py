"""Training as several processes: how they find each other, and how they stay of one mind.

On a TPU pod, or over several GPU hosts, every host runs the same command. The step is then one
program over the devices of all processes, and each must start the same programs in the same order:
one that stops, saves or samples by its own clock leaves the others waiting for ever.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from mv2_jax.errors import InputError

# Launchers that tell how many processes they started; JAX finds the rest by itself.
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
BEAT, LOST = 2.0, 16.0  # seconds between two signs of life, and without one until others end


def initialise() -> None:
    """Joins the processes that the environment tells of; nothing where this one is alone.

    JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it
    outright; `srun`, `mpirun` and the hosts of a TPU pod are recognised. Call it before anything
    asks JAX for a device; a second call does nothing.

    Raises:
        InputError: a coordinator, and neither a launcher nor variables that number the processes.
    """
    if jax.distributed.is_initialized():
        return
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        try:
            jax.distributed.initialize(
                num_processes=_number("JAX_NUM_PROCESSES"), process_id=_number("JAX_PROCESS_ID")
            )
        except ValueError as error:
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS is set, but {error}".rstrip(".")
                + ": set JAX_NUM_PROCESSES, and JAX_PROCESS_ID from 0 on"
            ) from None
    elif any(int(os.environ.get(name, 1)) > 1 for name in LAUNCHERS):
        jax.distributed.initialize()
    elif os.environ.get("TPU_ML_PLATFORM") == "JAX" and jax.config.jax_platforms != "cpu":
        # JAX sets the variable on import where it finds TPU chips; the pod's hosts are known to
        # the machine's metadata. A machine without any (a notebook's) is a host alone.
        try:
            jax.distributed.initialize()
        except ValueError:
            return


def told() -> int:
    """How many processes the environment tells of, before any of them has joined the others. (The
    hosts of a TPU pod are told by its own metadata, not here.)"""
    said = [os.environ.get(name, "") for name in ("JAX_NUM_PROCESSES", *LAUNCHERS)]
    return max(int(text) if text.isdecimal() else 1 for text in said)


def _number(name: str) -> int | None:
    """The whole number that a variable holds; None where it is not set."""
    return int(os.environ[name]) if name in os.environ else None


def first() -> bool:
    """True in the one process that writes files and speaks."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, in the first process."""
    if first():
        print(text, flush=True)


def wait(what: str) -> None:
    """Returns once every process is here, each with the same `what`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def each(value: Any) -> np.ndarray:
    """A number of each process, [processes], in all of them. All must call it together."""
    if jax.process_count() == 1:
        return np.asarray(value)[None]
    return multihost_utils.process_allgather(value)


def gather(tree: Any) -> Any:
    """A tree of arrays over the devices of all processes, whole and on each host.

    All processes must call it together.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Of several processes none waits for one that is lost: it ends, with a line and exit code 1.

    Within it, each gives signs of life through JAX's coordinator, from a thread. One that raises
    tells the others why. Alone, a process does nothing.
    """
    if jax.process_count() == 1:
        yield
        return
    alive = Alive()
    try:
        yield
    except BaseException as error:
        if re.match("[A-Z_]{5,}: ", str(error)):
            # The runtime's own, and maybe what became of a lost one's part: if so, the thread will
            # end this process.
            time.sleep(LOST + 5 * BEAT)
        alive.leave(f"{type(error).__name__}: {error}")
        # The others never come to JAX's own farewell, which would wait for them and then abort.
        atexit.register(alive.go, _exit_code(error))
        raise
    alive.leave()


def _exit_code(error: BaseException) -> int:
    """What the command ends with."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, InputError | OSError) else 1


class Alive:
    """Threads that tell the other processes that this one lives, and look whether they do."""

    FOLDER, DOOR = "mv2_jax/alive", "mv2_jax/door"

    def __init__(self) -> None:
        from jax._src import distributed  # the coordinator's table has no public name

        self._table, self._here = distributed.global_state.client, jax.process_index()
        self._coordinator = distributed.global_state.coordinator_address
        now = time.monotonic()
        self._seen = {str(number): ("", now) for number in range(jax.process_count())}
        self._heard = now  # from the coordinator
        self._left = threading.Event()
        self._tell("0")
        wait("all are there to be watched")
        for work in (self._talk, self._held, self._judge):
            threading.Thread(target=work, name="alive", daemon=True).start()

    def _tell(self, word: str) -> None:
        self._table.key_value_set(f"{self.FOLDER}/{self._here}", word, allow_overwrite=True)

    def leave(self, why: str = "") -> None:
        """This process goes, for a reason or because all is done."""
        self._left.set()
        with contextlib.suppress(Exception):  # the coordinator may be what is lost
            self._tell(f"failed: {why.strip().splitlines()[0][:200]}" if why else "done")

    def _talk(self) -> None:
        """Tells, and asks. A call may last: what is concluded from silence is not up to it."""
        beats = 0
        while not self._left.wait(BEAT):
            beats += 1
            try:
                self._tell(str(beats))
                told = self._table.key_value_dir_get(self.FOLDER)
            except Exception:
                return
            self._heard = now = time.monotonic()
            for path, word in told:
                name = path.rpartition("/")[2]
                if word != self._seen[name][0]:
                    self._seen[name] = (word, now)

    def _held(self) -> None:
        """Holds a connection with process 0, whose end tells of its own at once.

        JAX's client notices as soon, and aborts with a stack trace; this is a little faster.
        """
        if self._here == 0:
            server = socket.create_server(("", 0), backlog=len(self._seen))
            self._table.key_value_set(self.DOOR, str(server.getsockname()[1]))
            held = [server.accept() for _ in range(len(self._seen) - 1)]
            while held:  # as long as this process lives
                time.sleep(3600)
            return
        host = self._coordinator.rpartition(":")[0].strip("[]")
        try:
            port = int(self._table.blocking_key_value_get(self.DOOR, 60_000))
            with socket.create_connection((host, port), timeout=60) as line:
                line.settimeout(None)
                line.recv(1)
        except Exception:  # no way there: its silence tells, later
            return
        if not self._left.is_set():
            self._end("process 0 is lost")

    def _judge(self) -> None:
        while not self._left.wait(BEAT):
            now = time.monotonic()
            if now - self._heard > LOST:
                self._end(f"process 0 has not answered for {LOST:.0f} seconds")
            for name, (word, when) in self._seen.items():
                if word.startswith("failed"):
                    self._end(f"process {name} {word}")
                if word != "done" and now - when > LOST:
                    self._end(f"process {name} has given no sign of life for {LOST:.0f} seconds")

    def _end(self, why: str) -> NoReturn:
        """Ends this process: its main thread may wait in a collective that will never be whole."""
        os.write(2, f"mv2: error: {why}; run the same command again on all\n".encode())
        self.go(1)

    def go(self, code: int) -> NoReturn:
        """Ends this process without JAX's farewell."""
        sys.stdout.flush()
        sys.stderr.flush()
        # The others need their coordinator to find out, and those that find out the same are not
        # to take its end for the cause.
        time.sleep(3 * BEAT if self._here == 0 else 0)
        os._exit(code)


class Watch:
    """Seconds since it was made, and whether to stop: the same in all processes.

    The first process's clock counts; `asked` may be True in any of them. They compare notes after
    the same steps, about once a second, since each comparison waits for the work under way. One
    process alone looks at every step and waits for nothing.
    """

    MOST = 64  # steps between two comparisons

    def __init__(self, clock: Callable[[], float], asked: Callable[[], bool]) -> None:
        self._clock, self._asked = clock, asked
        self._start = clock()
        self._since, self._every = 0, 1
        self.seconds, self.stop = 0.0, False

    def tick(self) -> None:
        """To be called once a step."""
        self._since += 1
        if self._since < self._every:
            return
        now = self._clock() - self._start
        if jax.process_count() == 1:
            self.seconds, self.stop = now, self._asked()
            return
        told = multihost_utils.process_allgather(np.float32([now, self._asked()]))
        passed = max(float(told[0, 0]) - self.seconds, 1e-3)
        self.seconds, self.stop = float(told[0, 0]), bool(told[:, 1].any())
        # Growing by degrees: the first steps may be quick and the next ones not.
        self._every = min(max(1, int(self._since / passed)), 2 * self._since, self.MOST)
        self._since = 0
