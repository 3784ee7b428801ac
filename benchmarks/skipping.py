"""What steps that skip work save, and how far their result is from the full one.

    python benchmarks/skipping.py [t2i|i2v|v2v ...] [--weights DIR]

On the shipped toybox, two prompts a batch, for each cache_interval and cache_branch and an interval
of guidance: the process's CPU time of a whole chain, the best of three, as a share of the full
chain's, and the RMS difference of the latents over the full latents' spread.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import numpy as np

from mv2_jax import bundle, cascade
from mv2_jax.diffusion import keys

PROMPTS = ["a red ball bouncing over a meadow", "a golden star spinning at night"]
CACHED = [(2, 0), (2, 1), (2, 2), (3, 0), (3, 2), (5, 2)]
ROWS: list[dict[str, Any]] = [
    {"guidance_high": 0.0},  # the full one: guided at every step
    {"guidance_high": 8.0},
    *({"guidance_high": 0.0, "cache_interval": n, "cache_branch": b} for n, b in CACHED),
]


def timed(chain: Any) -> tuple[np.ndarray, float]:
    """The chain's latents, and the least CPU time of three runs after a first."""
    latents = np.asarray(chain.end().x)
    times = []
    for _ in range(3):
        began = time.process_time()
        jax.block_until_ready(chain.end().x)
        times.append(time.process_time() - began)
    return latents, min(times)


def main() -> None:
    """The command of this module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("stages", nargs="*", default=["t2i", "i2v", "v2v"])
    parser.add_argument("--weights", help="a cascade folder (the one that ships)")
    args = parser.parse_args()
    four, seeds = cascade.load(bundle.read(args.weights)), keys.seeds([0, 1])
    picture = four.t2i(PROMPTS, keys=seeds)
    clip = four.i2v(PROMPTS, picture, keys=seeds)
    given = {"t2i": (), "i2v": (picture,), "v2v": (picture, clip)}
    for stage in args.stages:
        full, whole = None, 1.0
        for row in ROWS:
            latents, cost = timed(four.chain(stage, PROMPTS, seeds, row, *given[stage]))
            if full is None:
                full, whole = latents, cost
            far = np.sqrt(np.mean((latents - full) ** 2)) / full.std()
            said = ", ".join(f"{name} {value:g}" for name, value in row.items())
            print(f"{stage:4} {said:52} {cost:6.2f} s  share {cost / whole:.2f}  far {far:.3f}")


if __name__ == "__main__":
    main()
