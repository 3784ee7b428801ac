"""What the compiler is told, by platform, version and width; and that it is told it."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from mv2_jax import compiler
from mv2_jax.bundle import read
from mv2_jax.infer.kept import Kept
from mv2_jax.programs import Programs

MEASURED = "0.10.2"


def kernel(i, o, side=3):
    return {"conv": {"kernel": jax.ShapeDtypeStruct((side, side, i, o), jnp.float32)}}


@pytest.mark.parametrize(
    "tree, wide",
    [
        (kernel(640, 640), True),
        (kernel(512, 512), False),
        (kernel(4, 1280), False),  # a first layer
        (kernel(3, 1280, 14), False),  # a patch embedding
        (kernel(1280, 1280, 1), False),  # a matrix product
        ({"dense": jax.ShapeDtypeStruct((1280, 1280), jnp.float32)}, False),
        ({"narrow": kernel(64, 64), "wide": kernel(960, 640)}, True),
        ({}, False),
    ],
)
def test_options_go_by_width(tree, wide):
    assert bool(compiler.options((tree,), "cpu", MEASURED)) == wide


def test_other_platforms_and_versions_are_left_as_they_are():
    for platform, version in (("tpu", MEASURED), ("gpu", MEASURED), ("cpu", "0.11.0")):
        assert compiler.options((kernel(640, 640),), platform, version) == {}


def test_the_shipped_networks_are_compiled_as_before():
    from mv2_jax import cascade

    assert compiler.width(cascade.load(read()).params) < compiler.WIDE


@pytest.fixture
def convolve():
    @jax.jit
    def function(params, x):
        form = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, params, (1, 1), "SAME", dimension_numbers=form)
        return x.sum(-1)

    return function


@pytest.mark.skipif(jaxlib.__version__ != MEASURED, reason="the options are this jaxlib's")
def test_a_wide_program_has_its_options_and_the_same_sums(convolve, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s, np.float32) for s in ((1, 5, 7, 640), (3, 3, 640, 640)))
    told = []
    compiled = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered,
        "compile",
        lambda self, compiler_options=None: (
            told.append(compiler_options) or compiled(self, compiler_options=compiler_options)
        ),
    )
    plain = convolve(w, x)
    for programs in (Programs(), Programs(Kept(tmp_path))):
        made = programs("t2i", convolve, w, x)
        # 5760 products of unit normals, summed 640 times: about 2e3 large.
        np.testing.assert_allclose(made, plain, atol=2e-5 * np.abs(plain).max(), rtol=0)
    programs("t2i", convolve, w[..., :8], x)
    eigen = compiler.options(w, "cpu", MEASURED)
    assert eigen and told == [eigen, eigen, {}]


def test_other_options_are_another_kept_program(convolve, tmp_path):
    name = partial(Kept(tmp_path).name, convolve, {}, (None, ()))
    assert len({name({}), name({"a": "1"}), name({"a": "2"})}) == 3


def test_programs_within_a_trace_are_a_part_of_it():
    programs, double = Programs(), jax.jit(lambda x: 2 * x**2)
    assert float(jax.grad(lambda x: programs("t2i", double, x))(3.0)) == 12.0
