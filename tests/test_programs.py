from functools import partial

import jax
import jax.numpy as jnp

from mv2_jax.programs import Programs


def test_compilation_is_reported_once_a_shape_and_static_argument():
    traces = []

    @partial(jax.jit, static_argnames="power")
    def function(tree, scale, power):
        traces.append(power)
        return tree["x"] ** power * scale

    reports = []
    programs = Programs()

    def call(x, scale, power):
        return programs(
            "i2v", function, {"x": x}, scale, power=power, progress=lambda *r: reports.append(r)
        )

    assert call(jnp.arange(3.0), 2.0, power=2).tolist() == [0.0, 2.0, 8.0]
    assert reports == [("compiling i2v", 0, 1), ("compiling i2v", 1, 1)]
    # Numbers that vary from call to call compile nothing.
    assert call(jnp.arange(3.0), 3.0, power=2).tolist() == [0.0, 3.0, 12.0]
    assert len(reports) == 2 and len(traces) == 1
    call(jnp.arange(3.0), 3.0, power=3)
    call(jnp.arange(4.0), 3.0, power=3)
    call(jnp.arange(4), 3.0, power=3)
    assert len(reports) == 8 and len(traces) == 4


def test_what_one_call_gave_the_next_takes_without_compiling():
    reports, programs = [], Programs()
    step = jax.jit(lambda tree, x: x * tree["w"])
    tree = jax.device_put(
        {"w": jnp.float32(2.0)}, jax.devices()[0]
    )  # committed, and so its product
    x = jnp.float32(1.0)
    for _ in range(3):
        x = programs("t2i", step, tree, x, progress=lambda *r: reports.append(r))
    assert float(x) == 8.0 and reports == [("compiling t2i", 0, 1), ("compiling t2i", 1, 1)]
