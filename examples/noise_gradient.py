"""The gradient of a score of the video (is the thing rising?) with respect to its first noise."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import bundle, cascade
from mv2_jax.diffusion import keys
from mv2_jax.infer import media
from mv2_jax.stages import chain
from mv2_jax.toybox import evaluate, judge, world

PROMPT, SEED = ["a red ball rising over a meadow"], keys.seeds([7])


def main(four, steps=4, climbs=5, rate=0.05):
    jury, picture = evaluate.load(), four.t2i(PROMPT, keys=SEED)
    begun = four.chain("i2v", PROMPT, SEED, {"steps": steps}, picture)
    plain = replace(begun, run=chain.plainly)  # traced as a whole

    def score(noise):
        state = begun.state._replace(x=noise)
        clip = four.decode(replace(plain, state=state).end(at_once=None).x)
        seen = judge.Judge(jury.cfg).apply({"params": jury.params}, judge.prepare(clip, jury.cfg))
        return jax.nn.log_softmax(seen["motion"])[0, world.RISING], clip

    climb, noise, scores = jax.jit(jax.value_and_grad(score, has_aux=True)), begun.state.x, []
    for _ in range(climbs):
        (value, clip), slope = climb(noise)
        scores.append(float(value))
        noise = noise + rate * slope / jnp.sqrt(jnp.mean(slope**2))
    return np.concatenate(list(media.to_uint8(clip[0])), axis=1), scores


if __name__ == "__main__":
    strip, scores = main(cascade.load(bundle.read()))
    print("log-probability of rising, climb by climb:", scores)
    media.write_image("noise_gradient.png", strip)
