"""What the judge learns from: true renders, mildly worn, and damaged ones that are "none".

Each batch follows a plan of so many examples of each sort. A sort says, for each of thing, colour,
scene and motion, whether the word still holds, is gone ("none"), or is open (no loss). All worlds
are drawn from the training split, also those that are blended in.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from mv2_jax.config import JudgeConfig
from mv2_jax.diffusion import keys as named
from mv2_jax.toybox.judge import HALVES
from mv2_jax.toybox.renderer import frame_times, render
from mv2_jax.toybox.split import is_train, sample_train_world
from mv2_jax.toybox.vocabulary import SIZES
from mv2_jax.toybox.world import World

KEEP, GONE, OPEN = 0, 1, 2
# sort -> (how many of 32 frames, of 32 clips; what becomes of thing, colour, scene, motion)
PLAN = {
    "true": (19, 18, (KEEP, KEEP, KEEP, KEEP)),
    "two worlds": (3, 3, (GONE, GONE, GONE, GONE)),  # blended; open where their words agree
    "two things": (3, 0, (GONE, KEEP, KEEP, KEEP)),  # all else the same
    "two scenes": (1, 0, (KEEP, KEEP, GONE, KEEP)),
    "two motions": (0, 3, (OPEN, OPEN, KEEP, GONE)),
    "no thing": (1, 1, (GONE, GONE, KEEP, GONE)),
    "still": (0, 2, (KEEP, KEEP, KEEP, GONE)),
    "slow": (0, 1, (KEEP, KEEP, KEEP, GONE)),
    "shuffled": (0, 1, (KEEP, KEEP, KEEP, GONE)),
    "average": (1, 1, (GONE, GONE, GONE, GONE)),
    "noise": (1, 1, (GONE, GONE, GONE, GONE)),
    "scrambled": (1, 1, (GONE, OPEN, GONE, GONE)),
    "melted": (2, 0, (GONE, OPEN, OPEN, OPEN)),
}
UNIT = 32
FRAMES_PER_CLIP = 4


def _layout(n: int, clips: bool) -> dict[str, slice]:
    """Where each sort lies in a batch of n: blends lie side by side."""
    if n % UNIT:
        raise ValueError(f"a judge's batch is a multiple of {UNIT}, not {n}")
    places, start = {}, 0
    for sort, (of_frames, of_clips, _) in PLAN.items():
        size = (of_clips if clips else of_frames) * n // UNIT
        places[sort] = slice(start, start + size)
        start += size
    return places


@partial(jax.jit, static_argnums=(1, 2, 3))
def judge_batch(key, n: int, cfg: JudgeConfig, halves: tuple[str, ...] = HALVES):
    """One batch: `n` clips for the motion and 4 n single frames for the rest (n in units of 32).

    halves: "frames", "motion" or both; a batch without one lacks its entries.

    Returns:
        {"clips": [n, T, S/2, S/2, 3] in [-1, 1], "frames": [4 n, S, S, 3], and for both
        "clip_labels" [n, 4] int32, "clip_weights" [n, 4], "frame_labels", "frame_weights"}.

    Raises:
        ValueError: `n` is no multiple of 32.
    """
    first, second = named.split(key)
    batch = {}
    if "motion" in halves:
        clips = examples(first, n, cfg.frames, cfg.size // 2)
        batch["clips"] = clips.pop("video")
        batch |= {f"clip_{name}": value for name, value in clips.items()}
    if "frames" in halves:
        frames = examples(second, n * FRAMES_PER_CLIP, 1, cfg.size)
        batch["frames"] = frames.pop("video")[:, 0]
        batch |= {f"frame_{name}": value for name, value in frames.items()}
    return batch


def examples(key, n: int, frames: int, size: int):
    """`n` examples by the plan for clips, or where `frames` is 1 by that for single frames.

    Returns:
        {"video": [n, T, S, S, 3] in [-1, 1], "labels": [n, 4] int32, "weights": [n, 4]}.
    """
    places = _layout(n, frames > 1)
    keys = named.split(key, 9)
    worlds = jax.vmap(sample_train_world)(named.split(keys[0], n))
    words = jnp.stack(worlds[:4], axis=-1)
    # Far outside of the frame, and its shadow with it.
    drawn = worlds._replace(x=worlds.x.at[places["no thing"]].set(40.0))
    times = _times(keys[1], n, frames, places)
    labels, weights = _labels(words, places)
    blended = slice(places["two worlds"].start, places["two motions"].stop)
    others = _partners(keys[2], worlds, places, blended)
    # Drawn in one go, which compiles once.
    every = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), drawn, others)
    video = _render(every, jnp.concatenate([times, times[blended]]), size)
    video, second = video[:n], video[n:]
    share = jax.random.uniform(keys[3], (len(others.x), 1, 1, 1, 1), minval=0.36, maxval=0.64)
    video = video.at[blended].set(share * video[blended] + (1 - share) * second)
    pair = places["two worlds"]
    agree = words[pair] == jnp.stack(others[:4], axis=-1)[: pair.stop - pair.start]
    weights = weights.at[pair].set(jnp.where(agree, 0.0, weights[pair]))

    video = video.at[places["average"]].set(_averages(keys[4], video, places))
    video = video.at[places["noise"]].set(_noise(keys[5], video[places["noise"]].shape))
    video = video.at[places["scrambled"]].set(_scramble(keys[6], video[places["scrambled"]]))
    if frames == 1:
        video = video.at[places["melted"]].set(_melt(keys[7], video[places["melted"]], 0.09))
    return {"video": _wear(keys[8], video, 64 / size), "labels": labels, "weights": weights}


def _render(worlds: World, times, size: int):
    """Worlds [N], times [N, T] -> [N, T, S, S, 3]; few at a time, for a CPU's cache."""
    draw = partial(render, size=(size, size))
    most = max(1, 2**17 // (times.shape[1] * size * size))
    few = max(k for k in range(1, most + 1) if len(times) % k == 0)
    return jax.lax.map(lambda pair: draw(*pair), (worlds, times), batch_size=few)


def _times(key, n: int, frames: int, places):
    """Times [n, T]: evenly over the clip, but for those whose motion is to be spoilt; of single
    frames, any time."""
    if frames == 1:
        return jax.random.uniform(key, (n, 1))
    k1, k2, k3, k4 = named.split(key, 4)
    even = frame_times(frames)
    times = jnp.tile(even, (n, 1))
    still, slow, shuffled = (places[sort] for sort in ("still", "slow", "shuffled"))

    def starts(key, place):
        return jax.random.uniform(key, (place.stop - place.start, 1))

    times = times.at[still].set(jnp.broadcast_to(starts(k1, still), times[still].shape))
    pace = 0.12 * starts(k3, slow)
    times = times.at[slow].set(starts(k2, slow) * (1 - pace) + pace * even[None])
    orders = jax.random.permutation(k4, times[shuffled], axis=1, independent=True)
    return times.at[shuffled].set(orders)


def _labels(words, places):
    """Labels and weights [n, 4] by the plan."""
    sorts = jnp.concatenate(
        [
            jnp.tile(jnp.array(fate), (places[sort].stop - places[sort].start, 1))
            for sort, (*_, fate) in PLAN.items()
        ]
    )
    labels = jnp.where(sorts == GONE, jnp.array(SIZES)[None], words)
    return labels.astype(jnp.int32), jnp.where(sorts == OPEN, 0.0, 1.0)


def _partners(key, worlds: World, places, blended: slice) -> World:
    """The worlds to blend with: any other, or the same but for one word."""
    first, *keys = named.split(key, 4)
    count = blended.stop - blended.start
    others = jax.vmap(sample_train_world)(named.split(first, count))
    for key, (sort, kind) in zip(keys, (("two things", 0), ("two scenes", 2), ("two motions", 3))):
        place = places[sort]
        if place.stop == place.start:
            continue
        same = jax.tree.map(lambda leaf, place=place: leaf[place], worlds)
        size = SIZES[kind]
        # A word of its own kind at random, among those that differ and that training may see.
        options = [w[:, None] for w in same[:4]]
        options[kind] = jnp.arange(size)[None]
        fit = is_train(*options) & (options[kind] != same[kind][:, None])
        score = jax.random.uniform(key, fit.shape) + fit
        same = same._replace(**{World._fields[kind]: jnp.argmax(score, axis=1).astype(jnp.int32)})
        at = slice(place.start - blended.start, place.stop - blended.start)
        others = jax.tree.map(lambda leaf, new, at=at: leaf.at[at].set(new), others, same)
    return others


def _averages(key, video, places):
    """Means of four true clips each."""
    place = places["average"]
    true = video[places["true"]]
    pick = jax.random.randint(key, (place.stop - place.start, 4), 0, len(true))
    return true[pick].mean(axis=1)


def _noise(key, shape):
    """Noise, fine or coarse, about a random grey."""
    k1, k2, k3, k4 = named.split(key, 4)
    b, t, s, _, c = shape
    fine = jax.random.normal(k1, shape)
    coarse = jax.random.normal(k2, (b, t, s // 8, s // 8, c))
    coarse = jax.image.resize(coarse, shape, "linear")
    mix = jax.random.uniform(k3, (b, 1, 1, 1, 1))
    grey = jax.random.uniform(k4, (b, 1, 1, 1, c), minval=-0.6, maxval=0.6)
    return jnp.clip(grey + 0.6 * (mix * fine + (1 - mix) * coarse), -1.0, 1.0)


def _scramble(key, video):
    """The 16 squares of each frame in another order."""
    b, t, s, _, c = video.shape
    q = s // 4
    tiles = video.reshape(b, t, 4, q, 4, q, c).transpose(2, 4, 0, 1, 3, 5, 6)
    tiles = jax.random.permutation(key, tiles.reshape(16, b, t, q, q, c))
    tiles = tiles.reshape(4, 4, b, t, q, q, c).transpose(2, 3, 0, 4, 1, 5, 6)
    return tiles.reshape(video.shape)


def _melt(key, video, strength: float):
    """Bends clips by a smooth random field of `strength` (standard deviation, in frame widths)."""
    b, t, s, _, c = video.shape
    field = jax.random.normal(key, (b, 5, 5, 2)) * strength * s
    field = jax.image.resize(field, (b, s, s, 2), "cubic")
    here = jnp.stack(jnp.meshgrid(jnp.arange(s), jnp.arange(s), indexing="ij"), axis=-1)
    at = jnp.clip(jnp.round(here[None] + field).astype(jnp.int32), 0, s - 1)
    flat = (at[..., 0] * s + at[..., 1]).reshape(b, 1, s * s, 1)
    return jnp.take_along_axis(video.reshape(b, t, s * s, c), flat, axis=2).reshape(video.shape)


def _wear(key, video, width: float):
    """Mild wear that takes no word away: softness, a little noise, light and contrast.

    width: that of a pixel, in pixels of a frame of 64; coarse ones are not softened as much.
    """
    b, t, s, _, c = video.shape
    first, second = named.split(key)
    chance = jax.random.uniform(first, (5, b, 1, 1, 1, 1))

    def each(i, low, high):
        return low + chance[i] * (high - low)

    half = video.reshape(b, t, s // 2, 2, s // 2, 2, c).mean(axis=(3, 5))
    soft = jax.image.resize(half, video.shape, "linear")
    video = jnp.where(chance[0] < 0.25 / width**2, soft, video)
    tap = jnp.maximum(each(1, -0.15, 0.25), 0.0) / width
    for axis in (2, 3):
        edge = jnp.pad(video, [(0, 0)] * axis + [(1, 1)] + [(0, 0)] * (4 - axis), mode="edge")
        before = jax.lax.slice_in_dim(edge, 0, s, axis=axis)
        after = jax.lax.slice_in_dim(edge, 2, s + 2, axis=axis)
        video = video + tap * (before + after - 2 * video)
    video = video * each(2, 0.88, 1.08) + each(3, -0.1, 0.1)
    noise = jax.random.normal(second, video.shape) * each(4, 0.0, 0.06)
    return jnp.clip(video + noise, -1.0, 1.0)
