"""What T2I's and I2V's networks look at and believe on their way from noise: for `mv2 explain`.

The chains are run as the cascade runs them, with the same noise; at a few points on the way the
network is asked once more, watched (`nn.watch`), with the prompt and without guidance.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.diffusion import keys, prediction, process
from mv2_jax.diffusion.samplers import Point, State
from mv2_jax.infer import meshes
from mv2_jax.nn import watch
from mv2_jax.stages import chain, latents, stage
from mv2_jax.stages.conditions import ByFrame, Params
from mv2_jax.text import Tokenizer, emphasis

if TYPE_CHECKING:
    from mv2_jax.cascade import Cascade
    from mv2_jax.stages.chain import Chain


class Looks(NamedTuple):
    """Of one chain, at a few of its steps (S).

    steps: which; believed: [S, T, H, W, 3] fp32, the clean pictures that the network implies there;
    text: [T, h, w, L], how much each place looked at each token, a mean over layers and steps;
    start: the first latent [T, h, w, C]; reference: the reference picture's [h, w, C], for I2V.
    """

    steps: list[int]
    believed: np.ndarray
    text: np.ndarray
    start: np.ndarray
    reference: np.ndarray = np.zeros(0)


def words(tokenizer: Tokenizer, prompt: str) -> list[tuple[str, slice]]:
    """The prompt's words, each with the places of its tokens in a row of ids; what was cut off is
    left out, and so are marks of emphasis."""
    said = emphasis.plain(prompt).split()
    rows = tokenizer.encode([" ".join(said[:count]) for count in range(len(said) + 1)])
    ends = [int(np.argmax(row == tokenizer.eos_token_id)) for row in rows]
    spans = [slice(before, after) for before, after in itertools.pairwise(ends)]
    return [(word, span) for word, span in zip(said, spans) if span.stop > span.start]


def of_picture(
    four: Cascade, prompt: str, seed: int, numbers: Mapping[str, float], negative: str = ""
) -> Looks:
    """T2I's looks; `numbers` are the stage's (`settings.resolve`)."""
    begun = four.chain("t2i", [prompt], keys.seeds([seed]), numbers, negative=negative)
    return _follow(four.decode_picture, begun)


def of_clip(
    four: Cascade,
    prompt: str,
    seed: int,
    picture: np.ndarray,
    numbers: Mapping[str, float],
    negative: str = "",
    most: int = 4,
) -> Looks:
    """I2V's looks from a reference picture [1, H, W, 3] in [-1, 1], at `most` points at most."""
    given = ([prompt], keys.seeds([seed]), numbers, picture)
    begun = four.chain("i2v", *given, negative=negative)
    looks = _follow(four.decode, begun, most)
    small = latents.resize(jnp.asarray(picture), begun.cfg.stage.size)
    return looks._replace(reference=np.asarray(four.encode(small)[0]))


def first_step(four: Cascade) -> tuple[float, float]:
    """(signal, noise) at I2V's first step: how much of the reference the noise prior can hold."""
    _, grid = chain.program(four.keyframes.stage, four.keyframes.stage.steps)
    return float(grid.alpha[0]), float(grid.sigma[0])


def _follow(decode: Callable[[jax.Array], jax.Array], begun: Chain, most: int = 4) -> Looks:
    """Runs a chain of one sample and looks `most` times at most, every `chain.STEPS_AT_ONCE`: in
    the last of its chains, where FreeInit begins it again."""
    seen, believed, text, starts = [], [], [], []
    # The last row is told everything.
    conditioning = jax.tree.map(lambda leaf: leaf[-1], begun.conditioning)
    # What layers heard does not leave a mesh's program, so looks are one device's, weights whole.
    params, conditioning = meshes.alone((begun.params, conditioning))

    def look(state: State) -> bool:
        if len(seen) == most:
            return True
        x, point = meshes.alone((state.x, chain.look_at(begun.cfg, begun.steps, state)))
        places = _windows(begun, int(state.index))
        x0, weights = _look(params, conditioning, x, point, *places, cfg=begun.cfg)
        seen.append(int(state.index))
        starts.append(np.asarray(x[0]))
        believed.append(np.asarray(decode(x0)[0]))
        text.append(np.asarray(weights[0]))
        return False

    begun.end(look)
    return Looks(seen, np.stack(believed), np.mean(text, axis=0), starts[0])


def _windows(begun: Chain, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a step's windows the first frames [W] and their frames' weights [W, window]; of a clip
    that fits into one, that one."""
    frames, shape = begun.state.x.shape[1], begun.cfg.windows
    if frames <= shape.window:
        return np.zeros(1, np.int32), np.ones((1, frames), np.float32)
    first, share = shape.over_steps(frames, begun.steps)
    row = step if len(first) > 1 else 0
    return first[row], share[row]


@partial(jax.jit, static_argnames=("cfg",))
def _look(
    params: Params,
    conditioning: stage.Conditioning,
    x: jax.Array,
    point: Point,
    first: jax.Array,
    share: jax.Array,
    *,
    cfg: stage.Config,
) -> tuple[jax.Array, jax.Array]:
    """The clean latents implied at x [1, T, h, w, C], and where its places looked
    [1, T, h, w, L]: both averaged over windows, as the chain does."""
    t, total, maps = jnp.broadcast_to(point.t, x.shape[:1]), jnp.zeros_like(x), jnp.zeros(())
    by_frame = [each for each in cfg.conditions if isinstance(each, ByFrame)]
    for begin, weight in zip(first, share):
        at = (begin + jnp.arange(share.shape[1])) % x.shape[1]
        told = {each.name: each.of_frames(conditioning[each.name], at) for each in by_frame}
        given = (params, cfg, x[:, at], t, {**conditioning, **told})
        out, heard = watch.cross_attention(stage.predict_one, *given)
        here = _together(heard["text"], len(at), x.shape[2:4])
        weight = weight.reshape(1, -1, 1, 1, 1)
        total = total.at[:, at].add(weight * out)
        empty = jnp.zeros((1, x.shape[1], *here.shape[2:]))
        maps = maps + empty.at[:, at].add(weight * here)
    kind = process.of(cfg.stage.schedule).prediction
    return prediction.to_x0(kind, total, x, point.alpha, point.sigma), maps


def _together(layers: dict[str, jax.Array], frames: int, plane: tuple[int, ...]) -> jax.Array:
    """The mean over layers, [B, T, h, w, L], at the finest layer's size."""
    planes = [watch.on_plane(weights, frames, plane) for weights in layers.values()]
    height, width = (max(p.shape[axis] for p in planes) for axis in (2, 3))
    shape = (*planes[0].shape[:2], height, width, planes[0].shape[-1])
    return jnp.mean(jnp.stack([jax.image.resize(p, shape, "linear") for p in planes]), axis=0)
