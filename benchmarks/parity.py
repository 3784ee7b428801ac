"""Full-size networks with random weights, in torch and here, on the same inputs.

    python benchmarks/parity.py                 # every case, one after the other
    python benchmarks/parity.py sd15-64 sdxl    # some
    python benchmarks/parity.py --small         # the same code on narrow networks, in a minute
    python benchmarks/parity.py --animatediff FOLDER    # with the `*-original` cases

diffusers or transformers makes each network and saves it as it saves any; this package converts
the saved folder and computes the same. Each side is a process of its own, so that one is in memory
at a time.

`video-v2` and `video-v3` are diffusers' video UNet as it is, which normalises whole clips in the
motion modules; the `*-frame` cases are the same with those norms changed here to single frames, as
AnimateDiff trained them. The `*-original` cases run AnimateDiff's own UNet and configs (v1, v2 and
v3), from FOLDER, a clone of github.com/guoyww/AnimateDiff; its code needs `pip install einops`, and
`benchmarks/animatediff.py` says how it runs beside today's diffusers.

The table gives, relative to the largest magnitude of torch's fp32 output:

    worst, mean   the difference of our fp32 output
    bf16          the mean difference of our bf16 output over that of torch's own bf16 output

and the seconds of one call (after compilation) and the peak memory of each side's process. A case
passes with `worst` within 1e-4 and `bf16` within 1.2; the exit code is 1 where one does not.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import animatediff
import cases

from mv2_jax import compiler
from mv2_jax.convert.beside import difference, randomise
from mv2_jax.convert.beside.case import Case
from mv2_jax.errors import InputError

BOUND, BOUND_BF16 = 1e-4, 1.2
HEADER = ("case", "millions", "worst", "mean", "bf16", "torch s", "jax s", "torch GB", "jax GB", "")


def main() -> int:
    """Runs the cases of the command line, prints the table, and says whether all passed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = [*cases.CASES, *cases.ORIGINALS]
    parser.add_argument("names", nargs="*", metavar="CASE", help=", ".join(known))
    parser.add_argument("--small", action="store_true", help="narrow networks, small planes")
    parser.add_argument("--no-bf16", action="store_true", help="fp32 only")
    parser.add_argument(
        "--animatediff",
        type=Path,
        metavar="FOLDER",
        help="a clone of github.com/guoyww/AnimateDiff, for the cases that run its own code",
    )
    parser.add_argument("--work", type=Path, help="keep the networks and outputs in this folder")
    parser.add_argument("--side", choices=("torch", "jax"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in args.names:
        if name not in known:
            parser.error(f"unknown case {name!r}; known are {', '.join(known)}")
        if name in cases.ORIGINALS and args.animatediff is None:
            parser.error(f"{name} runs AnimateDiff's own code: --animatediff FOLDER says where")
    try:
        if args.animatediff is not None:
            animatediff.check(args.animatediff)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if args.side:
        case = made(args.names[0], args.small, args.animatediff)
        one_side(args.side, case, args.work, not args.no_bf16)
        return 0
    names = args.names or known
    if not args.names and args.animatediff is None:
        names = [*cases.CASES]
        print(f"without --animatediff, not run: {', '.join(cases.ORIGINALS)}", file=sys.stderr)
    rows, passed = [HEADER], True
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            folder = (args.work or Path(scratch)) / name
            row, good = compare(name, folder, args.small, not args.no_bf16, args.animatediff)
            rows.append(row)
            passed &= good
            print("  ".join(row), file=sys.stderr, flush=True)
            if args.work is None:
                shutil.rmtree(folder)  # SDXL's alone is 10 GB
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    for row in rows:
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths)) + " |")
        if row is HEADER:
            print("|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return 0 if passed else 1


def made(name: str, small: bool, checkout: Path | None) -> Case:
    """The case of this name; `checkout` is AnimateDiff's, for those that run its code."""
    if name in cases.ORIGINALS:
        return cases.ORIGINALS[name](small, checkout)
    return cases.CASES[name](small)


def compare(
    name: str, folder: Path, small: bool, half: bool, checkout: Path | None
) -> tuple[tuple[str, ...], bool]:
    """One row of the table, and whether the case passed."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--small"] * small + ["--no-bf16"] * (not half)
    flags += ["--animatediff", str(checkout)] * (checkout is not None)
    for side in ("torch", "jax"):
        command = [sys.executable, __file__, name, "--side", side, "--work", str(folder), *flags]
        subprocess.run(command, check=True)
    told = {side: json.loads((folder / f"{side}.json").read_text()) for side in ("torch", "jax")}
    theirs, ours = (load(folder, side, "fp32") for side in ("torch", "jax"))
    worst, mean = difference(ours, theirs)
    good, ratio = worst <= BOUND, ""
    if half:
        own = difference(load(folder, "torch", "bf16"), theirs)[1]
        share = difference(load(folder, "jax", "bf16"), theirs)[1] / own
        good, ratio = good and share <= BOUND_BF16, f"{share:.2f}"
    cost = [f"{told[side][what]:.1f}" for what in ("seconds", "memory") for side in told]
    figures = (f"{told['torch']['millions']:.0f}", f"{worst:.1e}", f"{mean:.1e}", ratio)
    return (name, *figures, *cost, "" if good else "FAILED"), good


def load(folder: Path, side: str, kind: str) -> list[np.ndarray]:
    """The outputs that a side left behind."""
    with np.load(folder / f"{side}-{kind}.npz") as file:
        return [file[name] for name in sorted(file)]


def one_side(side: str, case: Case, folder: Path, half: bool) -> None:
    """Computes a side's outputs and leaves them, and what they cost, in the folder."""
    run = {"torch": torch_side, "jax": jax_side}[side]
    told: dict[str, float] = {}
    for kind, outputs in run(case, folder, half, told):
        named = {f"{i:03d}": array.astype(np.float32) for i, array in enumerate(outputs)}
        np.savez(folder / f"{side}-{kind}.npz", **named)
    # Kilobytes on Linux.
    told["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (folder / f"{side}.json").write_text(json.dumps(told))


def torch_side(case: Case, folder: Path, half: bool, told: dict[str, float]):
    """Makes the network, saves it, yields its outputs: ("fp32" or "bf16", arrays)."""
    import torch

    module = randomise(case.torch())
    case.save(module, folder)
    told["millions"] = sum(p.numel() for p in module.parameters()) / 1e6
    for kind in ("fp32", "bf16")[: 1 + half]:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
        given = {name: torch.from_numpy(x) for name, x in case.inputs().items()}
        given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in given.items()}
        with torch.no_grad():
            module = module.to(dtype)
            begin = time.perf_counter()
            outputs = case.theirs(module, given)
        told.setdefault("seconds", time.perf_counter() - begin)
        yield kind, [output.float().numpy() for output in outputs]


def jax_side(case: Case, folder: Path, half: bool, told: dict[str, float]):
    """Converts the saved network, yields its outputs: ("fp32" or "bf16", arrays)."""
    import jax
    import jax.numpy as jnp

    given = case.inputs()
    params = case.convert(folder)
    for kind in ("fp32", "bf16")[: 1 + half]:
        dtype = {"fp32": jnp.float32, "bf16": jnp.bfloat16}[kind]
        if kind == "bf16":
            params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)

        def apply(params, given, dtype=dtype):
            return case.ours(dtype, params, given)

        run = jax.jit(apply).lower(params, given).compile(compiler_options=compiler.options(params))
        begin = time.perf_counter()
        outputs = jax.block_until_ready(run(params, given))
        told.setdefault("seconds", time.perf_counter() - begin)
        yield kind, [np.asarray(output, np.float32) for output in outputs]


if __name__ == "__main__":
    sys.exit(main())
