"""A condition of one's own: how bright the picture is, as more tokens for cross-attention."""

from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from mv2_jax import bundle, cascade
from mv2_jax.diffusion import keys
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.infer import media
from mv2_jax.stages import stage
from mv2_jax.stages.conditions import Usual
from mv2_jax.toybox import renderer, world

PROMPT, LEVELS = "a red ball bouncing", (-0.6, -0.15, 0.3)


@dataclass(frozen=True)
class Brightness(Usual):
    """The mean [B] of the pixels, -1 to 1, as tokens that join the prompt's. Nothing is zeros."""

    width: int = 128
    tokens: int = 4
    name = "brightness"
    needs = ("brightness",)

    def blank(self, cfg, batch):
        return {"brightness": jnp.zeros(batch)}

    def init(self, cfg, key, x, t, context, held):
        return {"brightness": self.layer.init(key, jnp.zeros((1, 4)))["params"]}

    def encode(self, params, cfg, inputs):
        half_turns = jnp.outer((jnp.asarray(inputs["brightness"]) + 1) / 2, jnp.arange(4))
        tokens = self.layer.apply({"params": params["brightness"]}, jnp.cos(jnp.pi * half_turns))
        tokens = tokens.reshape(-1, self.tokens, self.width)
        return tokens, jnp.zeros_like(tokens)

    def feed(self, params, cfg, conditioning, x, t, context):
        return context.replace(text=jnp.concatenate([context.text, conditioning], axis=1))

    @property
    def layer(self):
        return nn.Dense(self.tokens * self.width)


def main(four, steps=80, batch=8, rate=0.05, size=(192, 192)):
    """Trains its layer over frozen networks; a picture a level, of one prompt and seed."""
    own = Brightness(four.picture.condition("text").first.width)
    four = four.with_stage("t2i", conditions=("text", own), size=size)
    cfg, (ids, empty) = four.picture, four.ids([PROMPT] * batch)
    held = {name: four.params[four.component("t2i", name)] for name in ("text_encoder", "spatial")}
    # Red balls in scenes of every kind; it is the noisiest steps that decide how bright they are.
    worlds = jax.vmap(lambda key: world.sample_world(key, 0, 0, None, 4))(keys.seeds(range(48)))
    pixels = renderer.render_batch(worlds, jnp.zeros(1), size)[:, 0]
    latents, means = four.encode(pixels), pixels.mean((1, 2, 3))
    noisy = LossConfig(sampling="logit_normal", location=1.5)

    @jax.jit
    def step(mine, key, rate):
        some = jax.random.choice(key, len(means), (batch,))
        given = {"latent": latents[some], "ids": ids, "null_ids": empty[0], own.name: means[some]}
        slope = jax.grad(lambda m: stage.loss({**held, **m}, cfg, given, key, shape=noisy)[0])
        return jax.tree.map(lambda w, g: w - rate * jnp.sign(g), mine, slope(mine))

    mine = own.init(cfg, keys.seed(0), None, None, None, {})
    for i in range(steps):
        mine = step(mine, keys.seed(i), rate * (1 - i / steps))
    trained, count = replace(four, params={**four.params, **mine}), len(LEVELS)
    seeds = keys.seeds([7] * count)
    return trained.t2i([PROMPT] * count, keys=seeds, more={"brightness": LEVELS})


if __name__ == "__main__":
    pictures = main(cascade.load(bundle.read()))
    for level, picture in zip(LEVELS, pictures):
        print(f"asked for a mean of {level:+.2f}, got {picture.mean():+.2f}")
    media.write_image("own_condition.png", media.contact_sheet(media.to_uint8(pictures)))
