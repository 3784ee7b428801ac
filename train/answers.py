"""What a network answers to fixed noise: how far training has moved it, without any data."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import process
from mv2_jax.stages import stage
from mv2_jax.train.task import Params


def to_noise(params: Params, net: stage.Config, words: Any, prompt: str) -> np.ndarray:
    """The output [1, T, h, w, C] of a stage's network, half-way through its process.

    Args:
        params: all of the stage's trees.
        words: the tokenizer; the reference picture is grey.
    """
    inputs = {**stage.blank(net, 1), "ids": words.encode([prompt])}
    inputs |= {"negative": words.encode([""])}
    return np.asarray(_answer(params, inputs, net=net))


@partial(jax.jit, static_argnames="net")
def _answer(params: Params, inputs: dict[str, Any], *, net: stage.Config) -> jax.Array:
    keys = named.per_sample(named.seed(0), 1)
    inputs = {name: jnp.asarray(x) for name, x in inputs.items()}
    never = {each.drop: 0.0 for each in net.conditions}
    conditioning = stage.drop(params, net, inputs, keys, never)
    x = named.normal(named.fold(keys, "noise"), net.latent_shape)
    t = process.of(net.stage.schedule).at(jnp.full(1, 0.5)).t
    return stage.predict_one(params, net, x, t, conditioning)
