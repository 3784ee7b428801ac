"""Changes of size equal torch's interpolate, also where only part of the result is made."""

import numpy as np
import pytest

from mv2_jax.nn.bilinear import enlarge, enlarge_at, middle, reduce

torch = pytest.importorskip("torch")


def _oracle(x: np.ndarray, factor: float) -> np.ndarray:
    out = torch.nn.functional.interpolate(
        torch.tensor(x).permute(0, 3, 1, 2), scale_factor=factor, mode="bilinear"
    )
    return out.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("scale", [1, 2, 4, 16])
def test_sizes_change_as_torchs(scale):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    large = _oracle(x, scale)
    np.testing.assert_allclose(enlarge(x, scale), large, atol=2e-6)
    np.testing.assert_allclose(reduce(large, scale), _oracle(large, 1 / scale), atol=1e-6)


def test_a_single_pixel_is_flat():
    np.testing.assert_allclose(enlarge(np.full((1, 1, 1, 2), 3, np.float32), 4), 3)


def test_a_part_equals_that_part_of_the_whole():
    x = np.random.default_rng(1).normal(size=(1, 3, 2, 4)).astype(np.float32)
    inside = np.array([p + cell for cell in (0, 4) for p in middle(4)])
    rows = (np.arange(3)[:, None] * 8 + inside).reshape(-1)
    columns = (np.arange(2)[:, None] * 8 + inside).reshape(-1)
    part = enlarge_at(x, 8, inside)
    np.testing.assert_array_equal(part, np.asarray(enlarge(x, 8))[:, rows][:, :, columns])
