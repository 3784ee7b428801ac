"""The sharding table against every full-size network, and sharded against unsharded runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from quick import quick

from mv2_jax import config, params, sharding
from mv2_jax.config import ImageProjectionConfig, MotionConfig, UNetConfig
from mv2_jax.models.backbone import denoise
from mv2_jax.models.clip_text import TextEncoder
from mv2_jax.models.clip_vision import VisionEncoder
from mv2_jax.models.controlnet import ControlNet
from mv2_jax.models.discriminator import PatchCritic
from mv2_jax.models.gan_vfi import GANVFI
from mv2_jax.models.image_projection import ImageProjection
from mv2_jax.models.rife import RIFE
from mv2_jax.models.unet import UNet
from mv2_jax.models.vae import AutoencoderKL
from mv2_jax.nn.transformer import Context
from mv2_jax.toybox import judge

SDXL = UNetConfig(
    channels=(320, 640, 1280),
    transformers=(0, 2, 10),
    mid_transformers=10,
    heads=(5, 10, 20),
    context_width=2048,
    linear_projection=True,
    pooled_width=1280,
)
VIDEO = UNetConfig(motion=MotionConfig(mid_block=True), image_tokens=True)


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def full_size_networks():
    x, t = array(1, 2, 64, 64, 4), array(1)
    tokens = Context(array(1, 77, 768), array(1, 16, 768))
    sdxl = Context(array(1, 77, 2048), pooled=array(1, 1280), size_ids=array(1, 6))
    linear = ImageProjectionConfig(kind="linear", in_width=1024, tokens=4)
    return {
        "text": (TextEncoder(config.TextConfig(projection=768)), array(1, 77, dtype=jnp.int32)),
        "vision": (VisionEncoder(config.VisionConfig()), array(1, 224, 224, 3)),
        "resampler": (ImageProjection(ImageProjectionConfig()), array(1, 257, 1280)),
        "linear projection": (ImageProjection(linear), array(1, 1024)),
        "vae": (AutoencoderKL(config.VAEConfig()), array(1, 64, 64, 3)),
        "unet": (UNet(VIDEO), x, t, tokens),
        "sdxl": (UNet(SDXL), x, t, sdxl),
        "control": (
            ControlNet(config.ControlNetConfig()),
            x,
            t,
            Context(array(1, 77, 768)),
            array(1, 512, 512, 3),
        ),
        "rife": (RIFE(config.RIFEConfig()), array(1, 64, 64, 3), array(1, 64, 64, 3), array(1, 1)),
    }


def interpolator():
    """What `mv2 train toybox/vfi` trains."""
    cfg = config.GANVFIConfig()
    image = array(1, cfg.pad_to, cfg.pad_to, 3)
    made = {
        "gan": (GANVFI(cfg), image, image, image, array(1)),
        "critic": (PatchCritic(), image),
    }
    return {
        name: jax.eval_shape(network.init, jax.random.key(0), *args)["params"]
        for name, (network, *args) in made.items()
    }


@functools.cache
def abstract_trees():
    out = {}
    for name, (network, *args) in full_size_networks().items():
        init = getattr(network, "init", network)
        out[name] = jax.eval_shape(init, jax.random.key(0), *args)["params"]
    out["interpolator"] = interpolator()
    out["judge"] = jax.eval_shape(
        functools.partial(judge.init, config.JudgeConfig()), jax.random.key(0)
    )
    out["lora"] = {"attn2": {"to_q": {"kernel": {"down": array(320, 4), "up": array(4, 320)}}}}
    return out


@functools.cache
def all_leaves():
    return {
        (name, path): leaf
        for name, tree in abstract_trees().items()
        for path, leaf in params.flatten(tree).items()
    }


def mesh_of(*sizes):
    return sharding.make_mesh(*sizes)


def test_every_parameter_of_every_network_matches_exactly_one_rule():
    wrong = {
        key: [sharding.RULES[i][0] for i in found]
        for key in all_leaves()
        if len(found := sharding.matching(key[1])) != 1
    }
    assert not wrong


def test_no_rule_is_dead_and_every_rule_has_its_parameters_rank():
    used = set()
    for (_, path), leaf in all_leaves().items():
        used.update(sharding.matching(path))
        sharding.spec_for(path, leaf.shape)
    dead = [rule for i, (rule, _) in enumerate(sharding.RULES) if i not in used]
    assert not dead


def test_large_parameters_are_split_over_fsdp_and_pairs_over_tensor():
    mesh = mesh_of(1, 4, 1, 2)
    whole = 0
    for (name, path), leaf in all_leaves().items():
        axes = {a for a in sharding.spec_for(path, leaf.shape, mesh) if a}
        if name not in ("rife", "interpolator", "judge") and leaf.size >= 2**19:
            assert "fsdp" in axes, (name, path)
        whole += leaf.size if not axes else 0
    assert whole < 0.01 * sum(leaf.size for leaf in all_leaves().values())
    spec = functools.partial(sharding.spec_for, shape=(320, 320))
    assert spec("a/attn1/to_q/kernel") == P("fsdp", "tensor")
    assert spec("a/attn1/to_out_0/kernel") == P("tensor", "fsdp")


def test_paths_may_carry_a_prefix_and_scalars_are_whole():
    path = "down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel"
    assert sharding.spec_for(f"mu/{path}", (4, 4)) == sharding.spec_for(path, (4, 4))
    assert sharding.spec_for("count", ()) == P()


def test_axes_that_do_not_divide_are_left_out():
    mesh = mesh_of(2, 2, 1, 2)
    assert sharding.fit(("data", "fsdp"), 8, mesh) == ("data", "fsdp")
    assert sharding.fit(("data", "fsdp"), 6, mesh) == "data"
    assert sharding.fit(("data", "fsdp"), 3, mesh) is None
    assert sharding.fit("context", 8, mesh) is None  # of size 1
    # Three samples of four frames: the frames alone divide, into more parts than fsdp would.
    assert sharding.fit(sharding.FRAMES, 12, mesh_of(1, 2, 4, 1)) == "context"
    assert sharding.spec_for("conv_in/kernel", (3, 3, 4, 7), mesh) == P(None, None, None, None)


def test_unmatched_parameters_are_all_listed():
    tree = {"a": {"frobnicate": array(2, 2)}, "b": {"wibble": array(3)}, "n": {"scale": array(3)}}
    with pytest.raises(ValueError, match="2 parameters") as error:
        sharding.shardings(tree, mesh_of(8))
    assert "a/frobnicate" in str(error.value) and "b/wibble" in str(error.value)
    assert "n/scale" not in str(error.value)
    with pytest.raises(ValueError, match="for 4 dimensions"):
        sharding.spec_for("conv_in/kernel", (3, 4))


def test_meshes_and_axes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="needs 6 devices; there are 8"):
        sharding.make_mesh(data=2, fsdp=3)
    with pytest.raises(ValueError, match="did you mean 'tensor'"):
        sharding.constrain(jnp.ones(3), "tensors")
    with pytest.raises(ValueError, match="2 axes"):
        sharding.constrain(jnp.ones(3), "data", "fsdp")


def test_constrain_splits_under_a_mesh_and_does_nothing_without():
    x = jnp.ones((4, 6))
    assert sharding.constrain(x, "data") is x
    with jax.set_mesh(mesh_of(2, 1, 2, 2)):
        y = jax.jit(lambda x: sharding.constrain(x, sharding.FRAMES, "tensor"))(x)
    assert y.sharding.spec == P(("data", "context"), "tensor")


TINY = UNetConfig(
    channels=(16, 16),
    layers_per_block=1,
    transformers=(1, 0),
    heads=(2, 2),
    context_width=12,
    norm_groups=4,
    motion=MotionConfig(max_frames=4, heads=2, norm_groups=4),
    image_tokens=True,
)


@functools.cache
def tiny_unet():
    """Random parameters, none of them zero, and inputs."""
    k = iter(jax.random.split(jax.random.key(0), 8))
    x = jax.random.normal(next(k), (2, 4, 6, 6, 4))
    context = Context(
        jax.random.normal(next(k), (2, 5, 12)), jax.random.normal(next(k), (2, 3, 12))
    )
    inputs = {"x": x, "t": jnp.array([10.0, 600.0]), "context": context}
    abstract = jax.eval_shape(UNet(TINY).init, next(k), *inputs.values())["params"]
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = 0.5 / max(1, leaf.size // leaf.shape[-1]) ** 0.5
        return rng.normal(size=leaf.shape, scale=scale).astype(np.float32)

    return jax.tree.map(draw, abstract), inputs


def forward(tree, inputs):
    def network(tree, x, t, told):
        rows, flat = x.shape[:2], jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (x, t, told))
        out = UNet(TINY).apply({"params": tree}, *flat[:2], Context(*flat[2]))
        return out.reshape(*rows, *out.shape[1:])

    context = inputs["context"]
    given = inputs["x"], inputs["t"], (context.text, context.image)
    return denoise(network, tree, *jax.tree.map(lambda leaf: leaf[None], given))[0]


def gradients(tree, inputs):
    return jax.grad(lambda tree: jnp.mean(forward(tree, inputs) ** 2))(tree)


@functools.cache
def unsharded(function):
    return jax.device_get(quick(function)(*tiny_unet()))


@pytest.mark.parametrize(
    "function, sizes",
    [
        (forward, (2, 2, 1, 2)),
        (forward, (1, 1, 4, 2)),
        pytest.param(forward, (8, 1, 1, 1), marks=pytest.mark.slow),
        pytest.param(gradients, (2, 2, 1, 2), marks=pytest.mark.slow),
        pytest.param(gradients, (1, 1, 4, 2), marks=pytest.mark.slow),
        pytest.param(gradients, (1, 8, 1, 1), marks=pytest.mark.slow),
    ],
)
def test_a_sharded_unet_equals_the_unsharded_one(function, sizes):
    tree, inputs = tiny_unet()
    mesh = mesh_of(*sizes)
    with jax.set_mesh(mesh):
        placed = sharding.shard_params(tree, mesh)
        got = quick(function)(placed, sharding.shard_batch(inputs, mesh))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(unsharded(function)), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * max(np.abs(b).max(), 1e-3)


def test_a_network_outside_of_a_program_per_device_is_refused_under_a_mesh():
    tree, inputs = tiny_unet()
    with jax.set_mesh(mesh_of(8)), pytest.raises(ValueError, match=r"backbone\.denoise"):
        jax.eval_shape(UNet(TINY).apply, {"params": tree}, *inputs.values())
