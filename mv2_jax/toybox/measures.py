"""What the judge's verdicts do not say of videos: do they keep the picture's thing, do they
flicker, does the thing move smoothly, are they sharp, do seeds differ.

Every measure means something only beside the same measure of true renders of the same words
(`truth`), which have a little of everything: pixels are squares, and a ball that bounces jerks.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.diffusion import keys as named
from mv2_jax.toybox import masks
from mv2_jax.toybox.renderer import frame_times, render_batch
from mv2_jax.toybox.world import sample_world

NAMES = ("thing", "colour", "shape", "place", "size", "flicker", "jerk", "sharpness")
SAYS = {
    "thing": "share of frames that show exactly one thing",
    "colour": "CIE76 difference of the thing's mean colour from that in the picture",
    "shape": "difference of the thing's outline from that in the picture, 0 to 1",
    "place": "how far the thing of the first frame is from its place in the picture, in % of the "
    "frame's height",
    "size": "difference of the thing's size in the first frame from that in the picture, in %",
    "flicker": "what comes and goes in the scene from frame to frame, in grey levels of 255",
    "jerk": "changes of the thing's pace from frame to frame, in % of the frame's height",
    "sharpness": "fine detail, in grey levels of 255",
}
SHARES = ("thing", "shape")  # that lie between 0 and 1; the others have no upper bound
_RINGS = 24  # distances at which outlines are compared
_REACH = 2.4  # up to so many times the radius of a disc of the same area
_SEED = 20403


class Track(NamedTuple):
    """The thing in clips [B, T]: its middle (x to the right, y up) and the radius of a disc of its
    area, in frame heights; nan where it is not there. `mask` is [B, T, h, w]."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    pieces: np.ndarray
    mask: np.ndarray


def measure(clips, pictures, words) -> dict[str, np.ndarray]:
    """All measures of clips [B, T, H, W, 3], by name, [B] each; nan where there is nothing to say.

    Args:
        clips: uint8, or float in [-1, 1].
        pictures: [B, H', W', 3], of the clips' proportions: whose thing the clips are to keep,
            from its place and size there on.
        words: [B, 4] indices (thing, colour, scene, motion) of what was asked for.

    Raises:
        ValueError: shapes that do not fit together.
    """
    clips, words = np.asarray(clips), np.asarray(words)
    if clips.ndim != 5 or len(clips) != len(pictures) or words.shape != (len(clips), 4):
        raise ValueError(
            f"clips {clips.shape}, pictures {np.shape(pictures)} and words {words.shape} do not fit"
        )
    seen, reference = track(clips, words), track(np.asarray(pictures)[:, None], words)
    frames, picture = _small(clips), _small(np.asarray(pictures)[:, None])
    colour = _lab_of(frames, seen.mask) - _lab_of(picture, reference.mask)
    shape = np.abs(outline(seen) - outline(reference)) @ _ring_weights()
    away = np.hypot(seen.x[:, 0] - reference.x[:, 0], seen.y[:, 0] - reference.y[:, 0])
    return {
        "thing": (seen.pieces == 1).mean(axis=1),
        "colour": _mean_of_known(np.linalg.norm(colour, axis=-1)),
        "shape": _mean_of_known(shape),
        "place": 100 * away,
        "size": 100 * np.abs(seen.radius[:, 0] / reference.radius[:, 0] - 1),
        "flicker": flicker(frames, seen.mask),
        "jerk": jerk(seen),
        "sharpness": sharpness(clips),
    }


def track(clips, words) -> Track:
    """Follows the thing that `words` [B, 4] name through clips [B, T, H, W, 3]."""
    clips, words = np.asarray(clips), np.asarray(words)
    count, frames = clips.shape[:2]
    colour, scene = (np.repeat(words[:, i], frames) for i in (1, 2))
    found = masks.find(clips.reshape(-1, *clips.shape[2:]), colour, scene)
    height, width = found.mask.shape[1:]
    area = found.mask.sum(axis=(1, 2)).astype(np.float64)
    area[~found.there] = np.nan
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    y = 0.5 - (found.mask.sum(axis=2) @ rows) / area / height
    x = ((found.mask.sum(axis=1) @ columns) / area - width / 2) / height
    radius = np.sqrt(area / np.pi) / height
    pieces = np.where(found.there, found.pieces, 0)
    flat = (x, y, radius, pieces, found.mask)
    return Track(*(value.reshape(count, frames, *value.shape[1:]) for value in flat))


def outline(seen: Track) -> np.ndarray:
    """The thing's outline as [B, T, rings]: the share of each ring about its middle that it covers.

    Rings are counted in radii of a disc of the same area, so the outline is the same wherever the
    thing is, however large, and however turned.
    """
    height, width = seen.mask.shape[2:]
    rows = 0.5 - (np.arange(height) + 0.5) / height
    columns = ((np.arange(width) + 0.5) - width / 2) / height
    out = np.full((*seen.x.shape, _RINGS), np.nan)
    for at in zip(*np.nonzero(np.isfinite(seen.x))):
        far = np.hypot(columns[None] - seen.x[at], rows[:, None] - seen.y[at]) / seen.radius[at]
        ring = np.minimum((far * (_RINGS / _REACH)).astype(int), _RINGS)
        whole = np.bincount(ring.ravel(), minlength=_RINGS + 1)[:_RINGS]
        covered = np.bincount(ring[seen.mask[at]], minlength=_RINGS + 1)[:_RINGS]
        out[at] = covered / np.maximum(whole, 1)
    return out


