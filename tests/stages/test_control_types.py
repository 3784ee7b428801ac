"""A ControlNet Union is told what its picture shows, by a number that compiles nothing new."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import numbers, sharding
from mv2_jax.config import ControlNetConfig, ScheduleConfig, StageConfig, TextConfig, UNetConfig
from mv2_jax.convert import param_shapes
from mv2_jax.errors import InputError
from mv2_jax.nn.transformer import Context
from mv2_jax.params import flatten
from mv2_jax.stages import controls, idle, stage

TEXT = TextConfig(
    vocab_size=20, max_length=6, width=8, layers=2, heads=2, mlp_width=16, eos_token_id=3
)
UNET = UNetConfig(
    channels=(8,), layers_per_block=1, transformers=(1,), heads=(2,), context_width=8, norm_groups=4
)
STAGE = StageConfig(UNET, ScheduleConfig(), (24, 40), frames=3, steps=2, conditions=("control",))
NET = ControlNetConfig(UNET, (8, 8), 4, types=8, type_layers=1)


def built(net):
    return stage.build("i2v", STAGE, {"text_encoder": TEXT, "control": net}, 8)


UNION = built(NET)


def told(cfg, **changes):
    found = controls.inputs(cfg, dataclasses.replace(numbers.I2V(), **changes), 2)
    return {name: value for name, value in found.items() if name.startswith("control")}


def test_what_is_said_reaches_the_network():
    condition, rng, runs = UNION.condition("control"), np.random.default_rng(0), []
    x, t = jnp.ones((2, 3, 3, 5, 4)), jnp.float32([999, 7])
    context = Context(jnp.asarray(rng.normal(size=(2, 6, 8)), jnp.float32))
    image = jnp.asarray(rng.uniform(-1, 1, (2, 24, 40, 3)), jnp.float32)
    init = lambda key: condition.init(UNION, key, x, t, context, {})  # noqa: E731
    shapes = jax.eval_shape(init, jax.random.key(0))
    params = jax.tree.map(lambda a: 0.2 * rng.standard_normal(a.shape, np.float32), shapes)

    @jax.jit
    def residual(inputs):
        runs.append(1)
        given, _ = condition.encode(params, UNION, {"image": image, **inputs})
        return condition.feed(params, UNION, given, x, t, context).residuals[1]

    tile, depth, again = (residual(told(UNION, control_type=w)) for w in ("tile", "depth", "tile"))
    assert len(runs) == 1
    np.testing.assert_array_equal(tile, again)
    assert np.abs(np.asarray(tile - depth)).max() > 1e-3
    np.testing.assert_array_equal(tile, residual(told(UNION)))  # tile, where nothing is said


def test_what_it_does_not_know_is_named():
    six = built(dataclasses.replace(NET, types=6))
    with pytest.raises(InputError, match="control_type is tile; this ControlNet Union knows open"):
        told(six)
    assert told(six, control_type="canny")["control_type"] == 3
    with pytest.raises(InputError, match="unknown 'scribbles'"):
        numbers.changed("i2v", numbers.I2V(), {"control_type": "scribbles"})


def test_a_plain_controlnet_is_told_nothing():
    plain = built(dataclasses.replace(NET, types=0, type_layers=0))
    assert "control_type" not in told(plain)
    assert "no ControlNet Union" in idle.numbers(plain)["control_type"]
    assert "control_type" not in idle.numbers(UNION)


def test_every_parameter_has_one_place_on_a_mesh():
    shapes = flatten(param_shapes.controlnet(NET))
    assert any(path.startswith("transformer_layes_0/") for path in shapes)
    for path, leaf in shapes.items():
        found = [axes for pattern, axes in sharding.RULES if re.search(pattern, path)]
        assert len(found) == 1 and len(found[0]) in (0, len(leaf.shape)), path
