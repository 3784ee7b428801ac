"""Networks are known by what is in a file, and a file of nothing known is described."""

import numpy as np
import pytest

from mv2_jax.config import ControlNetConfig, MotionConfig, TextConfig, UNetConfig, VisionConfig
from mv2_jax.convert import config_from_shapes, param_shapes
from mv2_jax.convert.engine import exported, under
from mv2_jax.convert.recognise import recognise
from mv2_jax.convert.tables import clip, controlnet, ip_adapter, ip_attention, motion, unet
from mv2_jax.errors import InputError
from mv2_jax.params import flatten

SDXL = UNetConfig(
    channels=(320, 640, 1280),
    transformers=(0, 2, 10),
    mid_transformers=10,
    heads=(5, 10, 20),
    context_width=2048,
    linear_projection=True,
    pooled_width=1280,
)
BIGG = TextConfig(
    width=1280, layers=32, heads=20, mlp_width=5120, activation="gelu", projection=1280
)


def hollow(tree, table, prefix=""):
    """A file of full size whose tensors take no room: what an export of the tree would name."""
    leaves = flatten(tree)
    source = {}
    for key, (rule, names) in exported(leaves, table).items():
        parts = [np.broadcast_to(np.float32(0), leaves[name].shape) for name in names]
        if len(parts) == 3:  # fused: concatenating would cost memory
            shape = parts[0].shape[::-1]
            source[prefix + key] = np.broadcast_to(np.float32(0), (3 * shape[0], *shape[1:]))
        else:
            source[prefix + key] = rule.operation.backward(*parts)
    return source


def only(source, settings=None):
    (part,) = recognise(source, settings)
    return part


@pytest.mark.parametrize("cfg, title", [(UNetConfig(), "an SD1.5 UNet"), (SDXL, "an SDXL UNet")])
def test_full_size_unets_need_no_settings(cfg, title):
    part = only(hollow(param_shapes.unet(cfg)["spatial"], unet.rules(cfg)))
    assert part.title == title and part.kind == "unet"
    assert part.config == cfg


def test_a_full_size_controlnet():
    cfg = ControlNetConfig()
    part = only(hollow(param_shapes.controlnet(cfg), controlnet.rules(cfg)))
    assert part.config == cfg and part.title == "a ControlNet for an SD1.5 UNet"


@pytest.mark.parametrize("prefix", ["", "cond_stage_model.transformer."])
@pytest.mark.parametrize("inner", ["", "text_model."])
def test_clips_text_encoder_under_all_its_names(inner, prefix):
    table = clip.transformers_text(inner)
    assert only(hollow(param_shapes.text(TextConfig()), table, prefix)).config == TextConfig()


def test_open_clips_towers():
    table = clip.open_clip_text()
    part = only(hollow(param_shapes.text(BIGG), table, "conditioner.embedders.1.model."))
    assert part.config == BIGG and part.layout == "OpenCLIP's"
    part = only(hollow(param_shapes.vision(VisionConfig()), clip.open_clip_vision(), "visual."))
    assert part.kind == "image_encoder" and part.config == VisionConfig()


@pytest.mark.parametrize("middle", [False, True])
def test_motion_modules(middle):
    cfg = MotionConfig(mid_block=middle)
    tree = param_shapes.unet(UNetConfig(motion=cfg))["motion"]
    part = only(hollow(tree, motion.original()))
    assert part.config == cfg and part.layout == "AnimateDiff's"
    assert part.title == f"motion modules (32 frames, {'a' if middle else 'no'} middle block)"


def test_an_adapter_and_its_attention():
    cfg = UNetConfig(image_tokens=True)
    projection = config_from_shapes.ImageProjectionConfig()
    source = hollow(param_shapes.image_projection(projection), ip_adapter.original_resampler())
    source = {f"image_proj.{name}": value for name, value in source.items()}
    attention = under(ip_attention.rules(cfg))
    source |= hollow(param_shapes.unet(cfg)["image_attn"], attention)
    part = only(source)
    assert part.config == projection and len(part.tensors) == len(source)
    assert part.title == "an IP-Adapter-Plus (16 tokens of width 768)"


@pytest.mark.parametrize(
    "names, text",
    [
        (["double_blocks.0.img_attn.qkv.weight"], "looks like a FLUX transformer"),
        (["encoder.conv_in.weight"], "looks most like a VAE, but lacks encoder.conv_out.weight"),
        (["a.b", "c.d"], r"its 2 tensors look like nothing known \(a.b, c.d\)"),
        ([], "it is empty"),
    ],
)
def test_what_is_unknown_is_described(names, text):
    with pytest.raises(InputError, match=text):
        recognise({name: np.zeros((4, 4)) for name in names})


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"act_fn": "gelu"}, "this UNet has act_fn='gelu', which is not supported"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim=256"),
    ],
)
def test_settings_that_the_network_cannot_have_are_refused(settings, text):
    cfg = UNetConfig(channels=(32, 64), layers_per_block=1, transformers=(1, 0), heads=(8, 8))
    source = hollow(param_shapes.unet(cfg)["spatial"], unet.rules(cfg))
    assert only(source, {"act_fn": "silu", "attention_head_dim": [8, 8]}).config == cfg
    with pytest.raises(InputError, match=text):
        recognise(source, settings)


def test_what_looks_like_something_else_is_named():
    cfg = ControlNetConfig()
    scribble = hollow(param_shapes.controlnet(cfg), controlnet.rules(cfg))
    scribble["down_blocks.0.motion_modules.0.norm.weight"] = np.ones(320, np.float32)
    with pytest.raises(InputError, match="SparseCtrl's encoder of scribbles"):
        recognise(scribble)
    face = {"image_proj.proj.0.weight": np.ones((4, 4), np.float32)}
    face |= {
        f"ip_adapter.0.to_q_lora.{x}.weight": np.ones((4, 4), np.float32) for x in ("up", "down")
    }
    with pytest.raises(InputError, match="this is an IP-Adapter FaceID"):
        recognise(face)


def test_sd2_is_refused_for_pictures_and_videos_alike():
    from mv2_jax.convert import pending
    from mv2_jax.convert.checkpoint import SourceNetwork

    cfg = UNetConfig(context_width=1024, linear_projection=True, heads=(5, 10, 20, 20))
    part = only(hollow(param_shapes.unet(cfg)["spatial"], unet.rules(cfg)))
    two = pending.plain(SourceNetwork("sd2", "sd2", None, part, {}))
    one = pending.plain(
        SourceNetwork(
            "sd1",
            "sd1",
            None,
            only(hollow(param_shapes.unet(UNetConfig())["spatial"], unet.rules(UNetConfig()))),
            {},
        )
    )
    pending.check("spatial", {"spatial": one})
    for name, built in (("spatial", {"spatial": two}), ("t2i_unet", {"t2i_unet": two})):
        with pytest.raises(InputError, match="sd2 holds an SD2 UNet: Stable Diffusion 2 reads"):
            pending.check(name, built)
