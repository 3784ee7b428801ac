"""What jumps too far for the network is held, and nothing else is."""

import numpy as np
import pytest

from mv2_jax.infer import interpolate_lost as lost
from mv2_jax.infer import interpolate_network
from mv2_jax.infer.interpolate_layout import Layout

HEIGHT, WIDTH = 96, 320


def ground(flat, height=HEIGHT, width=WIDTH):
    """A still ground [H, W] in grey levels, flat or with texture."""
    if flat:
        return np.full((height, width), 190.0)
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    waves = rng.uniform(-0.5, 0.5, (24, 2))
    phases = rng.uniform(0, 6.28, 24)
    return 120 + 8 * sum(np.sin(a * rows + b * columns + c) for (a, b), c in zip(waves, phases))


def ball(x, flat, layout, radius=10):
    """The planes of a picture with a ball, its centre `x` pixels from the left."""
    rows, columns = np.mgrid[: layout.height, : layout.width]
    inside = np.clip(radius - np.hypot(columns - x, rows - layout.height / 2) + 0.5, 0, 1)
    luma = ground(flat, layout.height, layout.width) * (1 - inside) + 60 * inside
    if layout.chroma == "444":
        chroma = [128 + level * inside for level in (-30, 90)]
    else:
        small = inside.reshape(layout.height // 2, 2, layout.width // 2, 2).mean(axis=(1, 3))
        chroma = [128 + level * small for level in (-30, 90)]
    top = 2 ** (layout.bits - 8)
    return tuple(np.round(plane * top).astype(layout.dtype) for plane in (luma, *chroma))


@pytest.fixture(scope="module")
def fill():
    made = {}

    def fill(layout, *arguments):
        if layout not in made:
            made[layout] = interpolate_network.filler("rife", 1, layout)
        return made[layout](*arguments)

    return fill


@pytest.mark.parametrize("flat, step", [(True, 150), (False, 60), (False, 150)])
@pytest.mark.parametrize("parts", [(1 / 3, 2 / 3), (0.25, 0.5, 0.75)])
@pytest.mark.slow
def test_a_ball_that_jumps_is_there_whole_in_every_picture(fill, flat, step, parts):
    layout = Layout(HEIGHT, WIDTH, "420", 8)
    first, second = ball(80, flat, layout), ball(80 + step, flat, layout)
    made = fill(layout, first, second, list(parts))
    new, held = lost.held(first, second, parts, made, layout)
    assert held
    for part, planes, network in zip(parts, new, made):
        nearer = second if part >= 0.5 else first
        red = (planes[2] > 170).sum()
        assert abs(red - (nearer[2] > 170).sum()) <= 0.1 * red
        if abs(part - 0.5) < 0.2:  # the network has lost it
            assert (network[2] > 170).sum() < 0.8 * red
        for plane, end in zip(planes, nearer):
            assert np.abs(plane.astype(int) - end).mean() < 2.0


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("radius, step", [(6, 2), (6, 4), (10, 4), (10, 10), (10, 16), (10, 24)])
@pytest.mark.slow
def test_a_ball_that_is_followed_is_left_alone(fill, flat, radius, step):
    layout = Layout(HEIGHT, WIDTH, "420", 8)
    first, second = (ball(x, flat, layout, radius) for x in (80, 80 + step))
    for parts in ((1 / 3, 2 / 3), (0.25, 0.5, 0.75)):
        made = fill(layout, first, second, list(parts))
        new, held = lost.held(first, second, parts, made, layout)
        assert new is made and not held


@pytest.mark.parametrize("others", [False, True])
def test_the_edges_of_what_moves_a_little_are_not_things_that_jumped(others):
    """At a third of the gap they are mixtures, and nothing new lies between them."""
    layout = Layout(HEIGHT, WIDTH, "420", 8)

    def drawn(x):
        planes = ball(x, True, layout, 6)
        if not others:
            return planes
        beside = ball(x + 180, True, layout, 6)  # another of its kind goes the same way
        return tuple(np.where(a != a[0, 0], a, b) for a, b in zip(planes, beside))

    first, second = drawn(60), drawn(62)
    made = tuple(np.uint8(a + (b.astype(float) - a) / 3) for a, b in zip(first, second))
    new, held = lost.held(first, second, (1 / 3,), [made], layout)
    assert not held and new[0] is made


def test_lights_fades_and_moving_grounds_are_left_alone():
    layout = Layout(HEIGHT, WIDTH, "420", 8)
    first = ball(80, False, layout)
    brighter = (np.minimum(first[0] + 60, 255).astype(np.uint8), *first[1:])
    gone = tuple(np.uint8(p) for p in ball(-50, False, layout))
    moved = tuple(np.roll(plane, 40, axis=1) for plane in first)
    for second in (brighter, gone, moved):
        made = [tuple(np.uint8((a + b.astype(float)) / 2) for a, b in zip(first, second))]
        new, held = lost.held(first, second, (0.5,), made, layout)
        assert new is made and not held


@pytest.mark.parametrize("chroma, bits, times", [("444", 10, 1), ("420", 8, 4)])
def test_other_layouts_and_large_pictures(chroma, bits, times):
    """Fades, as the network's worst answer; large pictures are looked at on a smaller plane."""
    layout = Layout(HEIGHT * times + 2, WIDTH * times + 2, chroma, bits)
    first, second = (ball(x * times, True, layout, 10 * times) for x in (80, 230))
    mixed = [((a.astype(float) + b) / 2).astype(layout.dtype) for a, b in zip(first, second)]
    (new,), held = lost.held(first, second, (0.5,), [tuple(mixed)], layout)
    assert held
    for plane, end in zip(new, second):
        assert plane.dtype == layout.dtype and np.array_equal(plane, end)
