"""More of the public checkpoints at full size, name by name and shape by shape, all abstract.

SDXL's UNet, AnimateDiff's v1 and SDXL modules, SparseCtrl, and the CLIP encoders beside CLIP-L's.
"""

import jax
import jax.numpy as jnp
import pytest

from mv2_jax import params, sharding
from mv2_jax.config import (
    MotionConfig,
    SparseControlConfig,
    TextConfig,
    UNetConfig,
    VisionConfig,
)
from mv2_jax.convert import engine
from mv2_jax.convert.tables import clip, motion, sparse_control, unet
from mv2_jax.models.clip_text import TextEncoder
from mv2_jax.models.clip_vision import VisionEncoder
from mv2_jax.models.sparse_control import SparseControlNet
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

XL_MOTION = MotionConfig(norm_scope="clip")
SDXL = UNetConfig(
    channels=(320, 640, 1280),
    transformers=(0, 2, 10),
    mid_transformers=10,
    heads=(5, 10, 20),
    context_width=2048,
    linear_projection=True,
    pooled_width=1280,
    motion=XL_MOTION,
)
CLIP_L = TextConfig()
BIG_G = TextConfig(
    width=1280, layers=32, heads=20, mlp_width=5120, activation="gelu", projection=1280
)
VIT_H = VisionConfig()
VIT_BIG_G = VisionConfig(width=1664, layers=48, heads=16, mlp_width=8192, projection=1280)


def zeros(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def tree(module, *args):
    return jax.eval_shape(module.init, jax.random.key(0), *args)["params"]


def state_shapes(cls, *args, **config):
    with torch.device("meta"):
        return {name: tuple(x.shape) for name, x in cls(*args, **config).state_dict().items()}


def millions(tree):
    """Millions of trained numbers: diffusers does not count positional encodings."""
    _, trained = params.split(tree, lambda name: name.endswith("/pe"))
    return round(params.count(trained) / 1e6)


def every_leaf_has_one_rule(tree):
    wrong = [name for name in params.flatten(tree) if len(sharding.matching(name)) != 1]
    assert not wrong


def test_sdxl_unet_and_its_motion():
    text = Context(zeros(1, 77, 2048), pooled=zeros(1, 1280), size_ids=zeros(1, 6))
    whole = tree(UNet(SDXL), zeros(1, 1, 8, 8, 4), zeros(1), text)
    every_leaf_has_one_rule(whole)
    moving, spatial = params.split(whole, lambda name: "motion_modules_" in name)
    shapes = state_shapes(
        diffusers.UNet2DConditionModel,
        block_out_channels=SDXL.channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=SDXL.heads,
        cross_attention_dim=SDXL.context_width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    assert len(shapes) == 1680 and millions(spatial) == 2567
    engine.check(shapes, unet.rules(SDXL), spatial)
    shapes = state_shapes(
        diffusers.MotionAdapter, block_out_channels=SDXL.channels, use_motion_mid_block=False
    )
    assert motion.describe(shapes) == XL_MOTION and millions(moving) == 237
    engine.check(shapes, motion.find(shapes), moving)


def test_v1_motion():
    cfg = MotionConfig(max_frames=24, resnet_norm_scope="clip")
    x, t, text = zeros(1, 1, 8, 8, 4), zeros(1), Context(zeros(1, 77, 768))
    whole = tree(UNet(UNetConfig(motion=cfg)), x, t, text)
    moving, _ = params.split(whole, lambda name: "motion_modules_" in name)
    shapes = state_shapes(
        diffusers.MotionAdapter, use_motion_mid_block=False, motion_max_seq_length=24
    )
    assert motion.describe(shapes) == cfg and millions(moving) == 417
    engine.check(shapes, motion.find(shapes), moving)


def test_sparse_control():
    cfg = SparseControlConfig()
    x, mask, t, text = zeros(1, 2, 8, 8, 4), zeros(1, 2), zeros(1), Context(zeros(1, 77, 768))
    target = tree(SparseControlNet(cfg), x, mask, t, text)
    every_leaf_has_one_rule(target)
    shapes = state_shapes(diffusers.SparseControlNetModel)
    assert millions(target) == 497
    assert motion.describe(shapes) == cfg.unet.motion
    engine.check(shapes, sparse_control.find(shapes, cfg), target)


@pytest.mark.parametrize(
    "cfg, count", [(CLIP_L, 123), (BIG_G, 695)], ids=["CLIP-L", "OpenCLIP-bigG"]
)
def test_text_encoders(cfg, count):
    name = "CLIPTextModel" if cfg.projection is None else "CLIPTextModelWithProjection"
    config = transformers.CLIPTextConfig(
        hidden_size=cfg.width,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        intermediate_size=cfg.mlp_width,
        projection_dim=cfg.projection or 768,
    )
    target = tree(TextEncoder(cfg), zeros(1, 77, dtype=jnp.int32))
    every_leaf_has_one_rule(target)
    shapes = state_shapes(getattr(transformers, name), config)
    assert millions(target) == count
    check_encoder(shapes, clip.find_text(shapes, projection=cfg.projection is not None), target)
    if cfg.projection:
        whole = as_open_clip(shapes, "text_model.", "")
        check_encoder(whole, clip.find_text(whole), target)


@pytest.mark.parametrize("cfg, count", [(VIT_H, 632), (VIT_BIG_G, 1845)], ids=["ViT-H", "ViT-bigG"])
def test_vision_encoders(cfg, count):
    config = transformers.CLIPVisionConfig(
        image_size=cfg.image_size,
        patch_size=cfg.patch_size,
        hidden_size=cfg.width,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        intermediate_size=cfg.mlp_width,
        projection_dim=cfg.projection,
    )
    target = tree(VisionEncoder(cfg), zeros(1, 224, 224, 3))
    every_leaf_has_one_rule(target)
    shapes = state_shapes(transformers.CLIPVisionModelWithProjection, config)
    assert millions(target) == count
    check_encoder(shapes, clip.find_vision(shapes), target)
    whole = as_open_clip(shapes, "vision_model.", "visual.")
    check_encoder(whole, clip.find_vision(whole), target)


def check_encoder(shapes, found, target):
    ((prefix, rules),) = found
    own = {name.removeprefix(prefix): x for name, x in shapes.items() if name.startswith(prefix)}
    engine.check(own, rules, target)


_OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "layer_norm": "ln_",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding": "conv1",
    "embeddings.class_embedding": "class_embedding",
    "final_ln_": "ln_final",
    "post_layernorm": "ln_post",
    "pre_layrnorm": "ln_pre",
}


def as_open_clip(shapes, inner, prefix):
    """transformers' names and shapes as OpenCLIP writes them."""
    out = {}
    for name, shape in shapes.items():
        name = name.removeprefix(inner)
        if "_projection" in name:
            name, shape = "text_projection" if "text" in name else "proj", shape[::-1]
        elif any(part in name for part in (".q_proj", ".k_proj", ".v_proj")):
            stem, _, leaf = name.rpartition(".")
            name = stem.replace("self_attn", "attn")[: -len(".q_proj")] + f".in_proj_{leaf}"
            shape = (3 * shape[0], *shape[1:])
        for theirs, ours in _OPEN_CLIP.items():
            name = name.replace(theirs, ours)
        out[prefix + name] = shape
    return out
