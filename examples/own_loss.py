"""A loss of one's own: Charbonnier's, square near 0 and straight beyond, less noisy steps oftener.
`PYTHONPATH=examples mv2 train examples/own_loss.py` trains the smoke recipe's T2I with it, on
networks of nothing. `--set loss.shape.sampling=own_loss:squared` takes its timesteps alone."""

from dataclasses import dataclass

import jax.numpy as jnp
from ml_collections import ConfigDict

from mv2_jax.configs import smoke
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import losses
from mv2_jax.train.phase import recipe


def squared(keys, cfg, process):  # a sampling: positions [B] from keys [B], for LossConfig too
    return named.uniform(keys) ** 2


@dataclass(frozen=True)
class Charbonnier:
    width: float = 0.1

    def __call__(self, model, x0, keys, process, mask=None):
        point = process.at(squared(named.fold(keys, "timestep"), self, process))
        eps = named.normal(named.fold(keys, "noise"), x0.shape[1:])
        wanted, output = losses.asked(model, x0, eps, point, process)
        error = jnp.sqrt((output - wanted) ** 2 + self.width**2) - self.width
        loss = losses.per_sample(error, mask).mean()
        return loss, {"charbonnier": loss}


def get_config():
    phases = {name: smoke.get_config().phases[name] for name in ("vae", "t2i")}
    phases["t2i"].loss.shape = ConfigDict({"class": "own_loss:Charbonnier", "width": 0.2})
    return recipe(**phases)
