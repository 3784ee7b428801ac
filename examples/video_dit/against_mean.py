"""How far a cascade's I2V is from predicting the mean, on worlds that no training has seen.

PYTHONPATH=examples python -m video_dit.against_mean runs/toybox_dit/cascade

Squared errors of the network's target (v), at four noise levels, of: the mean of the targets over
the clips, element by element; the best straight line from the noisy latent; the network.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import bundle, cascade
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import losses
from mv2_jax.diffusion import process as processes
from mv2_jax.stages import stage
from mv2_jax.toybox import captions, split
from mv2_jax.toybox.world import sample_world
from mv2_jax.train.toybox import worlds

LEVELS = (0.125, 0.375, 0.625, 0.875)  # positions in the process, 1 is noise


def main(four, count=64, batch=8, levels=LEVELS):
    """{name: errors [levels]}, the mean's unbiased."""
    cfg, params = four.keyframes, four.parameters("i2v")
    process = processes.of(cfg.stage.schedule)
    words = split.test_tuples("quads", count)
    keys = named.per_sample(named.seed(0), count)

    @jax.jit
    def clips(words, keys):
        drawn = jax.vmap(sample_world)(keys, *words.T)
        return worlds.clips(drawn, cfg.stage.frames, cfg.stage.size)

    @jax.jit
    def errors(params, inputs, z, keys, u):
        conditioning = stage.drop(params, cfg, inputs, keys, {"drop_text": 0.0, "drop_image": 0.0})
        point = process.at(jnp.full(len(z), u))
        eps = named.normal(named.fold(keys, "noise"), z.shape[1:])
        model = partial(stage.predict_one, params, cfg, conditioning=conditioning)
        wanted, output = losses.asked(model, z, eps, point, process)
        x = point.alpha[0] * z + point.sigma[0] * eps
        return x, wanted, jnp.mean((output - wanted) ** 2)

    found = {level: [] for level in levels}
    for start in range(0, count, batch):
        part = slice(start, start + batch)
        pixels = clips(jnp.asarray(words[part]), keys[part])
        z = four.encode(pixels)
        ids, empty = four.ids([captions.canonical(*row) for row in words[part]])
        inputs = {"ids": ids, "negative": empty, "image": pixels[:, 0], "reference": z[:, 0]}
        for level in levels:
            found[level].append(errors(params, inputs, z, keys[part], level))
    made = {"mean": [], "line": [], "network": []}
    for parts in found.values():
        x, wanted = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
        x, wanted = (side - side.mean(0, keepdims=True) for side in (x, wanted))
        slope, unbiased = (x * wanted).sum() / (x**2).sum(), count / (count - 1)
        made["mean"].append(float(unbiased * np.mean(wanted**2)))
        made["line"].append(float(unbiased * np.mean((wanted - slope * x) ** 2)))
        made["network"].append(float(np.mean([part[2] for part in parts])))
    return made


if __name__ == "__main__":
    made = main(cascade.load(bundle.read(sys.argv[1])))
    print("noise    " + "".join(f"{level:8}" for level in LEVELS) + "     all")
    for name, row in made.items():
        print(f"{name:9}" + "".join(f"{error:8.4f}" for error in (*row, np.mean(row))))
    print(f"network / mean: {np.mean(made['network']) / np.mean(made['mean']):.3f}")
