"""Motion modules against diffusers (norms over the clip) and against the original's arithmetic."""

import jax
import numpy as np
import pytest

from mv2_jax.config import MotionConfig, UNetConfig
from mv2_jax.convert.engine import export
from mv2_jax.convert.tables import motion as motion_table
from mv2_jax.convert.tables import unet as unet_table
from mv2_jax.models.unet import UNet
from mv2_jax.nn.motion import MotionModule, sinusoid_table
from mv2_jax.nn.transformer import Context
from mv2_jax.params import flatten, merge, split

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 5e-6
V2 = MotionConfig(max_frames=32, heads=2, mid_block=True, norm_groups=8, norm_scope="clip")
V3 = MotionConfig(max_frames=32, heads=2, mid_block=False, norm_groups=8, norm_scope="clip")


def unet_config(motion):
    return UNetConfig(
        channels=(16, 32),
        layers_per_block=1,
        transformers=(1, 0),
        heads=(2, 2),
        context_width=20,
        norm_groups=8,
        motion=motion,
    )


def build(parity, cfg):
    """diffusers' motion UNet and the MotionAdapter that it was assembled from, both random."""
    spatial = diffusers.UNet2DConditionModel(
        block_out_channels=cfg.channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=cfg.layers_per_block,
        attention_head_dim=cfg.heads,
        cross_attention_dim=cfg.context_width,
        norm_num_groups=cfg.norm_groups,
    )
    adapter = diffusers.MotionAdapter(
        block_out_channels=cfg.channels,
        motion_layers_per_block=cfg.layers_per_block,
        motion_num_attention_heads=cfg.motion.heads,
        motion_norm_num_groups=cfg.motion.norm_groups,
        motion_max_seq_length=cfg.motion.max_frames,
        use_motion_mid_block=cfg.motion.mid_block,
    )
    parity.randomise(spatial, 0), parity.randomise(adapter, 1)
    video = diffusers.UNetMotionModel.from_unet2d(spatial, adapter).eval()
    return spatial, adapter, video


def assemble(parity, cfg, spatial, adapter):
    """Our video UNet with each tree converted from its own checkpoint, then merged."""
    ours = UNet(cfg)
    x, t = np.zeros((1, 2, 8, 8, 4), np.float32), np.zeros(1, np.int32)
    target = parity.shapes(ours, x, t, Context(np.zeros((1, 7, cfg.context_width), np.float32)))
    motion, rest = split(target, lambda name: "motion_modules_" in name)
    motion = parity.convert(adapter.state_dict(), motion_table.diffusers(), motion)
    rest = parity.convert(spatial.state_dict(), unet_table.rules(cfg), rest)
    return ours, motion, rest


@pytest.mark.parametrize(
    "motion, batch, frames, plane",
    [(V2, 1, 3, (9, 7)), (V3, 3, 5, (6, 5)), (V3, 1, 1, (6, 5))],
    ids=["v2", "v3", "v3-one-frame"],
)
def test_video_unet_in_diffusers_scope(parity, motion, batch, frames, plane):
    cfg = unet_config(motion)
    spatial, adapter, video = build(parity, cfg)
    ours, motion_tree, spatial_tree = assemble(parity, cfg, spatial, adapter)
    x = parity.noise(batch, frames, *plane, 4)
    t = np.array([999, 7, 500], np.int32)[:batch]
    text = parity.noise(batch, 7, cfg.context_width, seed=2)
    with torch.no_grad():
        expected = video(
            torch.from_numpy(x).permute(0, 4, 1, 2, 3),
            torch.from_numpy(t),
            torch.from_numpy(text).repeat_interleave(frames, 0),
        ).sample.transpose(1, 2)
    apply = parity.jit(lambda p, x, t, text: ours.apply({"params": p}, x, t, Context(text)))
    got = apply(merge(motion_tree, spatial_tree), x, t, text)
    assert parity.error(got, parity.channels_last(expected)) < TOLERANCE


def test_both_layouts_hold_the_same_module(parity):
    """diffusers' keys renamed to the original's convert to equal trees, and export back."""
    cfg = unet_config(V2)
    _, adapter, _ = build(parity, cfg)
    state = adapter.state_dict()
    original = {}
    for key, tensor in state.items():
        names = as_original(key)
        original.update(dict.fromkeys(names, tensor))
    target = parity.shapes(
        UNet(cfg),
        np.zeros((1, 2, 8, 8, 4), np.float32),
        np.zeros(1, np.int32),
        Context(np.zeros((1, 7, cfg.context_width), np.float32)),
    )
    target, _ = split(target, lambda name: "motion_modules_" in name)
    from_diffusers = parity.convert(state, motion_table.diffusers(), target)
    from_original = parity.convert(original, motion_table.original(), target)
    jax.tree.map(np.testing.assert_array_equal, from_original, from_diffusers)
    parity.same_state(export(from_diffusers, motion_table.diffusers()), state)
    parity.same_state(export(from_original, motion_table.original()), original)

    without = {key: tensor for key, tensor in original.items() if not key.endswith(".pe")}
    made = flatten(parity.convert(without, motion_table.original(stored_positions=False), target))
    pe = "down_blocks_1/motion_modules_0/transformer_blocks_0/attn2/pe"
    np.testing.assert_array_equal(made[pe], sinusoid_table(32, 32))


