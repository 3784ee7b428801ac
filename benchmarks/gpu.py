"""What one GPU does with this package, in nine minutes at most, from nothing but this checkout.

    python benchmarks/gpu.py --out results            # all parts, in order of worth
    python benchmarks/gpu.py --out results --check    # only says what is lacking, and ends
    python benchmarks/gpu.py --out results --cpu      # the same code on tiny sizes, as a rehearsal

Parts: a0 a video of the shipped cascade by `mv2 generate`; a cascades end to end on random weights,
`sd15` (16 frames of 512x512) and `paper` (94 of 1048x1048), seconds a stage; b a step of the video
UNet beside diffusers'; c attention; d VAE decoding and RIFE; e a training step of I2V; f `paper`
again, with XLA trying algorithms.

`results` gets gpu.json and gpu.md, which are written again at every figure, and the video. Each
part has a share of the clock: what does not fit is cut, and says so. A chain that is cut is scaled
from the steps that it made, and says so. MFU is useful FLOPs (matrix products, convolutions and
attention, counted from the traced program) over NVIDIA's figure for dense bf16. Compiling would
take most of the time, so XLA is kept from trying algorithms (`--flags`); b and f say what that
costs. Parts compile side by side from the start, in threads; a second run finds the programs in
the cache (`--cache`). Without a GPU the sizes are tiny and the times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
MINUTES = 9.0
NEEDED = ("jax", "flax", "numpy", "scipy", "safetensors")
NAMES = ("a0", "a", "b", "c", "d", "e", "f")
PARTS_NEED = {
    "a0": ("av", "PIL", "ftfy", "regex", "tqdm"),
    "a": ("ftfy", "regex"),
    "e": ("optax", "ml_collections"),
    "f": ("ftfy", "regex"),
}


def main() -> int:
    """Runs the parts; returns the exit code: 2 where the package itself cannot be imported."""
    began = time.monotonic()
    args = arguments()
    lacking = {name: missing(PARTS_NEED.get(name, ())) for name in args.parts}
    if gone := missing(NEEDED):
        print(f"gpu.py needs {', '.join(gone)}: pip install {' '.join(gone)}", file=sys.stderr)
        return 2
    for name, gone in lacking.items():
        if gone:
            print(f"part {name} will be left out: it needs {', '.join(gone)}")
    if "b" in args.parts and (gone := missing(("torch", "diffusers"))):
        print(f"part b will have one side only: {', '.join(gone)} not here")
    if args.check:
        return int(any(lacking.values()))
    environment(args)
    bench, parts = prepare(args, began)
    planned: dict[str, Planning] = {}
    kept = [part for part in parts if not lacking[part.name]]
    for part in parts:
        bench.results.part(part.name, part.title)
        if lacking[part.name]:
            bench.results.remark(part.name, f"left out: needs {', '.join(lacking[part.name])}")
        planned[part.name] = Planning()
    watch(bench)
    threading.Thread(target=plan_all, args=(bench, kept, planned), daemon=True).start()
    for part in kept:
        run(bench, part, planned[part.name])
    bench.results.facts["seconds in all"] = time.monotonic() - began
    bench.results.write()
    print(bench.results.table())
    leave(bench, planned)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, default=Path("gpu"), help="the folder of the results (gpu)")
    add("--minutes", type=float, default=MINUTES, help=f"of the clock, all in all ({MINUTES:g})")
    add("--parts", type=names, default=NAMES, help=f"some of {','.join(NAMES)}, with commas")
    add("--small", action="store_true", help="tiny sizes, on a GPU too")
    add("--cpu", action="store_true", help="on the CPU, at tiny sizes")
    add("--check", action="store_true", help="only say what is lacking")
    add("--threads", type=int, help="that compile (half the cores, 8 at most)")
    add("--flags", default=FLAGS, help=f"XLA's ({FLAGS})")
    add("--cache", type=Path, help="folder of compiled programs (~/.cache/mv2_jax/gpu)")
    return parser.parse_args()


def names(text: str) -> tuple[str, ...]:
    """Parts by name, in the order of their worth."""
    asked = set(text.split(","))
    if not asked <= set(NAMES):
        raise argparse.ArgumentTypeError(f"takes some of {','.join(NAMES)}, not {text!r}")
    return tuple(name for name in NAMES if name in asked)


def missing(modules: tuple[str, ...]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def environment(args: argparse.Namespace) -> None:
    """What has to be said before JAX is imported."""
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    if args.cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {args.flags}".strip()
    # Part a0's process and torch's need a share of the card beside this one.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.80")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def prepare(args: argparse.Namespace, began: float) -> tuple[Any, list[Any]]:
    """The run, and its parts in order."""
    import jax
    import jax.numpy as jnp
    from gpu_parts import attention, cascades, decoding, flops, jobs, networks, shipped, training
    from gpu_parts import unet as step
    from gpu_parts.bench import Bench, Results

    from mv2_jax.infer.cache import user_cache

    device = jax.devices()[0]
    small = args.small or args.cpu or device.platform != "gpu"
    if small and not (args.small or args.cpu):
        print("no GPU here: tiny sizes, whose times mean nothing")
    cache = (args.cache or user_cache() / "gpu").resolve()
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out.resolve())
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    threads = args.threads or max(1, min(8, (os.cpu_count() or 2) // 2))
    peak = flops.peak(device.device_kind)
    bench = Bench(
        results,
        jobs.Compiler(threads),
        networks.Weights(dtype, small),
        cache,
        small,
        dtype,
        began + 60 * args.minutes,
        peak,
    )
    results.facts |= {
        "device": device.device_kind,
        "sizes": "tiny: times mean nothing" if small else "full",
        "commit": commit(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "python": platform.python_version(),
        "type": jnp.dtype(dtype).name,
        "XLA flags": os.environ["XLA_FLAGS"],
        "compiling threads": threads,
        "cores": os.cpu_count(),
        "peak taken, TFLOP/s": peak,
        "minutes given": args.minutes,
        **ceilings(bench),
    }
    results.write()
    every = (
        shipped.PART,
        cascades.PART,
        step.PART,
        attention.PART,
        decoding.PART,
        training.PART,
        cascades.TUNED_PART,
    )
    return bench, [part for part in every if part.name in args.parts]


def ceilings(bench: Any) -> dict[str, float]:
    """What the device reaches at best: a large matrix product, and a copy."""
    import jax
    import jax.numpy as jnp
    from gpu_parts import jobs

    side = 512 if bench.small else 8192
    a = jax.random.normal(jax.random.key(0), (side, side)).astype(bench.dtype)
    until = time.monotonic() + 30
    product = jobs.seconds(jax.jit(jnp.matmul), (a, a), until, 0.5)
    moved = jobs.seconds(jax.jit(jnp.negative), (jnp.tile(a, (8, 1)),), until, 0.5)
    size = 2 * 8 * a.nbytes
    return {
        f"product of {side}x{side}, TFLOP/s": 2e-12 * side**3 / product,
        "reading and writing, TB/s": 1e-12 * size / moved,
    }


def commit() -> str:
    """The checkout's commit; "unknown" where this is a copy without git."""
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


