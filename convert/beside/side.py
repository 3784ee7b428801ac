"""One side of `mv2 bench cascade`: a process that runs its network once a word.

    python -m mv2_jax.convert.beside.side torch|mv2 NETWORK FOLDER [--small] [--plain]

Words come a line each on standard input: "run", or "end", which leaves the outputs in FOLDER.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mv2_jax.convert.beside import randomise
from mv2_jax.convert.beside.case import Case


def main(side: str, name: str, folder: Path, *flags: str) -> None:
    """Loads, runs once, says so; then does what it is told until "end"."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer

    def answer(**told: Any) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    from mv2_jax.convert.beside.cases import CASES

    case = CASES[name]("--small" in flags)
    run, told = {"torch": theirs, "mv2": ours}[side](case, folder, "--plain" in flags)
    gc.collect()
    _forget_peak()
    outputs = run()
    answer(ready=True)
    for word in sys.stdin:
        if word.strip() == "end":
            break
        wall, cpu = time.perf_counter(), time.process_time()
        outputs = run()
        answer(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)
    peak = _peak()
    arrays = {f"{i:03d}": np.asarray(x, np.float32) for i, x in enumerate(outputs)}
    np.savez(folder / f"{side}.npz", **arrays)
    answer(peak=peak, bound=case.bound, **told)


def theirs(case: Case, folder: Path, plain: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Torch's network, made and saved: a call of it."""
    import torch

    torch.set_num_threads(int(os.environ["NPROC"]))
    module = case.torch()
    if isinstance(module, torch.nn.Module):
        randomise(module)
    case.save(module, folder)
    given = {name: torch.from_numpy(x) for name, x in case.inputs().items()}

    def run() -> Any:
        with torch.inference_mode():
            return [output.numpy() for output in case.theirs(module, given)]

    return run, {}


def ours(case: Case, folder: Path, plain: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Our network from the saved folder, compiled as a cascade's programs are: a call of it."""
    import jax
    import jax.numpy as jnp

    from mv2_jax import compiler
    from mv2_jax.infer import cache

    cache.enable()
    params, given = case.convert(folder), jax.device_put(case.inputs())

    def apply(params: Any, given: Any) -> Any:
        return case.ours(jnp.float32, params, given)

    options = {} if plain else compiler.options(params)
    compiled = jax.jit(apply).lower(params, given).compile(compiler_options=options)
    return lambda: jax.block_until_ready(compiled(params, given)), {"options": options}


def _forget_peak() -> None:
    """Lets the most memory in use count from here on, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    """The most bytes of memory in use."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
