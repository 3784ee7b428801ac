"""The exchanges of a compiled call are those that `models.traffic` derives, and no others."""

import collections
import dataclasses
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from mv2_jax import sharding
from mv2_jax.config import ControlNetConfig, MotionConfig, UNetConfig
from mv2_jax.models import traffic
from mv2_jax.models.backbone import denoise
from mv2_jax.models.controlnet import ControlNet
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context


class Case(NamedTuple):
    """`sizes`: data, fsdp, context, tensor; `lead`: R, B, T; `scope` of the norms."""

    sizes: tuple[int, ...]
    lead: tuple[int, ...]
    scope: str = "frame"
    levels: int = 1
    heads: int = 2
    control: bool = False  # a ControlNet beside the UNet
    training: bool = False  # the gradient of every parameter

    def __str__(self):
        return "-".join(f"{value}".replace(", ", ",") for value in self)


CASES = [
    Case((1, 2, 4, 1), (3, 2, 5), control=True),
    Case((1, 2, 2, 2), (1, 2, 8), "clip"),
]
SLOW = [
    Case((1, 2, 4, 1), (3, 2, 5), levels=2),
    Case((1, 4, 2, 1), (2, 1, 3), levels=2),
    Case((1, 8, 1, 1), (3, 3, 1), levels=2, control=True),  # tokens over eight devices
    Case((1, 2, 4, 1), (3, 1, 1), levels=2, heads=8, control=True),  # and eight heads
    Case((1, 4, 1, 2), (3, 3, 1), heads=8, training=True),
    Case((1, 2, 2, 2), (1, 2, 8), "clip", levels=2, control=True, training=True),
    Case((2, 4, 1, 1), (1, 1, 3), control=True, training=True),
]
LONG = [
    Case((1, 2, 2, 2), (1, 2, 8), "clip", levels=2, control=True),
    Case((1, 2, 4, 1), (1, 2, 5), levels=2, control=True, training=True),
]
CASES += [pytest.param(each, marks=pytest.mark.slow) for each in SLOW]
CASES += [pytest.param(each, marks=pytest.mark.long) for each in LONG]
KINDS = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1}


def measured(text):
    """{kind: bytes of the results on a device} in a compiled program."""
    found = collections.Counter()
    for line in text.splitlines():
        if "replica_groups={{0},{1}," in line:  # each by itself: nothing travels
            continue
        made = re.search(rf"= (.+?) ({'|'.join(KINDS)})\(", line)
        for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", made[1] if made else ""):
            numbers = [int(size) for size in sizes.split(",") if size]
            found[made[2]] += BYTES[kind] * math.prod(numbers)
    return dict(found)


def compare(derived, found):
    assert set(found) <= set(derived), f"exchanges that nobody asked for: {found} of {derived}"
    for kind, most in derived.items():
        # Copies of one array that XLA drops, or sums that it joins, are no harm.
        assert 0.99 * most <= found.get(kind, 0) <= most, f"{kind}: {found.get(kind)} of {most}"


def networks(case):
    """(UNet, ControlNet or None) of a case; tensor can split their norms' groups."""
    scope = case.scope
    motion = dataclasses.replace(
        tiny.MOTION, max_frames=8, norm_groups=8, norm_scope=scope, resnet_norm_scope=scope
    )
    body = dataclasses.replace(
        tiny.SPATIAL,
        channels=(16, 32)[: case.levels],
        transformers=(1, 1)[: case.levels],
        heads=(case.heads,) * case.levels,
        norm_groups=8,
    )
    unet = dataclasses.replace(body, motion=motion if case.lead[2] > 1 else None)
    return UNet(unet), ControlNet(ControlNetConfig(body, (4,))) if case.control else None


def program(case, planted=False):
    """(derived, measured) of a call of small networks."""
    net, control = networks(case)
    plane, lead = (5, 7), case.lead
    x = jax.ShapeDtypeStruct((*lead, *plane, 4), jnp.float32)
    t, text = (jax.ShapeDtypeStruct((*lead[:2], *more), jnp.float32) for more in ((), (6, 8)))
    shown = jax.ShapeDtypeStruct((*lead[:2], *plane, 3), jnp.float32)
    given = x, t, text, shown

    def shapes(key):
        x, t, text, shown = (jnp.zeros((1, *leaf.shape[2:])) for leaf in given)
        made = {"unet": net.init(key, x, t, Context(text))["params"]}
        if control:
            made["control"] = control.init(key, x, t, Context(text), shown)["params"]
        return made

    tree = jax.eval_shape(shapes, jax.random.key(0))

    def network(tree, *given):
        x, t, text, shown = (leaf.reshape(-1, *leaf.shape[2:]) for leaf in given)
        text, residuals = Context(text), None
        if control:
            residuals = control.apply({"params": tree["control"]}, x, t, text, shown)
        out = net.apply({"params": tree["unet"]}, x, t, text.replace(residuals=residuals))
        return out.reshape(*given[0].shape[:2], *out.shape[1:])

    mesh = sharding.make_mesh(*case.sizes)
    samples = sharding.fit(sharding.SAMPLES, lead[1], mesh)

    def network_on_mesh(tree, x, t, *told):
        return denoise(lambda tree, x, t, told: network(tree, x, t, *told), tree, x, t, told)

    def run(tree, *given):
        if case.training:  # the result's own gradient is given, as by a loss
            return jax.vjp(lambda tree: network_on_mesh(tree, *given), tree)[1](given[0])[0]
        out = network_on_mesh(tree, *given)
        if planted:
            out = jax.lax.with_sharding_constraint(out, P(None, None, "context"))
            out = jax.lax.with_sharding_constraint(jnp.sin(out), P(None, samples))
        return out

    def placed(leaf, spec):
        where = jax.sharding.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    where = sharding.shardings(tree, mesh)
    tree = jax.tree.map(lambda leaf, to: placed(leaf, to.spec), tree, where)
    with jax.set_mesh(mesh):
        options = {"xla_backend_optimization_level": 0}
        back = where if case.training else None
        jitted = jax.jit(run, compiler_options=options, out_shardings=back)
        made = jitted.lower(tree, *(placed(leaf, P(None, samples)) for leaf in given))
        made = made.compile().as_text()
    derived = collections.Counter()
    for of, part in ((traffic.of_unet, net), (traffic.of_control, control)):
        if part:
            own = tree["unet" if part is net else "control"]
            derived.update(of(part.cfg, own, x.shape, mesh, training=case.training))
    return dict(derived), measured(made)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_compiled_call_sends_what_is_derived_from_sizes_and_mesh(case):
    compare(*program(case))


def test_an_exchange_that_nobody_derived_is_seen():
    derived, found = program(Case((1, 1, 8, 1), (1, 1, 8)), planted=True)
    with pytest.raises(AssertionError, match="all-gather"):
        compare(derived, found)


def test_the_papers_step_over_frames_moves_activations_by_all_to_all_alone():
    """I2V's UNet, 32 frames of 75 x 75, three rows, bf16, on eight devices."""
    cfg = UNetConfig(motion=MotionConfig())
    mesh = jax.sharding.AbstractMesh((1, 1, 8, 1), sharding.AXES)
    sent = traffic.of_unet(cfg, {}, (3, 1, 32, 75, 75, 4), mesh, itemsize=2)
    assert set(sent) == {"all-to-all", "all-gather"}
    assert sent["all-gather"] == 3 * 32 * 75 * 75 * 4 * 4  # the latents
    assert sent["all-to-all"] < 0.8e9
