"""The versions of AnimateDiff's modules: what each normalises together, and SDXL's.

The reference is diffusers' video UNet with its group norms replaced by what each version's own
code does (guoyww/AnimateDiff: main for v1 to v3, its branch sdxl for SDXL).
"""

import dataclasses

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

TOLERANCE = 5e-6  # measured: up to 1.0e-6
V1 = MotionConfig(max_frames=24, heads=2, norm_groups=8, resnet_norm_scope="clip")
V2 = MotionConfig(heads=2, mid_block=True, norm_groups=8)
XL = MotionConfig(heads=2, norm_groups=8, norm_scope="clip")
SD15 = UNetConfig(
    channels=(16, 32),
    layers_per_block=1,
    transformers=(1, 0),
    heads=(2, 2),
    context_width=20,
    norm_groups=8,
)
SDXL = dataclasses.replace(
    SD15,
    channels=(16, 32, 32),
    transformers=(0, 1, 2),
    mid_transformers=2,
    heads=(2, 2, 4),
    linear_projection=True,
    pooled_width=12,
    size_ids_width=8,
)
SIZES = np.array([[1024, 768, 0, 16, 512, 640]], np.float32)


def build(parity, cfg):
    """diffusers' UNet and adapter, both random, and the video UNet of both."""
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in cfg.transformers]
    added = {}
    if cfg.pooled_width is not None:
        added = dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=cfg.size_ids_width,
            projection_class_embeddings_input_dim=cfg.pooled_width + 6 * cfg.size_ids_width,
        )
    spatial = diffusers.UNet2DConditionModel(
        block_out_channels=cfg.channels,
        down_block_types=down,
        up_block_types=[name.replace("Down", "Up") for name in reversed(down)],
        layers_per_block=cfg.layers_per_block,
        transformer_layers_per_block=[max(depth, 1) for depth in cfg.transformers],
        attention_head_dim=cfg.heads,
        cross_attention_dim=cfg.context_width,
        norm_num_groups=cfg.norm_groups,
        use_linear_projection=cfg.linear_projection,
        **added,
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
    if added:  # from_unet2d leaves this one as it was drawn
        video.add_embedding.load_state_dict(spatial.add_embedding.state_dict())
    return spatial, adapter, video


class PerFrame(torch.nn.GroupNorm):
    """Takes a clip [B, C, T, H, W], normalises each frame alone."""

    def forward(self, x):
        b, _, t = x.shape[:3]
        frames = super().forward(x.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (b, t)).transpose(1, 2)


class OverClip(torch.nn.GroupNorm):
    """Takes frames [B * T, C, H, W], normalises the T of a clip together."""

    frames = None

    def forward(self, x):
        clip = x.unflatten(0, (-1, self.frames)).transpose(1, 2)
        return super().forward(clip).transpose(1, 2).flatten(0, 1)


def as_published(video, motion, frames):
    """The video UNet with the norms of the version's own code."""
    for name, module in list(video.named_modules()):
        own = name.endswith(".norm") and ".motion_modules." in name
        resnet = (".resnets." in name and ".norm" in name) or name == "conv_norm_out"
        if own and motion.norm_scope == "frame":
            module.__class__ = PerFrame
        elif resnet and motion.resnet_norm_scope == "clip":
            module.__class__ = OverClip
            module.frames = frames
    return video


def arguments(parity, cfg, batch, frames, plane):
    x = parity.noise(batch, frames, *plane, 4)
    # Frames of different spread, so that the scope of the norms matters.
    x *= np.linspace(0.3, 3.0, frames, dtype=np.float32)[None, :, None, None, None]
    t = np.array([999, 7, 500], np.int32)[:batch]
    text = parity.noise(batch, 7, cfg.context_width, seed=2)
    added = {}
    if cfg.pooled_width is not None:
        pooled = parity.noise(batch, cfg.pooled_width, seed=3)
        added = dict(pooled=pooled, size_ids=np.repeat(SIZES, batch, axis=0))
    return x, t, text, added


def run_torch(video, x, t, text, added):
    frames = x.shape[1]
    theirs = None
    if added:
        pooled, sizes = (torch.from_numpy(added[name]) for name in ("pooled", "size_ids"))
        theirs = dict(text_embeds=pooled, time_ids=sizes)
    with torch.no_grad():
        return video(
            torch.from_numpy(x).permute(0, 4, 1, 2, 3),
            torch.from_numpy(t),
            torch.from_numpy(text).repeat_interleave(frames, 0),
            added_cond_kwargs=theirs,
        ).sample.transpose(1, 2)


def assemble(parity, cfg, spatial, adapter):
    ours = UNet(cfg)
    x, t, text, added = arguments(parity, cfg, 1, 2, (8, 8))
    target = parity.shapes(ours, x, t, Context(text, **added))
    motion, rest = split(target, lambda name: "motion_modules_" in name)
    motion = parity.convert(adapter.state_dict(), motion_table.find(adapter.state_dict()), motion)
    rest = parity.convert(spatial.state_dict(), unet_table.rules(cfg), rest)
    return ours, merge(motion, rest)


@pytest.mark.parametrize(
    "base, motion, batch, frames, plane",
    [
        (SD15, V1, 1, 3, (9, 7)),
        pytest.param(SD15, V1, 3, 2, (6, 5), marks=pytest.mark.slow),
        pytest.param(SD15, V2, 3, 3, (6, 5), marks=pytest.mark.slow),
        (SDXL, XL, 1, 3, (9, 7)),
        pytest.param(SDXL, XL, 3, 1, (6, 5), marks=pytest.mark.slow),
    ],
    ids=["v1", "v1-batch", "v2", "sdxl", "sdxl-one-frame"],
)
def test_video_unet_as_published(parity, base, motion, batch, frames, plane):
    cfg = dataclasses.replace(base, motion=motion)
    spatial, adapter, video = build(parity, cfg)
    x, t, text, added = arguments(parity, cfg, batch, frames, plane)
    expected = run_torch(as_published(video, motion, frames), x, t, text, added)
    ours, params = assemble(parity, cfg, spatial, adapter)
    apply = parity.jit(
        lambda p, x, t, text: ours.apply({"params": p}, x, t, Context(text, **added))
    )
    got = apply(params, x, t, text)
    assert parity.error(got, parity.channels_last(expected)) < TOLERANCE


def test_the_resnets_scope_matters(parity):
    """v1's weights under v3's norms give something else: the reference above is not blind."""
    video = as_published(build(parity, dataclasses.replace(SD15, motion=V1))[2], V1, 3)
    x, t, text, added = arguments(parity, SD15, 1, 3, (6, 5))
    right = run_torch(video, x, t, text, added)
    for module in video.modules():
        if isinstance(module, OverClip):
            module.__class__ = torch.nn.GroupNorm
    assert parity.error(run_torch(video, x, t, text, added), right) > 0.01


def test_an_unknown_scope_is_refused(parity):
    module = MotionModule(MotionConfig(heads=2, norm_groups=8, norm_scope="video"))
    with pytest.raises(ValueError, match="'frame' or 'clip', not 'video'"):
        parity.shapes(module, parity.noise(1, 2, 2, 2, 16))


def as_original(state, attentions):
    """diffusers' names as the AnimateDiff repository writes them."""
    renamed = {}
    for key, tensor in state.items():
        place, _, rest = key.partition(".motion_modules.")
        number, _, rest = rest.partition(".")
        key = f"{place}.motion_modules.{number}.temporal_transformer.{rest}"
        for ours, theirs in {"norm1": "norms.0", "norm2": "norms.1", "norm3": "ff_norm"}.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
        for n in range(attentions):
            key = key.replace(f".attn{n + 1}.", f".attention_blocks.{n}.")
        for n in range(attentions) if "pos_embed" in key else [0]:
            renamed[key.replace("pos_embed", f"attention_blocks.{n}.pos_encoder")] = tensor
    return renamed


@pytest.mark.parametrize("motion", [V1, V2], ids=["v1", "v2"])
def test_a_file_tells_what_is_in_it(parity, motion):
    """Both layouts, with and without positions, of modules with and without a middle."""
    with torch.device("meta"):
        adapter = diffusers.MotionAdapter(
            motion_max_seq_length=motion.max_frames, use_motion_mid_block=motion.mid_block
        )
    state = adapter.state_dict()
    wanted = MotionConfig(
        max_frames=motion.max_frames,
        mid_block=motion.mid_block,
        resnet_norm_scope=motion.resnet_norm_scope,
    )
    for layout in (state, as_original(state, 2)):
        shapes = {name: tuple(tensor.shape) for name, tensor in layout.items()}
        assert motion_table.describe(shapes) == wanted
        bare = {name: shape for name, shape in shapes.items() if not name.endswith(".pe")}
        plain = dataclasses.replace(wanted, max_frames=32, resnet_norm_scope="frame")
        assert motion_table.describe(bare) == plain
    with pytest.raises(ValueError, match="no motion modules of a known layout"):
        motion_table.find({"down_blocks.0.temporal_attentions.0.norm.weight"})


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_modules_without_positions_get_the_sinusoid(parity, layout):
    """AnimateLCM's files hold none."""
    cfg = dataclasses.replace(SD15, motion=V2)
    _, adapter, _ = build(parity, cfg)
    state = adapter.state_dict()
    state = state if layout == "diffusers" else as_original(state, 2)
    bare = {name: tensor for name, tensor in state.items() if not name.endswith(".pe")}
    x, t, text, _ = arguments(parity, cfg, 1, 2, (8, 8))
    target = parity.shapes(UNet(cfg), x, t, Context(text))
    target, _ = split(target, lambda name: "motion_modules_" in name)
    rules = motion_table.find(bare)
    tree = parity.convert(bare, rules, target)
    pe = flatten(tree)["mid_block/motion_modules_0/transformer_blocks_0/attn1/pe"]
    np.testing.assert_array_equal(pe, sinusoid_table(32, 32))
    whole = motion_table.find(state)
    parity.same_state(
        export(parity.convert(state, whole, target), whole),
        state,
    )
