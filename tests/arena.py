"""Arenas for tests: folders of small videos, and raters who are simulated."""

import json

import numpy as np

from mv2_jax.infer import media
from mv2_jax.infer.arena import build, intervals


def folder(path, prompts, level, *, sidecars=True, frames=6):
    """A folder with a video a prompt, of one grey level that tells whose it is."""
    path.mkdir(parents=True)
    for seed, prompt in enumerate(prompts):
        name = f"{seed}" if sidecars else prompt.replace(" ", "_")
        clip = np.full((frames, 32, 48, 3), level, np.uint8)
        media.write_video(path / f"{name}.mp4", clip, 8, {"comment": f"made by {path.name}"})
        if sidecars:
            said = json.dumps({"prompt": prompt, "seed": seed})
            (path / f"{name}.json").write_text(said)
    return path


PROMPTS = ["a red ball bouncing", "a blue cube in the snow", "a green ring rising"]


def arena(path, *, overlap=10, gold=1, levels=(40, 200)):
    """An arena of as many systems as levels, on `PROMPTS`."""
    folders = [folder(path / f"system{n}", PROMPTS, level) for n, level in enumerate(levels)]
    return build.make(folders, path / "arena", overlap, gold)


PAIRS = np.array([[0, 1], [0, 2], [1, 2]])


def simulated(rng, raters, prompts, strengths, log_nu, of_rater=0.0, of_prompt=0.0, share=1.0):
    """Votes of raters who see a share of all comparisons of three systems.

    of_rater, of_prompt: standard deviations of what a rater or a prompt adds to every strength.
    """
    shape = (raters, prompts, len(PAIRS))
    rater, prompt, pair = np.indices(shape)[:, rng.random(shape) < share]
    to_rater = rng.normal(0, of_rater, (raters, 3))
    to_prompt = rng.normal(0, of_prompt, (prompts, 3))
    felt = strengths + to_rater[rater] + to_prompt[prompt]
    rows = np.arange(len(pair))
    gap = felt[rows, PAIRS[pair, 0]] - felt[rows, PAIRS[pair, 1]]
    logits = np.stack([gap / 2, np.full_like(gap, log_nu), -gap / 2], axis=1)
    outcome = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return intervals.Votes(rater, prompt, pair, outcome, np.zeros_like(rater))


def expected(strengths, log_nu, of_rater=0.0, of_prompt=0.0):
    """Shares [pairs, 3] of outcomes over all raters and prompts, by Gauss-Hermite quadrature."""
    at, weight = np.polynomial.hermite_e.hermegauss(60)
    spread = np.sqrt(2 * (of_rater**2 + of_prompt**2))
    gap = (strengths[PAIRS[:, 0]] - strengths[PAIRS[:, 1]])[:, None] + spread * at
    logits = np.stack([gap / 2, np.full_like(gap, log_nu), -gap / 2], axis=-1)
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return np.einsum("g,pgk->pk", weight / weight.sum(), shares)
