"""Training as several processes: how they find each other, and how they stay of one mind.

On a TPU pod, or over several GPU hosts, every host runs the same command. The step is then one
program over the devices of all processes, and each must start the same programs in the same order:
one that stops, saves or samples by its own clock leaves the others waiting for ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mv2_jax.errors import InputError

# Launchers that tell how many processes they started; JAX finds the rest by itself.
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


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
