"""A process of one's own: alpha and sigma run along a quarter of a circle, and the network outputs
minus v. `PYTHONPATH=examples mv2 train examples/own_process.py` trains the smoke recipe's T2I over
it, on networks of nothing; its weights name it, and its sheets are sampled over it."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mv2_jax.config import to_dict
from mv2_jax.configs import smoke
from mv2_jax.diffusion.points import Point, chained
from mv2_jax.diffusion.prediction import Prediction
from mv2_jax.train.phase import recipe

MINUS_V = Prediction(  # as functions of alpha and sigma: what is asked for, and x0 of an answer
    target=lambda x0, eps, alpha, sigma: sigma * x0 - alpha * eps,
    to_x0=lambda output, x, alpha, sigma: alpha * x + sigma * output,
)


@dataclass(frozen=True)
class Circle:
    scale: float = 1000.0  # of the time that the network is told
    prediction: str = "own_process:MINUS_V"

    def at(self, u):  # training: positions from 0, clean, to 1, noise
        angle = 0.5 * jnp.pi * u
        return Point(self.scale * u, jnp.cos(angle), jnp.sin(angle))

    def grid(self, steps):  # sampling: the points that are visited, from noise
        u = 1.0 - np.arange(steps) / steps
        return chained(self.scale * u, np.cos(0.5 * np.pi * u), np.sin(0.5 * np.pi * u))


def get_config():
    phases = {name: smoke.get_config().phases[name] for name in ("vae", "t2i")}
    stage = replace(smoke.NETWORKS["t2i"], schedule=Circle(), sampler="own_sampler:plms2")
    phases["t2i"].model.t2i = ConfigDict(to_dict(stage))
    return recipe(**phases)
