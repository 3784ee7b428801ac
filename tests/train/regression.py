"""A task of seconds for the loop's tests: linear regression with fresh data in every step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.config import ScheduleConfig
from mv2_jax.train.phase import phase
from mv2_jax.train.task import Task


def batches(seed: int, start: int):
    step = start
    while True:
        x = jax.random.normal(jax.random.fold_in(jax.random.key(seed), step), (8, 4))
        yield {"x": x, "y": x @ jnp.arange(1.0, 5.0)[:, None] + 0.5}
        step += 1


def loss(params, frozen, batch, key):
    layer = params["layer"]
    noise = 0.01 * jax.random.normal(key, ())
    y = batch["x"] @ (layer["kernel"] + noise) + layer["bias"][None] + frozen["offset"]
    error = jnp.mean(jnp.square(y - batch["y"]))
    return error, {"bias": layer["bias"].mean()}


def task(**changes) -> Task:
    parts = {
        "init": lambda key: {
            "layer": {"kernel": 0.1 * jax.random.normal(key, (4, 1)), "bias": jnp.zeros(1)}
        },
        "frozen": {"offset": jnp.zeros(())},
        "loss": loss,
        "batches": batches,
        "components": lambda params: {"spatial": params},
        "configs": lambda params: {"spatial": ScheduleConfig()},
        "sample": lambda params, frozen, key: np.zeros((4, 6, 3), np.uint8),
    }
    return Task(**{**parts, **changes})


def config(**settings):
    base = {
        "name": "test/regression",
        "steps": 12,
        "batch": 8,
        "log_every": 4,
        "optim": {"lr": 0.3, "warmup": 2},
    }
    return phase("regression", **{**base, **settings})
