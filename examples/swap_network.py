"""One network swapped by its config: I2V with motion modules of another shape. Fresh ones change
nothing at first, so the other weights go on working, and `mv2 train` could start from here."""

from dataclasses import replace

import jax
import numpy as np

from mv2_jax import bundle, cascade
from mv2_jax.diffusion import keys
from mv2_jax.infer import media
from mv2_jax.stages import stage

PROMPT, SEED = ["a blue cube moving left in the snow"], keys.seeds([7])


def main(four, steps=None):
    unet = four.keyframes.stage.unet
    deeper = replace(unet.motion, layers=2, attentions=2, mid_block=True, norm_scope="clip")
    swapped = four.with_stage("i2v", unet=replace(unet, motion=deeper))
    held = {"spatial": four.params["spatial"]}
    fresh = stage.init(swapped.keyframes, keys.seed(0), held)
    swapped = swapped.with_params(motion_i2v=fresh["motion"])

    picture, rows = four.t2i(PROMPT, keys=SEED, steps=steps), []
    for one in (four, swapped):
        size = sum(leaf.size for leaf in jax.tree.leaves(one.params["motion_i2v"]))
        print(f"motion modules of {size:,} parameters")
        clip = one.i2v(PROMPT, picture, keys=SEED, steps=steps)
        rows.append(np.concatenate(list(media.to_uint8(clip[0])), axis=1))
    return np.concatenate(rows)


if __name__ == "__main__":
    media.write_image("swap_network.png", main(cascade.load(bundle.read())))
