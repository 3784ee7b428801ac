"""How good the toybox's judge is: right about true renders, "wrong" about damaged ones.

    python benchmarks/judging.py                    # the held-out damages, the bars
    python benchmarks/judging.py --tuning           # what the bounds were chosen by

Right is counted by word; a damaged clip counts as caught where the word that the damage takes away
is "wrong", or where any is. Damages, parameters and seeds of the two runs differ; one held-out
damage, the way through the shipped autoencoder and back, is a network's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from mv2_jax import bundle
from mv2_jax.infer import generate
from mv2_jax.toybox import damage, sight
from mv2_jax.toybox.evaluate import wilson

_TUNING, _HELD_OUT = 5_000, 9_000  # seeds


def autoencoded() -> Callable[[damage.Clips, np.random.Generator], np.ndarray]:
    """A damage: through the shipped autoencoder and back."""
    cascade, _ = generate.load(bundle.read(None), None, 1)

    def spoil(c: damage.Clips, rng: np.random.Generator) -> np.ndarray:
        del rng
        frames = [
            np.asarray(cascade.decode(cascade.encode(clip[None] * 2 - 1))[0]) for clip in c.video
        ]
        return np.stack(frames) * 0.5 + 0.5

    return spoil


def report(name: str, seen: sight.Sight, numbers: bool) -> None:
    """A line of right verdicts by kind, and quantiles of every number."""
    cells = (f"{kind} {wilson(int(hit.sum()), len(hit))}" for kind, hit in seen.right.items())
    print(f"{name:24}" + "; ".join(cells), flush=True)
    if numbers:
        for number, values in seen.numbers.items():
            if np.isfinite(values).any():
                quantiles = np.nanquantile(values, [0, 0.01, 0.05, 0.5, 0.95, 0.99, 1])
                print(f"    {number:14}" + " ".join(f"{q:8.4f}" for q in quantiles), flush=True)


def main() -> None:
    """The command of this module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--tuning", action="store_true", help="the sorts that bounds are chosen by")
    parser.add_argument("--count", type=int, default=100, help="true clips, and true pictures")
    parser.add_argument("--damaged", type=int, default=40, help="clips, and pictures, of each sort")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--only", help="sorts, by comma; 'true' is one")
    parser.add_argument("--numbers", action="store_true", help="quantiles of every number too")
    args = parser.parse_args()
    first, sorts = (_TUNING, damage.TUNING) if args.tuning else (_HELD_OUT, damage.HELD_OUT)
    only = args.only.split(",") if args.only else None
    if not args.tuning and (only is None or "autoencoded" in only):
        sorts = {**sorts, "autoencoded": damage.Sort(autoencoded(), "texture", {})}
    sorts = {"true": damage.Sort(lambda c, rng: c.video, "", {}), **sorts}
    size = (args.size, args.size)
    for number, (name, sort) in enumerate(sorts.items()):
        if only and name not in only:
            continue
        count = args.damaged if sort.takes else args.count
        for frames in (1, args.frames) if sort.single else (args.frames,):
            seed = first + 100 * number + frames
            seen = sight.judge(*damage.damaged(sort, count, frames, size, seed))
            report(f"{name}, {frames} frame{'s' if frames > 1 else ''}", seen, args.numbers)
            if sort.takes:
                mine = ~seen.right[sort.takes]
                any_of = np.logical_or.reduce([~hit for hit in seen.right.values()])
                own, any_kind = (wilson(int(hit.sum()), count) for hit in (mine, any_of))
                print(f"    caught: {own} as {sort.takes}, {any_kind} at all", flush=True)


if __name__ == "__main__":
    main()
