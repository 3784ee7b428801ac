"""What it buys to make a frame several times: other views, other networks, and cycle checks.

    python benchmarks/vfi_gains.py CLIP --vfi rife,rife40.safetensors --times 2,3 --gaps 8

Candidates for a frame (of each network, of the pair as it is and turned upside down) are averaged:
alike, or each pixel with weights that fall with the candidate's error around a cycle, averaged over
a few pixels. Two cycles are tried. "own": the frame half-way between the network's own frames a
little earlier and a little later, against its frame. "given": a given frame, made again from the
network's frames before and after it, against the truth, at both ends of the gap; this needs the
gaps beside. Printed are PSNR in dB, and how many frames a network makes for one that is shown.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from mv2_jax import params
from mv2_jax.infer import bench_vfi, interpolators, media, metrics
from mv2_jax.stages import interpolators as networks

SIGMA = 4.0  # pixels over which errors are averaged
FLOOR = 1.0  # grey levels that even a perfect cycle is doubted by
VIEWS = (1, -1)  # steps along rows and columns: as it is, and turned upside down

Between = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


class Candidate(NamedTuple):
    """A frame [H, W, 3] in [-1, 1], and its errors around either cycle, grey levels [H, W]."""

    frame: np.ndarray
    own: np.ndarray
    given: np.ndarray


def main() -> int:
    """Prints a table for each of `--times`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clip")
    parser.add_argument("--vfi", default="rife", help="networks, with commas (rife)")
    parser.add_argument("--times", default="2,3", help="keep each Nth frame (2,3)")
    parser.add_argument("--gaps", type=int, help="only so many, evenly spread (all)")
    args = parser.parse_args()
    makers = {name: between(name) for name in args.vfi.split(",")}
    for times in map(int, args.times.split(",")):
        scores: dict[str, list[float]] = {}
        for run in bench_vfi.gaps(args.clip, 3 * times, args.gaps):
            frames = media.to_float(np.stack(run))
            for k in range(times + 1, 2 * times):
                found = candidates(makers, frames[::times], (k - times) / times)
                for name, frame in averages(found, times).items():
                    psnr = metrics.psnr(media.to_uint8(frame), run[k])
                    scores.setdefault(name, []).append(psnr)
        print(f"\n{args.clip}, x{times}: {len(next(iter(scores.values())))} frames predicted")
        for name, psnr in scores.items():
            print(f"{name:44}{np.mean(psnr):8.2f}", flush=True)
    return 0


def between(name: str) -> Between:
    """Two frames [H, W, 3] in [-1, 1] and a time -> the network's frame."""
    stored, cfg = interpolators.load(interpolators.check(name))
    tree = params.cast(stored, np.float32)

    def make(first: np.ndarray, second: np.ndarray, time: float) -> np.ndarray:
        pair = first[None], second[None]
        return np.asarray(networks.between(tree, cfg, *pair, np.float32([[time]])))[0, 0]

    return make


def candidates(
    makers: dict[str, Between], given: list[np.ndarray], time: float
) -> dict[tuple[str, int], Candidate]:
    """What each network and view makes at a time between the middle two of four given frames."""
    turned = {step: [frame[::step, ::step] for frame in given] for step in VIEWS}
    return {
        (name, step): candidate(makers[name], turned[step], step, time)
        for name, step in itertools.product(makers, VIEWS)
    }


def candidate(make: Between, given: list[np.ndarray], step: int, time: float) -> Candidate:
    """One of them, turned back by `step`."""
    before, first, second, after = given
    frame, apart = make(first, second, time), min(time, 1 - time) / 2
    again = make(make(first, second, time - apart), make(first, second, time + apart), 0.5)
    # Made again from frames equally far on either side.
    near = min(time, 1 - time)
    left = make(make(before, first, 1 - near), make(first, second, near), 0.5)
    right = make(make(first, second, 1 - near), make(second, after, near), 0.5)
    errors = grey(again, frame), grey(left, first) + grey(right, second)
    return Candidate(*(x[::step, ::step] for x in (frame, *errors)))


def grey(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far two frames are apart, averaged over colours and a few pixels."""
    return gaussian_filter(127.5 * np.abs(one - other).mean(-1), SIGMA)


def averages(found: dict[tuple[str, int], Candidate], times: int) -> dict[str, np.ndarray]:
    """The frame of each way to join candidates, by the name to print and what it costs."""
    # A given frame is made again once a gap, from frames that are made anyway.
    costs = {"own": 4, "given": times / (times - 1)}
    names = list(dict.fromkeys(name for name, _ in found))
    groups = {f"{name}": [(name, 1)] for name in names}
    groups |= {f"{name}, 2 views": [(name, step) for step in VIEWS] for name in names}
    if len(names) > 1:
        groups["all networks"] = [(name, 1) for name in names]
        groups["all networks, 2 views"] = list(found)
    made = {}
    for label, keys in groups.items():
        frames = np.stack([found[key].frame for key in keys])
        made[f"{label} ({len(keys)})"] = frames.mean(0)
        for cycle, cost in costs.items() if len(keys) > 1 else ():
            errors = np.stack([getattr(found[key], cycle) for key in keys])
            weights = 1 / (errors + FLOOR)[..., None]
            weighed = (weights * frames).sum(0) / weights.sum(0)
            made[f"{label}, {cycle} cycle ({len(keys) * cost:g})"] = weighed
    return made


if __name__ == "__main__":
    sys.exit(main())
