"""`--mesh`: over which devices a command samples, and how its work is split over them.

`--mesh data=2,context=8` names axes of `sharding.make_mesh`; `auto` chooses them. Several
processes, on one machine or many, find each other as training's do (`train.processes`), and only
where a mesh is asked for: without one, each process of a job is a command of its own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mv2_jax.errors import InputError
from mv2_jax.infer import cache
from mv2_jax.lookup import nearest

if TYPE_CHECKING:
    from jax.sharding import Mesh

AUTO = "auto"
HELP = "the device mesh: data=2,context=4 (also fsdp, tensor), or auto (one device)"


def begin(asked: str | None) -> bool:
    """Joins the other processes where a mesh is asked for; whether this one writes and speaks."""
    if asked is None:
        return True
    from mv2_jax.train import processes

    processes.initialise()
    cache.enable()  # before the first word to the others, which is a program
    return processes.first()


@contextmanager
def agreed(asked: str | None) -> Iterator[None]:
    """What the block refuses in one process stops all, rather than leave the others waiting."""
    refused: InputError | None = None
    try:
        yield
    except InputError as error:
        refused = error
    if asked is not None:
        import numpy as np

        from mv2_jax.train import processes

        told = processes.each(np.int32(refused is not None))
        if refused is None and told.any():
            raise InputError(f"process {int(told.argmax())} was refused; it says why")
    if refused is not None:
        raise refused


def shared(asked: str | None, value: int) -> int:
    """The first process's `value` from 0 to 2**32 - 1, in all of them."""
    if asked is None:
        return value
    import numpy as np

    from mv2_jax.train import processes

    return int(processes.each(np.uint32(value))[0])


def several(asked: str | None) -> bool:
    """Whether a mesh is asked for over several processes."""
    if asked is None:
        return False
    import jax

    return jax.process_count() > 1


def of_one(asked: str | None, joined: bool = False) -> None:
    """Raises InputError where a mesh of several processes is asked for, for what works in one.

    Args:
        joined: ask JAX as well, which takes the devices: nothing else tells of a TPU pod's hosts.
    """
    if asked is None:
        return
    import jax

    from mv2_jax.train import processes

    count = max(processes.told(), jax.process_count() if joined else 1)
    if count > 1:
        raise InputError(
            f"--mesh {asked}: a server's mesh is of one process, and this is one of {count}; start "
            "a server of its own on every host (without JAX_NUM_PROCESSES and the like), which "
            "share their jobs by --queue redis://..."
        )


def share(asked: str | None, things: list[Any]) -> list[Any]:
    """Those of the things that this process is to look after: one in so many as share a mesh."""
    if asked is None:
        return things
    import jax

    return things[jax.process_index() :: jax.process_count()]


def end(asked: str | None) -> None:
    """Waits for the other processes, so that none is gone while another still needs it."""
    if asked is not None:
        from mv2_jax.train import processes

        processes.wait("the command is done")


def of(asked: str | None, samples: int = 1, frames: int = 1) -> Mesh | None:
    """The mesh that `--mesh` asks for over all devices of all processes; None for one device alone.

    Args:
        samples: how many are made at a time, for `auto`.
        frames: of a clip, for `auto`.

    Raises:
        InputError: what is asked for does not fit the devices; the line says what would.
    """
    if asked is None:
        return None
    import jax

    from mv2_jax import sharding

    there = jax.device_count()
    sizes = auto(there, samples, frames) if asked.strip() == AUTO else parse(asked, there)
    product = math.prod(sizes.values())
    if product != there:
        raise InputError(
            f"--mesh {asked}: its sizes multiply to {product}, and {_fitting(there, samples)}"
        )
    return sharding.make_mesh(**sizes) if there > 1 else None


def auto(devices: int, samples: int = 1, frames: int = 1) -> dict[str, int]:
    """Samples over as many devices as divide them, clips' frames over the rest, weights over what
    is left then."""
    data = math.gcd(devices, samples)
    left = devices // data
    context = max(size for size in range(1, max(frames, 1) + 1) if left % size == 0)
    sizes = {"data": data, "fsdp": left // context, "context": context}
    return {axis: size for axis, size in sizes.items() if size > 1}


def parse(asked: str, there: int) -> dict[str, int]:
    """{axis: size} of "data=2,context=4". Raises InputError where it is not that."""
    from mv2_jax.sharding import AXES

    sizes: dict[str, int] = {}
    for part in asked.split(","):
        axis, _, size = (text.strip() for text in part.partition("="))
        if axis not in AXES:
            raise InputError(
                f"--mesh {asked}: unknown axis {axis!r}{nearest(axis, AXES)}; the axes are "
                f"{', '.join(AXES)}, and {_fitting(there)}"
            )
        if not size.isdecimal() or int(size) < 1 or axis in sizes:
            raise InputError(
                f"--mesh {asked}: each axis takes one whole number, such as {axis}=2; "
                f"{_fitting(there)}"
            )
        sizes[axis] = int(size)
    return sizes


def _fitting(there: int, samples: int = 1) -> str:
    """How many devices there are, and a mesh that they make."""
    import jax

    name = jax.default_backend()
    if there == 1:
        hint = "; leave --mesh out"
        if name == "cpu":
            hint += ", or make a CPU several by XLA_FLAGS=--xla_force_host_platform_device_count=N"
        return f"there is 1 {name} device{hint}"
    fitting = spelled(auto(there, samples, there))
    halves = f" or data=2,context={there // 2}" if there % 2 == 0 and there > 2 else ""
    return f"there are {there} {name} devices: {fitting}{halves} would fit"


def spelled(sizes: Mapping[str, int]) -> str:
    """As `--mesh` takes it."""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)


def described(mesh: Mesh | None, hint: bool = True) -> str:
    """Where a command runs: "8 cpu devices, data 2 x context 4".

    `hint` says that the command takes a mesh, where it was given none.
    """
    import jax

    if mesh is None:
        more = "; --mesh uses more" if hint and jax.local_device_count() > 1 else ""
        return counted(1, jax.local_device_count()) + more
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    return f"{counted(mesh.size)}, {axes}"


def counted(used: int, there: int | None = None) -> str:
    """So many devices, of what kind, of how many: "1 gpu (NVIDIA H100) device of 8".

    `there` counts all processes' by default.
    """
    import jax

    kind, name = jax.devices()[0].device_kind, jax.default_backend()
    name = name if kind.lower() == name else f"{name} ({kind})"
    there = jax.device_count() if there is None else there
    rest = f" of {there}" if used < there else ""
    several = f" in {jax.process_count()} processes" if used > 1 and jax.process_count() > 1 else ""
    return f"{used} {name} device{'s' if used > 1 else ''}{rest}{several}"


def alone(tree: Any) -> Any:
    """A tree of arrays over a mesh as whole ones on this host; as it is on one device."""
    import jax

    from mv2_jax.train import processes

    def one(leaf: Any) -> Any:
        over = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
        return processes.gather(leaf) if over else leaf

    return jax.tree.map(one, tree)


def facts(mesh: Mesh | None) -> dict[str, str]:
    """What a command runs on, for its sidecar."""
    import jax

    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "platform": device.platform,
        "device": device.device_kind,
        **({"mesh": spelled(mesh.shape)} if mesh is not None else {}),
    }


def say(mesh: Mesh | None = None, hint: bool = True) -> None:
    """Says where a command runs, before it does, in the first process; `hint` as in `described`."""
    import jax

    if jax.process_index() == 0:
        print(f"mv2: on {described(mesh, hint)}", file=sys.stderr)
