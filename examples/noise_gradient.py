"""The gradient of a score of the video (is the thing rising?) with respect to its first noise."""

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import bundle, cascade
from mv2_jax.diffusion import guidance, keys
from mv2_jax.infer import media
from mv2_jax.stages import i2v, latents, video
from mv2_jax.toybox import evaluate, judge, world

PROMPT, SEED = ["a red ball rising over a meadow"], keys.seeds([7])


def main(four, steps=4, climbs=5, rate=0.05):
    params, cfg, jury = four.parameters("i2v"), four.keyframes, evaluate.load()
    picture = four.t2i(PROMPT, keys=SEED)
    reference = four.encode(latents.resize(picture, cfg.stage.size))
    given = video.condition(params, *four.ids(PROMPT), picture, 1.0, 1.0, reference, cfg=cfg)
    state = i2v.start(SEED, reference, 1.0, cfg=cfg, steps=steps)
    scales, chain = guidance.make(4.0, 1.5), {"cfg": cfg, "steps": steps}

    def score(noise):
        clip = four.decode(i2v.advance(params, given, scales, state._replace(x=noise), **chain).x)
        seen = judge.Judge(jury.cfg).apply({"params": jury.params}, judge.prepare(clip, jury.cfg))
        return jax.nn.log_softmax(seen["motion"])[0, world.RISING], clip

    climb, noise, scores = jax.jit(jax.value_and_grad(score, has_aux=True)), state.x, []
    for _ in range(climbs):
        (value, clip), slope = climb(noise)
        scores.append(float(value))
        noise = noise + rate * slope / jnp.sqrt(jnp.mean(slope**2))
    return np.concatenate(list(media.to_uint8(clip[0])), axis=1), scores


if __name__ == "__main__":
    strip, scores = main(cascade.load(bundle.read()))
    print("log-probability of rising, climb by climb:", scores)
    media.write_image("noise_gradient.png", strip)
