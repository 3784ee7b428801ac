"""EDSC against a transcription of the public CUDA kernel, pixel by pixel in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.nn.edsc import Taps, synthesise
from mv2_jax.nn.warp import sample


def kernel(image, vertical, horizontal, offset_x, offset_y, mask):
    """What each thread of the public kernel does: `image` [C, H + 4, W + 4], the rest [n, H, W]."""
    channels, tall, wide = image.shape
    size, height, width = vertical.shape
    out = np.zeros((channels, height, width))

    def clamp(v, top):
        return min(max(v, 0), top)

    for y in range(height):
        for x in range(width):
            for i in range(size):
                for j in range(size):
                    tap = i * size + j
                    at_x = offset_y[tap, y, x] + x + j - (size - 1) // 2 + 1
                    at_y = offset_x[tap, y, x] + y + i - (size - 1) // 2 + 1
                    px, py = clamp(at_x, wide - 1), clamp(at_y, tall - 1)
                    left, top = math.floor(at_x), math.floor(at_y)
                    right, bottom = clamp(left + 1, wide - 1), clamp(top + 1, tall - 1)
                    left, top = clamp(left, wide - 1), clamp(top, tall - 1)
                    value = (
                        image[:, top, left] * (1 + (left - px)) * (1 + (top - py))
                        + image[:, top, right] * (1 - (right - px)) * (1 + (top - py))
                        + image[:, bottom, left] * (1 + (left - px)) * (1 - (bottom - py))
                        + image[:, bottom, right] * (1 - (right - px)) * (1 - (bottom - py))
                    )
                    weight = vertical[i, y, x] * horizontal[j, y, x] * mask[tap, y, x]
                    out[:, y, x] += value * weight
    return out


def drawn(batch, plane, size, reach, seed=0):
    random = np.random.default_rng(seed)

    def plane_of(n, scale=1.0):
        return np.float32(random.normal(size=(batch, *plane, n)) * scale)

    return Taps(
        rows=plane_of(size**2, reach),
        columns=plane_of(size**2, reach),
        vertical=plane_of(size),
        horizontal=plane_of(size),
        mask=np.float32(random.uniform(size=(batch, *plane, size**2))),
    )


@pytest.mark.parametrize("plane", [(7, 5), (1, 4)])
def test_the_public_kernel_with_all_its_quirks(plane):
    """Offsets reach several pixels beyond the frame, where the kernel counts reads twice."""
    size = 5
    random = np.random.default_rng(1)
    image = np.float32(random.normal(size=(2, *plane, 3)))
    taps = drawn(2, plane, size, reach=3.0)
    ours = jax.jit(lambda *a: synthesise(*a, original=True))(image, taps)
    for b in range(2):
        padded = np.pad(image[b].astype(float), ((2, 2), (2, 2), (0, 0)), "edge").transpose(2, 0, 1)
        parts = {name: x[b].astype(float).transpose(2, 0, 1) for name, x in taps._asdict().items()}
        theirs = kernel(
            padded,
            parts["vertical"],
            parts["horizontal"],
            parts["rows"],  # offset_x moves rows
            parts["columns"],
            parts["mask"],
        )
        np.testing.assert_allclose(ours[b], theirs.transpose(1, 2, 0), atol=2e-5)
    centred = synthesise(image, taps)
    assert np.abs(ours - centred).mean() > 0.1


def test_without_the_quirks_it_is_the_paper_s_sum_over_reads():
    plane, size = (6, 9), 3
    random = np.random.default_rng(2)
    image = np.float32(random.normal(size=(1, *plane, 3)))
    taps = drawn(1, plane, size, reach=2.0)
    total = 0.0
    y, x = np.mgrid[: plane[0], : plane[1]].astype(np.float32)
    for i in range(size):
        for j in range(size):
            tap = i * size + j
            at = np.stack(
                (x + j - 1 + taps.columns[0, ..., tap], y + i - 1 + taps.rows[0, ..., tap]), -1
            )
            weight = taps.vertical[..., i] * taps.horizontal[..., j] * taps.mask[..., tap]
            total = total + sample(image, at[None]) * weight[..., None]
    np.testing.assert_allclose(jax.jit(synthesise)(image, taps), total, atol=1e-5)


def delta(plane, size, rows=0.0, columns=0.0):
    """One read a pixel, all at the same offset."""
    middle = np.zeros((1, *plane, size), np.float32)
    middle[..., size // 2] = 1
    every = np.ones((1, *plane, size**2), np.float32)
    return Taps(rows * every, columns * every, middle, middle, every)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_single_tap_copies_and_shifts_at_every_scale(scale):
    image = np.float32(np.random.default_rng(3).normal(size=(1, 8, 12, 2)))
    small = (8 // scale, 12 // scale)
    np.testing.assert_allclose(synthesise(image, delta(small, 5)), image, atol=1e-6)
    moved = synthesise(image, delta(small, 3, rows=2.0, columns=-1.0))
    np.testing.assert_allclose(moved[:, :-2, 1:], image[:, 2:, :-1], atol=1e-6)


def test_gradients_reach_offsets_and_weights_without_keeping_the_reads():
    image = np.float32(np.random.default_rng(4).normal(size=(1, 64, 64, 3)))
    taps = jax.tree.map(jnp.asarray, drawn(1, (64, 64), 5, reach=0.3, seed=5))

    def total(taps):
        return jnp.sum(jnp.sin(synthesise(image, taps)))

    compiled = jax.jit(jax.grad(total)).lower(taps).compile()
    gradient = compiled(taps)
    bump = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(6).normal(size=x.shape)), taps)
    bump = bump._replace(rows=0 * bump.rows, columns=0 * bump.columns)

    def moved(step):
        return total(jax.tree.map(lambda a, b: a + step * b.astype(a.dtype), taps, bump))

    step = 1e-3
    told = sum(jnp.vdot(g, b.astype(g.dtype)) for g, b in zip(gradient, bump))
    assert float((moved(step) - moved(-step)) / (2 * step)) == pytest.approx(float(told), rel=0.02)
    assert np.abs(gradient.rows).mean() > 0 and np.abs(gradient.columns).mean() > 0
    # 25 reads of 64 x 64 x 3 and their four corners each would be 4.9 MB; offsets, weights and
    # their gradients, which are there anyhow, are 2.8 MB.
    memory = compiled.memory_analysis()
    if memory is not None:
        assert memory.temp_size_in_bytes < 4.0e6


def test_shapes_that_do_not_fit_are_told():
    image = np.zeros((1, 9, 8, 3), np.float32)
    with pytest.raises(ValueError, match="divides it evenly"):
        synthesise(image, delta((4, 4), 3))
