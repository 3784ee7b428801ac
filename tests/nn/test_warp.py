"""The warp reads what torch's grid_sample reads, wherever it is sent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.nn.warp import IMPLS, pixel_grid, sample, warp

torch = pytest.importorskip("torch")


def _oracle(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """grid_sample at pixel coordinates [B, h, w, 2], which it wants in [-1, 1]; in fp64."""
    height, width = image.shape[1:3]
    span = np.maximum(np.array([width - 1, height - 1], np.float64), 1)
    out = torch.nn.functional.grid_sample(
        torch.tensor(image.astype(np.float64)).permute(0, 3, 1, 2),
        torch.tensor(points.astype(np.float64) / span * 2 - 1),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return out.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("plane", [(19, 13), (8, 8), (1, 7), (6, 1)])
def test_equals_grid_sample_inside_and_outside(impl, plane):
    random = np.random.default_rng(0)
    image = random.normal(size=(3, *plane, 5)).astype(np.float32)
    points = random.uniform(-4, max(plane) + 4, size=(3, 11, 9, 2)).astype(np.float32)
    points[:, 0, 0] = 0  # corners and whole pixels exactly
    points[:, 0, 1] = plane[1] - 1, plane[0] - 1
    points[:, 0, 2] = plane[1] // 2, plane[0] // 2
    ours = jax.jit(sample, static_argnames="impl")(image, points, impl=impl)
    np.testing.assert_allclose(ours, _oracle(image, points), atol=2e-5)
    np.testing.assert_array_equal(ours[:, 0, 0], image[:, 0, 0])
    np.testing.assert_array_equal(ours[:, 0, 1], image[:, -1, -1])


@pytest.mark.parametrize("plane, channels", [((70, 90), 3), ((9, 130), 2)])
def test_tiles_equal_grid_sample_by_windows_and_by_gathers(plane, channels):
    """Smooth flows, large ones too, fit their windows; a torn one is gathered. All are exact."""
    random = np.random.default_rng(2)
    image = random.normal(size=(2, *plane, channels)).astype(np.float32)
    y, x = np.mgrid[: plane[0], : plane[1]].astype(np.float32)
    smooth = np.stack((40 + 6 * np.sin(y / 9), -25 + 5 * np.cos(x / 11)), -1)
    torn = np.where(x[..., None] > plane[1] // 3, smooth, -smooth)
    run = jax.jit(lambda i, f: warp(i, f, impl="tiles"))
    for flow in (smooth, torn, np.zeros_like(smooth)):
        flow = np.stack((flow, flow[::-1] * 0.3)).astype(np.float32)
        points = np.asarray(pixel_grid(*plane))[None] + flow
        np.testing.assert_allclose(run(image, flow), _oracle(image, points), atol=2e-5)
    np.testing.assert_array_equal(run(image, np.zeros_like(flow)), image)
    # Several grids of points an image, as an interpolator has one a time.
    points = np.stack((points, points + 0.25), 1)
    both = jax.jit(sample, static_argnames="impl")(image, points, impl="tiles")
    for k in range(2):
        np.testing.assert_allclose(both[:, k], _oracle(image, points[:, k]), atol=2e-5)


def test_flow_is_x_then_y_and_reads_backwards():
    image = np.arange(2 * 5 * 7, dtype=np.float32).reshape(2, 5, 7, 1)
    flow = np.zeros((2, 5, 7, 2), np.float32)
    flow[..., 0] = 2
    moved = np.asarray(warp(image, flow))
    np.testing.assert_array_equal(moved[:, :, :-2], image[:, :, 2:])
    np.testing.assert_array_equal(moved[:, :, -2:], image[:, :, -1:].repeat(2, axis=2))


def test_wide_planes_keep_their_fractions_in_half_precision():
    """bf16 coordinates would be whole pixels here; only the image may be in half precision."""
    image = jnp.broadcast_to(jnp.arange(600.0)[None, None, :, None], (1, 2, 600, 1)) / 600
    points = jnp.array([[[500.25, 0.0], [500.75, 1.0]]])
    np.testing.assert_allclose(sample(image, points)[0, :, 0] * 600, [500.25, 500.75], atol=1e-3)
    assert sample(image.astype(jnp.bfloat16), points).dtype == jnp.bfloat16
    zero = jnp.zeros((1, 2, 600, 2), jnp.bfloat16)
    np.testing.assert_array_equal(warp(image, zero), image)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_equal_torchs_and_nan_stays_inside(impl):
    random = np.random.default_rng(1)
    image = random.normal(size=(1, 6, 5, 2)).astype(np.float32)
    points = (np.asarray(pixel_grid(6, 5))[None] * 0.7 + 0.31).astype(np.float32)
    gradient = jax.grad(lambda i, p: (sample(i, p, impl=impl) ** 2).sum(), argnums=(0, 1))
    ours = jax.jit(gradient)(image, points)
    leaf_image = torch.tensor(image, requires_grad=True)
    leaf_points = torch.tensor(points, requires_grad=True)
    grid = leaf_points / torch.tensor([4.0, 5.0]) * 2 - 1
    out = torch.nn.functional.grid_sample(
        leaf_image.permute(0, 3, 1, 2), grid, padding_mode="border", align_corners=True
    )
    (out**2).sum().backward()
    np.testing.assert_allclose(ours[0], leaf_image.grad.numpy(), atol=1e-4)
    np.testing.assert_allclose(ours[1], leaf_points.grad.numpy(), atol=1e-4)

    read = jax.jit(sample, static_argnames="impl")
    broken = read(image, jnp.full((1, 1, 2), jnp.nan), impl=impl)
    assert np.isnan(broken).all()  # says so, rather than reading memory at random


def test_bad_arguments_say_what_is_wanted():
    image = jnp.zeros((1, 4, 4, 3))
    with pytest.raises(ValueError, match="same B"):
        sample(image, jnp.zeros((2, 5, 2)))
    with pytest.raises(ValueError, match="corners, quad, tiles"):
        sample(image, jnp.zeros((1, 5, 2)), impl="fast")


@pytest.mark.parametrize("impl", ["corners", "quad"])
def test_large_planes_in_parts_are_the_same(impl, monkeypatch):
    random = np.random.default_rng(0)
    image = random.normal(size=(2, 17, 13, 3)).astype(np.float32)
    points = random.uniform(-3, 20, (2, 17, 13, 2)).astype(np.float32)
    whole = sample(image, points, impl=impl)
    monkeypatch.setattr("mv2_jax.nn.warp._AT_ONCE", 50)  # 221 points: five parts, the last short
    np.testing.assert_array_equal(sample(image, points, impl=impl), whole)
