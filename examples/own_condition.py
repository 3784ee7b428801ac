"""A condition of one's own: the thing's size, as one more token for cross-attention to read."""

from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from mv2_jax import bundle, cascade
from mv2_jax.diffusion import keys
from mv2_jax.infer import media
from mv2_jax.stages import stage as stages
from mv2_jax.stages.conditions import Usual
from mv2_jax.toybox import renderer, world


@dataclass(frozen=True)
class Size(Usual):
    """The radius [B] as a token that joins the prompt's. Nothing is a token of zeros."""

    width: int = 128
    name = "size"
    needs = ("size",)

    def blank(self, cfg, batch):
        return {"size": jnp.full((batch,), 0.43)}

    def init(self, cfg, key, x, t, fed, held):
        return {"size": nn.Dense(self.width).init(key, jnp.zeros((1, 1, 1)))["params"]}

    def encode(self, params, cfg, asked):
        radius = 10 * (jnp.asarray(asked["size"])[:, None, None] - 0.43)
        token = nn.Dense(self.width).apply({"params": params["size"]}, radius)
        return token, jnp.zeros_like(token)

    def feed(self, params, cfg, told, x, t, fed):
        return fed.replace(text=jnp.concatenate([fed.text, told], axis=1))


def main(four, steps=300, batch=8):
    size = Size(four.picture.condition("text").first.width)
    four = four.with_stage("t2i", conditions=("text", size))
    cfg, ids = four.picture, four.ids(["a red ball"] * batch)
    held = {name: four.params[four.component("t2i", name)] for name in ("text_encoder", "spatial")}
    null = ids[1][0]

    def loss(mine, own):  # of red balls over meadows, one a key
        drawn = jax.vmap(lambda key: world.sample_world(key, 0, 0, 2, 5))(own)
        z = four.encode(renderer.render_batch(drawn, jnp.zeros(1), cfg.stage.size)[:, 0])
        batch = {"latent": z, "ids": ids[0], "null_ids": null, "size": drawn.radius}
        return stages.loss({**held, **mine}, cfg, batch, own[0])[0]

    mine, slope = size.init(cfg, keys.seed(0), None, None, None, {}), jax.jit(jax.grad(loss))
    for own in (keys.per_sample(keys.seed(step), batch) for step in range(steps)):
        mine = jax.tree.map(lambda w, g: w - 3e-3 * jnp.sign(g), mine, slope(mine, own))
    told = replace(four, params={**four.params, **mine})
    prompts, seeds = ["a red ball"] * 3, keys.seeds([7] * 3)
    return told.t2i(prompts, keys=seeds, more={"size": [0.36, 0.43, 0.5]})


if __name__ == "__main__":
    pictures = media.to_uint8(main(cascade.load(bundle.read())))
    media.write_image("own_condition.png", media.contact_sheet(pictures))
