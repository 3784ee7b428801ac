"""What T2I's and I2V's networks look at and believe on their way from noise: for `mv2 explain`.

The chains are run as the cascade runs them, with the same noise; at a few points on the way the
network is asked once more, watched (`nn.watch`), with the prompt and without guidance.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.diffusion import guidance as guides
from mv2_jax.diffusion import keys as random
from mv2_jax.diffusion import prediction, process, samplers
from mv2_jax.diffusion.samplers import Point
from mv2_jax.nn import watch
from mv2_jax.stages import chain, i2v, latents, t2i, video
from mv2_jax.text import Tokenizer, emphasis


class Looks(NamedTuple):
    """Of one chain, at a few of its steps (S).

    steps: which; believed: [S, T, H, W, 3] fp32, the clean pictures that the network implies there;
    text: [T, h, w, L], how much each place looked at each token, a mean over layers and steps;
    start: the first latent [T, h, w, C] and, for I2V, its reference's [h, w, C].
    """

    steps: list[int]
    believed: np.ndarray
    text: np.ndarray
    start: np.ndarray
    reference: np.ndarray | None = None


def words(tokenizer: Tokenizer, prompt: str) -> list[tuple[str, slice]]:
    """The prompt's words, each with the places of its tokens in a row of ids; what was cut off is
    left out, and so are marks of emphasis."""
    said = emphasis.plain(prompt).split()
    rows = tokenizer.encode([" ".join(said[:count]) for count in range(len(said) + 1)])
    ends = [int(np.argmax(row == tokenizer.eos_token_id)) for row in rows]
    spans = [slice(before, after) for before, after in itertools.pairwise(ends)]
    return [(word, span) for word, span in zip(said, spans) if span.stop > span.start]


def of_picture(four: Any, prompt: str, seed: int, numbers: Any, negative: str = "") -> Looks:
    """T2I's looks; `numbers` are the stage's (`settings.resolve`)."""
    cfg, params, steps = four.picture, four.parameters("t2i"), int(numbers["steps"])
    both = t2i.condition(params, *four.ids([prompt], negative), cfg=cfg)
    told = jax.tree.map(lambda x: x[1:], both)
    state = t2i.start(random.seeds([seed]), cfg=cfg, steps=steps)
    scales = guides.of(numbers)

    def on(state: Any, k: int) -> Any:
        return four.programs(
            "t2i", t2i.advance, params, both, scales, state, cfg=cfg, steps=steps, k=k
        )

    look = partial(_picture_look, params, told, cfg=cfg)
    looks = _follow(four.decode_picture, cfg, steps, state, on, look)
    return looks._replace(believed=looks.believed[:, None], start=looks.start[None])


def of_clip(
    four: Any, prompt: str, seed: int, picture: Any, numbers: Any, negative: str = "", most: int = 4
) -> Looks:
    """I2V's looks from a reference picture [1, H, W, 3] in [-1, 1], at `most` points at most."""
    cfg, params, steps = four.keyframes, four.parameters("i2v"), int(numbers["steps"])
    weights = (np.float32(numbers[name]) for name in ("image_scale", "control_scale"))
    ids = four.ids([prompt], negative)
    reference = four.encode(latents.resize(jnp.asarray(picture), cfg.stage.size))
    shown = reference if cfg.sparse else None
    given = video.condition(params, *ids, jnp.asarray(picture), *weights, shown, cfg=cfg)
    told = jax.tree.map(lambda x: x[2:], given)
    prior = np.float32(numbers["noise_prior"])
    state = i2v.start(random.seeds([seed]), reference, prior, cfg=cfg, steps=steps)
    scales = guides.of(numbers)

    def on(state: Any, k: int) -> Any:
        return four.programs(
            "i2v", video.advance, params, given, scales, state, cfg=cfg, steps=steps, k=k
        )

    look = partial(_clip_look, params, told, cfg=cfg)
    looks = _follow(four.decode, cfg, steps, state, on, look, most)
    return looks._replace(reference=np.asarray(reference[0]))


def first_step(four: Any) -> tuple[float, float]:
    """(signal, noise) at I2V's first step: how much of the reference the noise prior can hold."""
    _, grid = chain.program(four.keyframes.stage, four.keyframes.stage.steps)
    return float(grid.alpha[0]), float(grid.sigma[0])


def _follow(
    decode: Any, cfg: Any, steps: int, state: Any, on: Any, look: Any, most: int = 4
) -> Looks:
    """Runs a chain of one sample and looks `most` times at most, every `chain.STEPS_AT_ONCE`."""
    _, grid = chain.program(cfg.stage, steps)
    k, start = min(chain.STEPS_AT_ONCE, steps), state.x[0]
    seen, believed, text = [], [], []
    for index in range(0, steps, k)[:most]:
        x0, weights = look(state.x, samplers.point_at(grid, state.index))
        seen.append(index)
        believed.append(np.asarray(decode(x0)[0]))
        text.append(np.asarray(weights[0]))
        if len(seen) < most:
            state = on(state, k)
    return Looks(seen, np.stack(believed), np.mean(text, axis=0), np.asarray(start))


@partial(jax.jit, static_argnames=("cfg",))
def _picture_look(
    params: Any, told: Any, x: jax.Array, point: Point, *, cfg: t2i.Config
) -> tuple[jax.Array, jax.Array]:
    t = jnp.broadcast_to(point.t, x.shape[:1])
    out, maps = watch.cross_attention(t2i.predict, params, cfg, x, t, told)
    kind = process.of(cfg.stage.schedule).prediction
    x0 = prediction.to_x0(kind, out, x, point.alpha, point.sigma)
    return x0, _together(maps["text"], 1, x.shape[1:3])


@partial(jax.jit, static_argnames=("cfg",))
def _clip_look(
    params: Any, told: Any, x: jax.Array, point: Point, *, cfg: video.Config
) -> tuple[jax.Array, jax.Array]:
    t = jnp.broadcast_to(point.t, x.shape[:1])
    out, maps = watch.cross_attention(video.predict, params, cfg, x, t, told)
    kind = process.of(cfg.stage.schedule).prediction
    x0 = prediction.to_x0(kind, out, x, point.alpha, point.sigma)
    return x0, _together(maps["text"], x.shape[1], x.shape[2:4])


def _together(layers: dict[str, jax.Array], frames: int, plane: tuple[int, int]) -> jax.Array:
    """The mean over layers, [B, T, h, w, L], at the finest layer's size."""
    planes = [watch.on_plane(weights, frames, plane) for weights in layers.values()]
    height, width = (max(p.shape[axis] for p in planes) for axis in (2, 3))
    shape = (*planes[0].shape[:2], height, width, planes[0].shape[-1])
    return sum(jax.image.resize(p, shape, "linear") for p in planes) / len(planes)
