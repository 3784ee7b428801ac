"""A guidance rule of one's own: only what is new in it (adaptive projected guidance, arXiv
2410.02416), the step away from the unprompted output without its part along the prompted one. The
paper's remedy for burnt colours. `mv2 generate --guidance-rule own_guidance:PROJECTED` takes it."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from mv2_jax import bundle, cascade
from mv2_jax.diffusion import guidance, keys
from mv2_jax.infer import media

PROMPT = ["a red ball bouncing over a meadow"]


@dataclass(frozen=True)
class Projected(guidance.Rule):
    """`along`: how much is kept of the part along the prompted output; 1 is the usual guidance."""

    along: float = 0.0

    def mix(self, outputs, scales):
        full, step = outputs[-1], outputs[-1] - outputs[-2]
        axes = tuple(range(1, full.ndim))
        share = jnp.sum(step * full, axes, keepdims=True) / jnp.sum(full**2, axes, keepdims=True)
        return full + (scales[-1] - 1) * (step - (1 - self.along) * share * full)


PROJECTED = Projected(guidance.TEXT.withheld, guidance.TEXT.scales)
USUAL = Projected(guidance.TEXT.withheld, guidance.TEXT.scales, along=1.0)


def main(four, steps=None, scale=10.0):
    made = []
    for rule in ("text", "own_guidance:USUAL", "own_guidance:PROJECTED"):
        own = four.with_stage("t2i", rule=rule)
        numbers = {"steps": steps, "guidance": scale, "guidance_high": 0.0}
        made.append(media.to_uint8(own.t2i(PROMPT, keys=keys.seeds([7]), **numbers))[0])
    return np.concatenate(made, axis=1)


if __name__ == "__main__":
    media.write_image("own_guidance.png", main(cascade.load(bundle.read())))
