"""A condition of one's own: the thing's size, as one more token for cross-attention to read."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from mv2_jax import bundle, cascade
from mv2_jax.diffusion import guidance, keys, losses
from mv2_jax.infer import media
from mv2_jax.stages import t2i
from mv2_jax.toybox import renderer, world


def main(four, steps=300, batch=8):
    cfg, params, token = four.picture, four.parameters("t2i"), nn.Dense(four.picture.text.width)
    text, nothing = (t2i.encode_text(params, cfg, ids).text for ids in four.ids(["a red ball"]))

    def told(mine, radius):  # [B] -> what the words say, then the token: [B, L + 1, C]
        size = token.apply(mine, 10 * (radius[:, None, None] - 0.43))
        return t2i.Prompt(jnp.concatenate([jnp.repeat(text, len(radius), axis=0), size], axis=1))

    def loss(mine, own):  # of red balls over meadows, one a key
        drawn = jax.vmap(lambda key: world.sample_world(key, 0, 0, 2, 5))(own)
        z = four.encode(renderer.render_batch(drawn, jnp.zeros(1), cfg.stage.size)[:, 0])
        predict = partial(t2i.predict, params, cfg, prompt=told(mine, drawn.radius))
        return losses.diffusion_loss(predict, z, own, cfg.stage.schedule)[0]

    mine, slope = token.init(keys.seed(0), jnp.zeros((1, 1, 1))), jax.jit(jax.grad(loss))
    for own in (keys.per_sample(keys.seed(step), batch) for step in range(steps)):
        mine = jax.tree.map(lambda w, g: w - 3e-3 * jnp.sign(g), mine, slope(mine, own))
    away = t2i.Prompt(jnp.pad(jnp.repeat(nothing, 3, axis=0), ((0, 0), (0, 1), (0, 0))))
    both = guidance.stack(away, told(mine, jnp.array([0.36, 0.43, 0.5])))
    return four.decode(t2i.draw(params, cfg, both, keys.seeds([7] * 3), guidance.make(4.0)))


if __name__ == "__main__":
    pictures = media.to_uint8(main(cascade.load(bundle.read())))
    media.write_image("own_condition.png", media.contact_sheet(pictures))