class Planning:
    """What a part's `plan` made, once it has."""

    def __init__(self) -> None:
        self.done, self.made, self.failed = threading.Event(), None, ""


def plan_all(bench: Any, parts: list[Any], planned: dict[str, Planning]) -> None:
    """Plans the parts in their order, so that what is measured first compiles first."""
    for part in parts:
        here = planned[part.name]
        try:
            here.made = part.plan(bench)
        except Exception as error:
            here.failed = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        here.done.set()


def run(bench: Any, part: Any, planning: Planning) -> None:
    """One part within its share of the clock; whatever goes wrong in it is a remark."""
    from gpu_parts.jobs import Late

    begun = time.monotonic()
    # Shares are of the nine minutes; more or fewer of them stretch all alike.
    share = part.seconds * bench.results.facts["minutes given"] / MINUTES
    bench.part_ends = min(begun + share, bench.ends - 5)
    print(f"{part.name}: {part.title} (at {begun - start(bench):.0f} s)", flush=True)
    try:
        if bench.left <= 0:
            raise Late("the whole run's time was up")
        if not planning.done.wait(bench.left):
            raise Late("its programs were not traced in time")
        if planning.failed:
            raise RuntimeError(planning.failed)
        part.run(bench, planning.made)
    except Late as late:
        bench.results.remark(part.name, f"cut: {late}")
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        bench.results.remark(part.name, f"failed: {text}")
    bench.results.parts[part.name]["seconds"] = time.monotonic() - begun
    bench.results.write()


def start(bench: Any) -> float:
    return bench.ends - 60 * bench.results.facts["minutes given"]


def watch(bench: Any) -> None:
    """Ends the process at the end of its time, whatever it waits for; the results are written."""

    def end() -> None:
        bench.results.facts["ended"] = "cut at the end of its time"
        bench.results.write()
        print("time is up", flush=True)
        os._exit(0)

    timer = threading.Timer(max(0.0, bench.ends - time.monotonic()), end)
    timer.daemon = True
    timer.start()


def leave(bench: Any, planned: dict[str, Planning]) -> None:
    """Ends at once: threads that still compile would be waited for."""
    for here in planned.values():
        process = getattr(here.made, "torch", here.made)
        if isinstance(process, subprocess.Popen) and process.poll() is None:
            process.kill()
    bench.compiler.stop()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