def as_original(key):
    """The AnimateDiff repository's name (two for the shared positions) of diffusers' name."""
    key = key.replace(".motion_modules.0.", ".motion_modules.0.temporal_transformer.")
    key = key.replace(".motion_modules.1.", ".motion_modules.1.temporal_transformer.")
    if "pos_embed" in key:
        return [key.replace("pos_embed", f"attention_blocks.{n}.pos_encoder") for n in range(2)]
    for ours, theirs in {
        "attn1": "attention_blocks.0",
        "attn2": "attention_blocks.1",
        ".norm1.": ".norms.0.",
        ".norm2.": ".norms.1.",
        ".norm3.": ".ff_norm.",
    }.items():
        key = key.replace(ours, theirs)
    return [key]


def reference_frame_scope(state, x, heads, groups):
    """AnimateDiff's module written out in torch, its norm over each frame alone.

    `state` is one module of diffusers' layout; x [B, T, H, W, C].
    """
    functional = torch.nn.functional
    b, t, h, w, c = x.shape

    def layer_norm(y, n):
        norm = f"transformer_blocks.0.norm{n}"
        return functional.layer_norm(y, (c,), state[f"{norm}.weight"], state[f"{norm}.bias"])

    def linear(y, name):
        return functional.linear(y, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def attention(y, name):
        q, k, v = (
            linear(y, f"{name}.to_{n}").unflatten(-1, (heads, c // heads)).transpose(1, 2)
            for n in "qkv"
        )
        weights = (q @ k.transpose(-1, -2) * (c // heads) ** -0.5).softmax(-1)
        return linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.to_out.0")

    frames = x.permute(0, 1, 4, 2, 3).reshape(b * t, c, h, w)
    y = functional.group_norm(frames, groups, state["norm.weight"], state["norm.bias"], 1e-6)
    y = y.reshape(b, t, c, h, w).permute(0, 3, 4, 1, 2).reshape(b * h * w, t, c)
    y = linear(y, "proj_in")
    pe = state["transformer_blocks.0.pos_embed.pe"][:, :t]
    for n in (1, 2):
        y = y + attention(layer_norm(y, n) + pe, f"transformer_blocks.0.attn{n}")
    value, gate = linear(layer_norm(y, 3), "transformer_blocks.0.ff.net.0.proj").chunk(2, -1)
    y = y + linear(value * functional.gelu(gate), "transformer_blocks.0.ff.net.2")
    y = linear(y, "proj_out").reshape(b, h, w, t, c).permute(0, 3, 1, 2, 4)
    return x + y


@pytest.mark.parametrize("batch, frames, plane", [(1, 4, (19, 13)), (3, 5, (3, 2))])
def test_frame_scope(parity, batch, frames, plane):
    cfg = MotionConfig(heads=2, norm_groups=8)
    adapter = parity.randomise(
        diffusers.MotionAdapter(
            block_out_channels=(16,),
            motion_layers_per_block=1,
            motion_num_attention_heads=2,
            motion_norm_num_groups=8,
            use_motion_mid_block=False,
        )
    )
    prefix = "down_blocks.0.motion_modules.0."
    state = {
        key.removeprefix(prefix): tensor
        for key, tensor in adapter.state_dict().items()
        if key.startswith(prefix)
    }
    x = parity.noise(batch, frames, *plane, 16)
    # Frames of different spread, so that the scope of the norm matters.
    x *= np.linspace(0.3, 3.0, frames, dtype=np.float32)[None, :, None, None, None]
    ours = MotionModule(cfg)
    whole = {"down_blocks_0": {"motion_modules_0": parity.shapes(ours, x)}}
    tree = parity.convert(
        {prefix + k: v for k, v in state.items()}, motion_table.diffusers(), whole
    )
    params = tree["down_blocks_0"]["motion_modules_0"]
    expected = reference_frame_scope(state, torch.from_numpy(x), 2, 8)
    got = parity.jit(lambda p, x: ours.apply({"params": p}, x))(params, x)
    assert parity.error(got, expected) < TOLERANCE
    clip = MotionModule(MotionConfig(heads=2, norm_groups=8, norm_scope="clip"))
    other = parity.jit(lambda p, x: clip.apply({"params": p}, x))(params, x)
    assert parity.error(other, expected) > 100 * TOLERANCE


@pytest.mark.parametrize("frames", [1, 4])
def test_a_fresh_module_is_the_identity(parity, frames):
    ours = MotionModule(MotionConfig(heads=2, norm_groups=8))
    x = parity.noise(2, frames, 5, 3, 16)
    params = ours.init(jax.random.key(0), x)
    np.testing.assert_array_equal(ours.apply(params, x), x)


def test_more_frames_than_positions_is_an_error(parity):
    ours = MotionModule(MotionConfig(max_frames=4, heads=2, norm_groups=8))
    with pytest.raises(ValueError, match="5 frames, but this motion module knows 4 positions"):
        ours.init(jax.random.key(0), parity.noise(1, 5, 2, 2, 16))
