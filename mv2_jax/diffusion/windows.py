"""Clips longer than the network's motion window: overlapping windows, blended at every step.

A motion module knows a fixed number of frames. A longer clip is denoised in overlapping windows of
that many; where windows overlap, their outputs are averaged with weights that sum to one, so that
what the sampler sees is one output for the whole clip (MultiDiffusion, arXiv 2302.08113, over time,
as AnimateDiff's users do). Networks know nothing of it.

Where windows lie (`CONTEXTS`) and how they are averaged (`KINDS`) are those of ComfyUI's
AnimateDiff-Evolved, by its rules:

- "static": at the same frames at every step (its standard static);
- "uniform": they begin elsewhere at every step, and none goes over the clip's end (its standard
  uniform, of stride 1);
- "looped": likewise, and windows go over the end to the beginning (its looped uniform);
- "closed": the same with one window more, so that the clip closes to a loop (its closed loop).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mv2_jax.diffusion.names import CONTEXTS
from mv2_jax.lookup import one_of

KINDS = ("pyramid", "flat", "uniform")  # "uniform" is the older word for "flat"


def starts(frames: int, window: int, overlap: int) -> np.ndarray:
    """The first frame of every window, int32 [W], rising.

    Each window begins `window - overlap` frames after the one before; the last ends with the clip
    and so may overlap more. All are full, since a motion module sees a shorter one differently.

    Raises:
        ValueError: the window is not positive, or overlaps are not in 0..window - 1.
    """
    if window < 1 or not 0 <= overlap < window:
        raise ValueError(f"windows of {window} frames cannot overlap by {overlap}")
    last = max(frames - window, 0)
    return np.asarray([*range(0, last, window - overlap), last], np.int32)


def weights(frames: int, window: int, overlap: int, kind: str = "pyramid") -> np.ndarray:
    """What each window's frames weigh, float32 [W, window]; over a clip's frame they sum to one.

    "pyramid" falls towards a window's ends, where it sees least of a frame's neighbours;
    "flat" is the plain average.

    Raises:
        ValueError: an unknown kind, or as `starts`.
    """
    at = starts(frames, window, overlap)[:, None] + np.arange(min(window, frames))[None]
    return _shares(at, frames, kind).astype(np.float32)


def _shares(at: np.ndarray, frames: int, kind: str) -> np.ndarray:
    """What windows at these frames [W, window] weigh, float64; over a frame they sum to one."""
    one_of(kind, KINDS, "weights")
    length = at.shape[1]
    own = np.ones(length)
    if kind == "pyramid":
        own = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float64)
    total = np.zeros(frames)
    np.add.at(total, at, np.broadcast_to(own, at.shape))
    return own[None] / total[at]


def moving_starts(
    frames: int, window: int, overlap: int, context: str, step: int
) -> tuple[int, ...]:
    """The first frame of every window at a step, for the contexts in which they move.

    Windows begin `window - overlap` frames after one another, the first after a part of the clip
    that the step's number says, its binary digits read backwards behind the point: 0, 1/2, 1/4,
    3/4, 1/8 ...

    Raises:
        ValueError: as `starts`, or an unknown context.
    """
    one_of(context, CONTEXTS[1:], "windows")
    starts(frames, window, overlap)  # refuses what cannot be
    digits = f"{step:b}"[::-1]
    first = round(frames * int(digits, 2) / 2 ** len(digits))
    end = first + frames - (0 if context == "closed" else overlap)
    made = [begin % frames for begin in range(first, end, window - overlap)]
    return tuple(made) if context != "uniform" else _unrolled(made, frames, window)


def _unrolled(made: list[int], frames: int, window: int) -> tuple[int, ...]:
    """Windows that went over the clip's end moved before it, and one at its beginning where what
    they left there is not in the next; each once."""
    last, rest = frames - window, list(made)
    kept: list[int] = []
    while rest:
        begin = rest.pop(0)
        if begin > last:
            following = (rest or kept or [last])[0]
            begin = last
            if 0 < following <= last:  # one that goes over the end has the beginning
                rest.insert(0, 0)
        if begin not in kept:
            kept.append(begin)
    return tuple(kept)


@dataclass(frozen=True)
class Windows:
    """How long clips are cut: windows of so many frames that overlap by so many, averaged by
    `kind`, lying by `context`."""

    window: int
    overlap: int
    kind: str = "pyramid"
    context: str = "static"

    def over_steps(self, frames: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """The first frames of windows, int32 [S, W], and their frames' weights, float32
        [S, W, window]; S is 1 where all steps have the same. Where a step has fewer windows than
        others, the last of them weigh nothing.

        Raises:
            ValueError: an unknown kind or context, or as `starts`.
        """
        if self.context == "static":
            at = starts(frames, self.window, self.overlap)
            return at[None], weights(frames, self.window, self.overlap, self.kind)[None]
        given = (frames, self.window, self.overlap, self.context)
        lists = [moving_starts(*given, step) for step in range(steps)]
        first = np.zeros((steps, max(map(len, lists))), np.int32)
        share = np.zeros((*first.shape, self.window), np.float32)
        for step, made in enumerate(lists):
            at = (np.asarray(made)[:, None] + np.arange(self.window)) % frames
            first[step, : len(made)] = made
            share[step, : len(made)] = _shares(at, frames, self.kind)
        return first, share


def over(
    model: Callable[..., Any],
    frames: int,
    shape: Windows,
    axis: int = 1,
    some: Callable[[Any, jax.Array], Any] | None = None,
    steps: int = 1,
    step: int | jax.Array = 0,
) -> Callable[..., Any]:
    """`model(x, t, condition) -> output` of clips of `frames` from one that knows a window's.

    x and the output have their frames at `axis`; t has none. What the condition has of them is cut
    by `some(condition, frames) -> condition`, frames being the numbers [window] of a window's. A
    clip that fits the window is left to `model` itself. Windows are run one after another: memory
    is one window's. `step` (traced) of `steps` says where windows lie that move.

    A model that keeps something from step to step takes it as a fourth argument, and returns
    (output, what it keeps); over windows that has a leading axis [W], one of each.

    Raises:
        ValueError: as `Windows.over_steps`, or something is kept where windows move.
    """
    first, share = shape.over_steps(frames, steps)
    if frames <= shape.window:
        return model
    row = step if len(first) > 1 else 0
    first, share = jnp.asarray(first)[row], jnp.asarray(share)[row]

    def whole(x: jax.Array, t: jax.Array, condition: Any, *kept: Any) -> Any:
        if kept and shape.context != "static":
            raise ValueError(f"windows that move ({shape.context}) keep nothing from step to step")

        def add(total: jax.Array, begin: jax.Array, weight: jax.Array, *kept: Any) -> Any:
            at = (begin + jnp.arange(shape.window)) % frames
            weight = weight.reshape(*[1] * axis, shape.window, *[1] * (x.ndim - axis - 1))
            told = some(condition, at) if some else condition
            made = model(jnp.take(x, at, axis), t, told, *kept)
            output, *more = made if kept else (made,)
            share = weight * output.astype(jnp.float32)
            return total.at[(slice(None),) * axis + (at,)].add(share), *more

        def one(total: jax.Array, this: Any) -> tuple[jax.Array, Any]:
            if shape.context == "static":
                total, *kept = add(total, *this)
                return total, tuple(kept)
            total, *_ = lax.cond(this[1].any(), add, lambda total, *_: (total,), total, *this)
            return total, ()

        start = jnp.zeros(x.shape, jnp.float32)
        total, kept = lax.scan(one, start, (first, share, *kept))
        return (total, *kept) if kept else total

    return whole
