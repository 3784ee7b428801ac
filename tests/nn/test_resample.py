"""Bicubic matrices against torch's interpolation."""

import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.nn.resample import apply_columns, apply_rows, cubic_matrix

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("a", "antialias"), [(-0.75, False), (-0.5, True)])
@pytest.mark.parametrize("target", [(4, 9), (7, 7), (19, 13), (31, 5)])
def test_equals_torch(a, antialias, target):
    x = np.random.default_rng(0).normal(size=(2, 19, 13, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), target, mode="bicubic", antialias=antialias
    )
    rows, columns = (
        cubic_matrix(n, to, a=a, antialias=antialias) for n, to in zip((19, 13), target)
    )
    got = apply_columns(columns, apply_rows(rows, jnp.asarray(x)))
    # measured: 3.5e-6, since torch places its samples in fp32 and the matrices are made in fp64
    np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1), atol=1e-5)


def test_constants_stay_and_equal_sizes_are_the_identity():
    for antialias in (False, True):
        matrix = cubic_matrix(13, 5, antialias=antialias)
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
        np.testing.assert_allclose(cubic_matrix(9, 9, antialias=antialias), np.eye(9), atol=1e-12)
