"""The judge's own examination: how often it is right on fresh true renders, and how often it says
"none" to noise, blends and averages.

    python -m mv2_jax.toybox.examine [RUN_WEIGHTS] [--ship] [--count N]

examines the judge that ships, or the one in a finished phase's weights folder, and with --ship
stores that one in the package together with its figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import config, params
from mv2_jax.diffusion import keys as named
from mv2_jax.toybox import evaluate
from mv2_jax.toybox.evaluate import Jury, Rate
from mv2_jax.toybox.judge import KINDS, NONE
from mv2_jax.toybox.renderer import frame_times, render_batch
from mv2_jax.toybox.world import sample_world

_SEED = 20401  # no training run uses it: those fold names and steps into their keys
_AT_ONCE = 16


def clips(count: int, size: int, frames: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """True renders of any words, withheld or not, in parts: uint8 videos and words [B, 4]."""
    key = named.fold(named.seed(_SEED), seed)

    @jax.jit
    def draw(part):
        keys = named.split(named.fold(key, part), _AT_ONCE)
        worlds = jax.vmap(sample_world)(keys)
        video = render_batch(worlds, frame_times(frames), (size, size))
        words = jnp.stack(worlds[:4], axis=-1)
        return jnp.round((video + 1) * 127.5).astype(jnp.uint8), words

    for part in range(-(-count // _AT_ONCE)):
        video, words = jax.device_get(draw(part))
        yield video, words


def on_true(jury: Jury, count: int, size: int, frames: int = 8, seed: int = 0) -> dict[str, Rate]:
    """Rates of right verdicts by kind, and of all four, on `count` (in sixteens) true renders."""
    hits: dict[str, list[np.ndarray]] = {}
    for video, words in clips(count, size, frames, seed):
        for kind, found in evaluate.right(evaluate.judge(jury, video), words).items():
            hits.setdefault(kind, []).append(found)
    joined = {kind: np.concatenate(found) for kind, found in hits.items()}
    return {kind: evaluate.wilson(int(found.sum()), len(found)) for kind, found in joined.items()}


def damaged(video: np.ndarray, words: np.ndarray, rng) -> dict[str, np.ndarray]:
    """What is nothing any more, made of true clips [B, T, H, W, 3] in [-1, 1]."""
    every = np.arange(len(video))
    partner = every.copy()
    for moved in (np.roll(every, shift) for shift in range(1, len(every))):
        partner = np.where((partner == every) & (words != words[moved]).all(1), moved, partner)
    apart = partner != every
    turns = [np.roll(video, int(shift), axis=0) for shift in rng.permutation(len(every))[:4]]
    return {
        "noise": rng.normal(0, 0.5, video.shape).clip(-1, 1).astype(np.float32),
        "blends": (0.5 * video + 0.5 * video[partner])[apart],  # of clips that share no word
        "averages": np.mean(turns, axis=0),
    }


def on_damaged(jury: Jury, count: int, size: int, seed: int = 1) -> dict[str, dict[str, Rate]]:
    """By sort of damage and kind, how often the verdict is "none"."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for video, words in clips(count, size, 8, seed):
        for sort, spoilt in damaged(video.astype(np.float32) / 127.5 - 1, words, rng).items():
            verdicts = evaluate.judge(jury, spoilt)
            for kind in KINDS:
                said = verdicts[kind].index == NONE[kind]
                found.setdefault(sort, {}).setdefault(kind, []).append(said)
    rates: dict[str, dict[str, Rate]] = {}
    for sort, kinds in found.items():
        joined = {kind: np.concatenate(said) for kind, said in kinds.items()}
        rates[sort] = {k: evaluate.wilson(int(said.sum()), len(said)) for k, said in joined.items()}
    return rates


def examine(jury: Jury, count: int = 800) -> dict[str, dict[str, str]]:
    """All figures, as text, printed as they come: {"true 256": {"thing": "99.9% (...)"}}."""
    figures = {}

    def add(name: str, rates: dict[str, Rate]) -> None:
        figures[name] = {kind: str(rate) for kind, rate in rates.items()}
        for kind, text in figures[name].items():
            print(f"{name:18} {kind:8} {text}", flush=True)

    for size in (256, 192):
        add(f"true {size}", on_true(jury, count, size, seed=size))
    for sort, rates in on_damaged(jury, count // 4, 192).items():
        add(f"none to {sort}", rates)
    return figures


def from_phase(folder: Path) -> tuple[Jury, dict]:
    """The judge in a finished phase's weights folder, and the phase's index."""
    index = json.loads((folder / "phase.json").read_text())
    entry = index["components"]["judge"]
    weights = params.cast(params.load(folder / entry["file"]), np.float32)
    return Jury(weights, config.from_dict(entry["config"])), index


def main() -> None:
    """The command of this module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="a finished phase's weights")
    parser.add_argument("--ship", action="store_true", help="store it in the package")
    parser.add_argument("--count", type=int, default=800)
    args = parser.parse_args()
    jury, index = from_phase(args.folder) if args.folder else (evaluate.load(), {})
    figures = examine(jury, args.count)
    if args.ship and index:
        record = {
            "config": config.to_dict(jury.cfg),
            "licence": "Apache-2.0",
            "source": "trained by `mv2 train toybox/judge` on true renders of the toybox",
            "training": {name: index[name] for name in ("phase", "steps", "minutes", "tflop")},
            "figures": figures,
        }
        evaluate.WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
        params.save(evaluate.WEIGHTS, params.cast(jury.params, jnp.float16), record)


if __name__ == "__main__":
    main()
