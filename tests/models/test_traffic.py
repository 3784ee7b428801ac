"""The exchanges of a compiled call are those that `models.traffic` derives, and no others."""

import collections
import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from mv2_jax import sharding
from mv2_jax.config import MotionConfig, UNetConfig
from mv2_jax.models import traffic
from mv2_jax.models.backbone import denoise
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context

# (data, fsdp, context, tensor), (R, B, T), the norms' scope, levels.
CASES = [
    ((1, 2, 4, 1), (3, 2, 5), "frame", 1),
    ((1, 2, 2, 2), (1, 2, 8), "clip", 1),
    pytest.param((1, 2, 4, 1), (3, 2, 5), "frame", 2, marks=pytest.mark.slow),
    pytest.param((1, 4, 2, 1), (2, 1, 3), "frame", 2, marks=pytest.mark.slow),
    pytest.param((1, 8, 1, 1), (3, 3, 1), "frame", 2, marks=pytest.mark.slow),
    pytest.param((1, 2, 2, 2), (1, 2, 8), "clip", 2, marks=pytest.mark.slow),
]
KINDS = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1}


def measured(text):
    """{kind: bytes of the results on a device} in a compiled program."""
    found = collections.Counter()
    for line in text.splitlines():
        made = re.search(rf"= (.+?) ({'|'.join(KINDS)})\(", line)
        for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", made[1] if made else ""):
            numbers = [int(size) for size in sizes.split(",") if size]
            found[made[2]] += BYTES[kind] * math.prod(numbers)
    return dict(found)


def compare(derived, found):
    assert set(found) <= set(derived), f"exchanges that nobody asked for: {found} of {derived}"
    for kind, most in derived.items():
        # Copies of one array that XLA drops, or sums that it joins, are no harm.
        assert 0.9 * most <= found.get(kind, 0) <= most, f"{kind}: {found.get(kind)} of {most}"


def program(sizes, lead, scope, levels, planted=False):
    """(derived, measured) of a call of a small UNet."""
    motion = dataclasses.replace(
        tiny.MOTION, max_frames=8, norm_groups=8, norm_scope=scope, resnet_norm_scope=scope
    )
    cfg = dataclasses.replace(
        tiny.SPATIAL,
        channels=(16, 32)[:levels],
        transformers=(1, 1)[:levels],
        heads=(2, 2)[:levels],
        norm_groups=8,  # which tensor can split
        motion=motion if lead[2] > 1 else None,
    )
    net, plane = UNet(cfg), (5, 7)
    x = jax.ShapeDtypeStruct((*lead, *plane, 4), jnp.float32)
    t, text = (jax.ShapeDtypeStruct((*lead[:2], *more), jnp.float32) for more in ((), (6, 8)))
    one = [jnp.zeros((1, *leaf.shape[2:])) for leaf in (x, t, text)]
    tree = jax.eval_shape(net.init, jax.random.key(0), *one[:2], Context(one[2]))["params"]

    def network(tree, *given):
        x, t, text = (leaf.reshape(-1, *leaf.shape[2:]) for leaf in given)
        out = net.apply({"params": tree}, x, t, Context(text))
        return out.reshape(*given[0].shape[:2], *out.shape[1:])

    mesh = sharding.make_mesh(*sizes)
    samples = sharding.fit(sharding.SAMPLES, lead[1], mesh)

    def run(tree, *given):
        out = denoise(network, tree, *given)
        if planted:
            out = jax.lax.with_sharding_constraint(out, P(None, None, "context"))
            out = jax.lax.with_sharding_constraint(jnp.sin(out), P(None, samples))
        return out

    def placed(leaf, spec):
        where = jax.sharding.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    specs = sharding.shardings(tree, mesh)
    where = jax.tree.map(lambda leaf, to: placed(leaf, to.spec), tree, specs)
    given = [placed(leaf, P(None, samples)) for leaf in (x, t, text)]
    with jax.set_mesh(mesh):
        options = {"xla_backend_optimization_level": 0}
        text = jax.jit(run, compiler_options=options).lower(where, *given).compile().as_text()
    return traffic.of_unet(cfg, tree, x.shape, mesh), measured(text)


@pytest.mark.parametrize("sizes, lead, scope, levels", CASES)
def test_a_compiled_call_sends_what_is_derived_from_sizes_and_mesh(sizes, lead, scope, levels):
    compare(*program(sizes, lead, scope, levels))


def test_an_exchange_that_nobody_derived_is_seen():
    derived, found = program((1, 1, 8, 1), (1, 1, 8), "frame", 1, planted=True)
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
