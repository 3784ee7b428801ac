"""A sampler of one's own: DDIM that looks one step back (two-step Adams-Bashforth on the noise,
the second order of PLMS, arXiv 2202.09778). It writes what it and DDIM make of the same noise.
Commands take it too: `PYTHONPATH=examples mv2 generate --t2i-sampler own_sampler:plms2 ...`."""

import jax.numpy as jnp
import numpy as np

from mv2_jax import bundle, cascade
from mv2_jax.diffusion import keys, prediction, process, samplers, schedules
from mv2_jax.infer import media

PROMPT = ["a red ball bouncing over a meadow"]


def plms2():
    def init(x):
        return jnp.zeros_like(x), jnp.zeros((), bool)  # the last step's noise; was there one?

    def step(x, x0, now, then, memory, noise):
        last, seen = memory
        eps = prediction.eps_of(x, x0, now.alpha, now.sigma)
        ahead = jnp.where(seen, 1.5 * eps - 0.5 * last, eps)
        x0 = jnp.where(seen, prediction.to_x0("eps", ahead, x, now.alpha, now.sigma), x0)
        return prediction.noised(x0, ahead, then.alpha, then.sigma), (eps, jnp.ones((), bool))

    # DDIM's points over a discrete schedule; any other process has its own.
    return samplers.Sampler(process.grids(schedules.ddim_grid), init, step)


def main(four, steps=10):
    made = [
        four.with_stage("t2i", sampler=name).t2i(PROMPT, keys=keys.seeds([7]), steps=steps)[0]
        for name in ("ddim", "own_sampler:plms2")
    ]
    return np.concatenate([media.to_uint8(picture) for picture in made], axis=1)


if __name__ == "__main__":
    media.write_image("own_sampler.png", main(cascade.load(bundle.read())))
