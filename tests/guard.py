"""What the shipped cascade makes, kept as numbers: `python tests/guard.py --help`.

Whoever changes how the stages are put together changes none of these. Ten seeds are made from two
checkouts and compared whole (three minutes each on two busy cores; `guard.py` is the newer one's,
which runs over both):

    PYTHONPATH=OLD python tests/guard.py keep old.npz
    PYTHONPATH=NEW python tests/guard.py compare old.npz

From c0d1bbe, before stages were made of values, to the code of 2026-11-28: latents are at most
1.9e-6 of the largest apart, and at most 3.3e-5 of a stage's pixel values differ, by one grey level.
`tests/test_guard.py` compares a few numbers of two seeds, which are stored beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

STORED = Path(__file__).parent / "data" / "guard.npz"
# 1e-5 on the machine that made the numbers; other processors round otherwise.
LATENTS, PIXELS = 1e-5, 1e-3
PROMPTS = (
    "a red ball bouncing over a meadow",
    "a golden star spinning at night",
    "a blue cube moving left in the snow",
)
# The numbers that the shipped weights name, at a length that a test has time for.
SHORT = {"t2i": {"steps": 4}, "i2v": {"steps": 3}, "v2v": {"steps": 6, "strength": 0.5}}
NUMBERS = {
    "t2i": {"steps": 20, "guidance": 4.0, "guidance_high": 8.0},
    "i2v": {"steps": 20, "guidance": 4.0, "image_guidance": 1.5, "noise_prior": 1.0},
    "v2v": {"steps": 20, "guidance": 1.5, "image_guidance": 1.0, "strength": 0.3},
}


def watched(four):
    """The cascade, and a list that every stage's last latents are added to."""
    from mv2_jax.programs import Programs

    class Watched(Programs):
        latents: list[np.ndarray] = []  # noqa: RUF012

        def __call__(self, stage, function, *args, **rest):
            if getattr(function, "__name__", "") == "_decode":
                self.latents.append(np.asarray(args[1]))
            return super().__call__(stage, function, *args, **rest)

    programs = Watched()
    programs.latents = []
    return dataclasses.replace(four, programs=programs), programs.latents


def make(four, seed: int, short: bool) -> dict[str, np.ndarray]:
    """Latents [1, ...] fp32 and pixels [1, ...] uint8 of the three stages, by name."""
    from mv2_jax.diffusion import keys

    four, latents = watched(four)
    numbers = {stage: {**NUMBERS[stage], **(SHORT[stage] if short else {})} for stage in NUMBERS}
    common = {"keys": keys.seeds([seed]), "negative": "blurry" if seed % 2 else ""}
    prompt = [PROMPTS[seed % len(PROMPTS)]]
    picture = four.t2i(prompt, **common, **numbers["t2i"])
    keyframes = four.i2v(prompt, picture, **common, **numbers["i2v"])
    refined = four.v2v(prompt, picture, keyframes, **common, **numbers["v2v"])
    made = {}
    pixels = (picture, keyframes, refined)
    for stage, z, x in zip(NUMBERS, latents, pixels, strict=True):
        made[f"{seed} {stage} latents"] = z
        made[f"{seed} {stage} pixels"] = np.uint8(np.round(np.asarray(x) * 127.5 + 127.5))
    return made


def few(made: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A few numbers of each array, spread over it."""
    return {
        name: x.ravel()[
            np.linspace(0, x.size - 1, 1500 if x.dtype == np.uint8 else 150).astype(int)
        ]
        for name, x in made.items()
    }


def apart(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> dict[str, float]:
    """By name: how far latents are apart, over the largest; the share of pixel values that differ.

    A pixel value that differs by more than one grey level counts as infinite.
    """
    found = {}
    for name, then in old.items():
        now = new[name].reshape(then.shape)
        if then.dtype == np.uint8:
            off = np.abs(now.astype(int) - then)
            found[name] = float("inf") if off.max() > 1 else float(off.mean())
        else:
            found[name] = float(np.abs(now - then).max() / np.abs(then).max())
    return found


def load():
    """The shipped cascade."""
    from mv2_jax import bundle, cascade

    return cascade.load(bundle.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("keep", "compare", "store"))
    parser.add_argument("file", nargs="?", help="a .npz; `store` writes the tests' own")
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    four = load()
    if args.what == "store":
        made = [few(make(four, seed, True)) for seed in (0, 1)]
        np.savez_compressed(STORED, **made[0], **made[1])
        return
    made = {}
    for seed in range(args.seeds):
        made.update(make(four, seed, False))
        print(f"seed {seed} made", flush=True)
    if args.what == "keep":
        np.savez(args.file, **made)
        return
    with np.load(args.file) as kept:
        found = apart({name: kept[name] for name in kept if name in made}, made)
    for name, value in found.items():
        print(f"{name}: {value:.2e}")
    for kind, bound in (("latents", LATENTS), ("pixels", PIXELS)):
        worst = max(value for name, value in found.items() if name.endswith(kind))
        print(f"worst {kind}: {worst:.2e}; the bound is {bound:g}")
        if worst > bound:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
