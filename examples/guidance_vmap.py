"""`vmap` over guidance scales: one compiled program, one picture a scale, all from one noise."""

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import bundle, cascade
from mv2_jax.diffusion import guidance, keys
from mv2_jax.infer import media
from mv2_jax.stages import t2i

PROMPT = ["a golden star rising at sunset"]


def main(four, scales=(1.0, 2.0, 4.0, 8.0), steps=None):
    params, cfg = four.parameters("t2i"), four.picture
    inputs = dict(zip(("ids", "negative"), four.ids(PROMPT)))

    def draw(scale):
        key = keys.seeds([7])
        return t2i.sample(params, cfg, inputs, key, guidance.make(scale), steps=steps)[0, 0]

    latents = jax.jit(jax.vmap(draw))(jnp.asarray(scales))
    return np.concatenate(list(media.to_uint8(four.decode_picture(latents))), axis=1)


if __name__ == "__main__":
    media.write_image("guidance_vmap.png", main(cascade.load(bundle.read())))
