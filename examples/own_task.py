"""A task of one's own: the interpolator of own_interpolator.py, trained on any data source.

    PYTHONPATH=examples mv2 train examples/own_task.py
    PYTHONPATH=examples mv2 interpolate in.mp4 -o out.mp4 \\
        --vfi runs/own_task/fade/weights/vfi_fade.safetensors
"""

import itertools

import jax.numpy as jnp
import own_interpolator

from mv2_jax.train import source as sources
from mv2_jax.train.phase import phase, recipe
from mv2_jax.train.task import Task

CFG = own_interpolator.FadeConfig()


def make(cfg, begin, folder):
    """What `mv2_jax.train.loop` is given: `cfg` are the phase's settings."""
    source = sources.of(cfg)

    def batches(seed, start):
        for step in itertools.count(start):
            yield source.triplets(source.pick(seed, step, cfg.batch, cfg.data.count))

    def loss(params, frozen, batch, key):
        frames = (batch[name] / 127.5 - 1 for name in ("first", "second", "target"))
        first, second, target = frames
        times = batch["time"][:, None]
        made = own_interpolator.between(params, CFG, first, second, times)[:, 0]
        error = jnp.mean((made - target) ** 2)
        return error, {"psnr": 10 * jnp.log10(4 / error)}

    return Task(
        init=lambda key: own_interpolator.weights()[0],
        frozen={},
        loss=loss,
        batches=batches,
        components=lambda params: {"vfi_fade": params},
        configs=lambda params: {"vfi_fade": CFG},
    )


def get_config():
    """The recipe: one phase of this task."""
    data = {"source": "toybox", "count": 4096, "size": 64, "side": 32, "gap": (0.1, 0.3)}
    return recipe(fade=phase("own_task:make", steps=200, batch=8, data=data, optim={"lr": 0.02}))