def _ring_weights() -> np.ndarray:
    """Each ring's area in the thing's own: two outlines that never meet differ by 1."""
    edges = np.linspace(0, _REACH, _RINGS + 1) ** 2
    return 0.5 * np.diff(edges)


def flicker(frames, mask) -> np.ndarray:
    """Half the mean second difference over time outside of the thing, [B], in levels of 255.

    What moves evenly has none, and what is there in every other frame alone has all of it.

    Args:
        frames: [B, T, h, w, 3] in [-1, 1]; mask: [B, T, h, w], the thing. Under three frames: nan.
    """
    if frames.shape[1] < 3:
        return np.full(len(frames), np.nan)
    second = np.abs(frames[:, 2:] - 2 * frames[:, 1:-1] + frames[:, :-2]).mean(axis=-1)
    free = ~(mask[:, 2:] | mask[:, 1:-1] | mask[:, :-2])
    total = np.where(free, second, 0).sum(axis=(1, 2, 3))
    return 127.5 * 0.5 * total / np.maximum(free.sum(axis=(1, 2, 3)), 1)


def jerk(seen: Track) -> np.ndarray:
    """Mean second difference of the thing's place and radius over time, [B], in % of the frame's
    height; nan where it is not seen in three frames running."""
    path = np.stack([seen.x, seen.y, seen.radius], axis=-1)
    if path.shape[1] < 3:
        return np.full(len(path), np.nan)
    second = path[:, 2:] - 2 * path[:, 1:-1] + path[:, :-2]
    return 100 * _mean_of_known(np.linalg.norm(second, axis=-1))


@jax.jit
def _detail(clips):
    grey = clips.mean(axis=-1)
    blurred = sum(jnp.roll(grey, (a, b), (2, 3)) for a in (-1, 0, 1) for b in (-1, 0, 1)) / 9
    return jnp.abs(grey - blurred)[:, :, 1:-1, 1:-1].mean(axis=(1, 2, 3))


def sharpness(clips) -> np.ndarray:
    """Mean difference of clips [B, T, H, W, 3] from their own 3 x 3 mean, [B], in levels of 255.

    Blur lowers it and noise raises it: 1 of the true renders' is right, not more.
    """
    one_at_a_time = (_detail(jnp.asarray(_floats(clip[None]))) for clip in np.asarray(clips))
    return 127.5 * np.concatenate([np.asarray(value) for value in one_at_a_time])


def spread(pictures, words) -> dict[str, float]:
    """How much pictures [N, H, W, 3] of one prompt's `words` [4] differ in where and how large the
    thing is: standard deviations of x, y and radius, in % of the frame's height."""
    seen = track(np.asarray(pictures)[:, None], np.tile(np.asarray(words), (len(pictures), 1)))
    values = {"x": seen.x, "y": seen.y, "radius": seen.radius}
    enough = np.isfinite(seen.x).sum() >= 2
    return {k: float(100 * np.nanstd(v)) if enough else float("nan") for k, v in values.items()}


@partial(jax.jit, static_argnames=("frames", "size"))
def _draw(words, seed, *, frames, size):
    keys = named.split(named.fold(named.seed(_SEED), seed), len(words))
    worlds = jax.vmap(sample_world)(keys, *jnp.moveaxis(words, 1, 0))
    return jnp.round((render_batch(worlds, frame_times(frames), size) + 1) * 127.5)


def truth(words, frames: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """True renders of `words` [B, 4] as uint8 clips [B, frames, H, W, 3]; the rest at random."""
    drawn = _draw(jnp.asarray(words, jnp.int32), seed, frames=frames, size=tuple(size))
    return np.asarray(drawn.astype(jnp.uint8))


def _floats(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) / 127.5 - 1.0 if x.dtype == np.uint8 else x.astype(np.float32)


def _small(clips: np.ndarray) -> np.ndarray:
    """Clips at the size at which things are looked for, fp32."""
    return np.stack([np.asarray(masks.small(jnp.asarray(clip))) for clip in clips])


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Means [B] over what is finite of [B, T]; nan where nothing is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=1)
    return np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.nan)


# sRGB's primaries in CIE XYZ, over the white point D65 (IEC 61966-2-1).
_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
) / np.array([[0.9505], [1.0], [1.089]])


def _lab_of(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """CIELAB [B, T, 3] of the mean light under masks [B, T, h, w]; nan where a mask is empty."""
    unit = np.clip(frames * 0.5 + 0.5, 0, 1)
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    count = mask.sum(axis=(2, 3)).astype(np.float64)
    count[count == 0] = np.nan
    xyz = (linear * mask[..., None]).sum(axis=(2, 3)) / count[..., None] @ _XYZ.T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lightness = 116 * f[..., 1] - 16
    return np.stack(
        [lightness, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    )
