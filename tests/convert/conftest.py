"""Small public checkpoints: diffusers' and transformers' own classes with random weights."""

from types import SimpleNamespace

import numpy as np
import pytest
from torch_weights import randomise

# Several channels in each of 32 norm groups: alone in its group, a channel loses what the embedding
# of time adds to it.
WIDTHS, CONTEXT, IMAGE_WIDTH, FRAMES = (64, 128), 32, 48, 8


def unet(seed=1, widths=WIDTHS, context=CONTEXT):
    import diffusers

    module = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=context,
    )
    return randomise(module, seed)


def vae(seed=2, levels=2):
    import diffusers

    module = diffusers.AutoencoderKL(
        block_out_channels=(64,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
    )
    return randomise(module, seed)


def text(seed=3, width=CONTEXT, projection=None):
    import transformers

    cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=1,
        hidden_act="gelu",
        projection_dim=projection or 512,
        eos_token_id=49407,
        bos_token_id=49406,
        vocab_size=49408,
    )
    return randomise(cls(config), seed)


def vision(seed=4, width=IMAGE_WIDTH, heads=2):
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=heads,
        hidden_act="gelu",
        image_size=28,
        patch_size=14,
        projection_dim=24,
    )
    return randomise(transformers.CLIPVisionModelWithProjection(config), seed)


def motion(seed=5, middle=False, widths=WIDTHS, frames=FRAMES):
    import diffusers

    module = diffusers.MotionAdapter(
        block_out_channels=widths,
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_max_seq_length=frames,
        use_motion_mid_block=middle,
    )
    return randomise(module, seed)


def controlnet(seed=6, hints=(8, 16), **others):
    import diffusers

    shape = {
        "block_out_channels": WIDTHS,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "cross_attention_dim": CONTEXT,
        "conditioning_embedding_out_channels": hints,
    }
    return randomise(diffusers.ControlNetModel(**{**shape, **others}), seed)


def union(seed=14, **others):
    """A ControlNet Union of eight kinds of pictures."""
    import diffusers

    module = diffusers.ControlNetUnionModel(
        block_out_channels=WIDTHS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=CONTEXT,
        conditioning_embedding_out_channels=(8, 16),
        addition_time_embed_dim=256,
        num_control_type=8,
        num_trans_channel=WIDTHS[0],
        num_proj_channel=WIDTHS[0],
    )
    return randomise(module, seed)


def sparse(seed=9):
    """SparseCtrl's encoder of pictures. Several channels a group: a frame that is not given begins
    as a constant in each channel, which alone in its group is all rounding error."""
    import diffusers

    module = diffusers.SparseControlNetModel(
        block_out_channels=WIDTHS,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=CONTEXT,
        norm_num_groups=8,
        motion_max_seq_length=FRAMES,
    )
    return randomise(module, seed)


def adapter(seed=7, context=CONTEXT, widths=(64, 64, 64, 128)):
    """An IP-Adapter-Plus in the names of its own files (diffusers reads these alone).

    widths: of the UNet's cross-attentions, in the order down, up, mid.
    """
    rng = np.random.default_rng(seed)
    width, tokens, depth = 32, 4, 4  # diffusers knows of no other depth

    def matrix(rows, columns):
        return (rng.normal(size=(rows, columns)) / columns**0.5).astype(np.float32)

    def norm(n):
        scale, bias = 1 + 0.2 * rng.normal(size=n), 0.2 * rng.normal(size=n)
        return scale.astype(np.float32), bias.astype(np.float32)

    state = {"image_proj.latents": rng.normal(size=(1, tokens, width)).astype(np.float32)}
    for name, rows, columns in (("proj_in", width, IMAGE_WIDTH), ("proj_out", context, width)):
        state[f"image_proj.{name}.weight"] = matrix(rows, columns)
        state[f"image_proj.{name}.bias"] = norm(rows)[1]
    norms = {"norm_out": context}
    for i in range(depth):
        layer = f"image_proj.layers.{i}"
        norms |= {f"layers.{i}.{n}": width for n in ("0.norm1", "0.norm2", "1.0")}
        state[f"{layer}.0.to_q.weight"] = matrix(64, width)
        state[f"{layer}.0.to_kv.weight"] = matrix(128, width)
        state[f"{layer}.0.to_out.weight"] = matrix(width, 64)
        state[f"{layer}.1.1.weight"] = matrix(4 * width, width)
        state[f"{layer}.1.3.weight"] = matrix(width, 4 * width)
    for name, n in norms.items():
        scale, bias = norm(n)
        state[f"image_proj.{name}.weight"], state[f"image_proj.{name}.bias"] = scale, bias
    for m, channels in enumerate(widths):  # those of the text alone have odd numbers
        for x in "kv":
            state[f"ip_adapter.{2 * m + 1}.to_{x}_ip.weight"] = matrix(channels, context)
    return state


def as_ldm(state, modules):
    """A diffusers state dict in LDM's names; where two are possible, by what the level has."""
    theirs = {}
    for old, new in modules.items():
        theirs.setdefault(new, []).append(old)
    out = {}
    for name, value in state.items():
        stem = name
        while stem not in theirs:
            stem = stem.rpartition(".")[0]
            if not stem:
                break
        choices = theirs.get(stem, [name])
        if "upsamplers" in name:
            level = stem.partition(".upsamplers")[0]
            after = any(other.startswith(f"{level}.attentions.") for other in state)
            # The upsampler follows the level's last resnet, or its transformer.
            choices = [c for c in choices if c.endswith(".2.conv" if after else ".1.conv")]
            choices = [choices[-1]]
        out[choices[0] + name[len(stem) :]] = value
    return out


def as_ldm_vae(state):
    """The state dict of a VAE of two levels in LDM's names, its attention 1x1 convolutions."""
    modules = {}
    for half, side, count in (("encoder", "down", 1), ("decoder", "up", 2)):
        for level in range(2):
            there = level if side == "down" else 1 - level
            for j in range(count):
                pair = (
                    f"{half}.{side}.{there}.block.{j}",
                    f"{half}.{side}_blocks.{level}.resnets.{j}",
                )
                for part in ("norm1", "conv1", "norm2", "conv2"):
                    modules[f"{pair[1]}.{part}"] = f"{pair[0]}.{part}"
                modules[f"{pair[1]}.conv_shortcut"] = f"{pair[0]}.nin_shortcut"
            change = f"{half}.{side}_blocks.{level}.{side}samplers.0.conv"
            modules[change] = f"{half}.{side}.{there}.{side}sample.conv"
        for j in range(2):
            for part in ("norm1", "conv1", "norm2", "conv2"):
                there = f"{half}.mid.block_{j + 1}.{part}"
                modules[f"{half}.mid_block.resnets.{j}.{part}"] = there
        parts = {
            "group_norm": "norm",
            "to_q": "q",
            "to_k": "k",
            "to_v": "v",
            "to_out.0": "proj_out",
        }
        for new, old in parts.items():
            modules[f"{half}.mid_block.attentions.0.{new}"] = f"{half}.mid.attn_1.{old}"
        modules[f"{half}.conv_norm_out"] = f"{half}.norm_out"
    out = {}
    for name in state:
        stem, _, leaf = name.rpartition(".")
        value = state[name]
        if "attentions.0.to_" in name and leaf == "weight":
            value = value[:, :, None, None]
        out[f"{modules.get(stem, stem)}.{leaf}"] = value
    return out


def as_open_clip(state):
    """A CLIP text or vision encoder of transformers in OpenCLIP's names, without `visual.`."""
    layers = {
        "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
    }
    single = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "text_projection.weight": "text_projection",
        "visual_projection.weight": "proj",
    }
    norms = {"final_layer_norm": "ln_final", "pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}
    out = {}
    for name, value in state.items():
        name = name.removeprefix("text_model.").removeprefix("vision_model.")
        stem, _, leaf = name.rpartition(".")
        if name in single:
            out[single[name]] = value.T.contiguous() if "projection" in name else value
        elif stem in norms:
            out[f"{norms[stem]}.{leaf}"] = value
        elif name.startswith("encoder.layers."):
            number, _, part = stem.removeprefix("encoder.layers.").partition(".")
            block = f"transformer.resblocks.{number}"
            if part in layers:
                out[f"{block}.{layers[part]}.{leaf}"] = value
            else:
                out.setdefault(f"{block}.attn.in_proj_{leaf}", {})[part[-6]] = value
    import torch

    fused = {k: torch.cat([v[x] for x in "qkv"]) for k, v in out.items() if isinstance(v, dict)}
    return out | fused


SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": [1, 2],
    "attention_head_dim": (1, 2),  # a single file does not say: heads of 64
    "cross_attention_dim": 96,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,  # nor this
    "projection_class_embeddings_input_dim": 24 + 6 * 256,
}


def sdxl(seed=8):
    """An SDXL pipeline's parts by the names of their folders."""
    import diffusers

    unet = diffusers.UNet2DConditionModel(
        block_out_channels=WIDTHS,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        **SDXL,
    )
    return {
        "unet": randomise(unet, seed),
        "vae": vae(seed + 1),
        "text_encoder": text(seed + 2),
        "text_encoder_2": text(seed + 3, width=64, projection=24),
    }


def sdxl_controlnet(seed=12):
    """A ControlNet for that SDXL, which takes pooled text and sizes too."""
    return controlnet(seed, **SDXL)


def sdxl_adapter(seed=13):
    """An IP-Adapter-Plus for that SDXL: two attentions a transformer, all of the inner width."""
    return adapter(seed, 96, (128,) * 8)


def sdxl_file(parts, as_ldm, modules):
    """SDXL's parts as the one file that its publisher has: LDM's names, and OpenCLIP's."""
    named = as_ldm(parts["unet"].state_dict(), modules)
    state = {f"model.diffusion_model.{name}": value for name, value in named.items()}
    for name, value in as_ldm_vae(parts["vae"].state_dict()).items():
        state[f"first_stage_model.{name}"] = value
    for name, value in parts["text_encoder"].state_dict().items():
        inner = f"text_model.{name.removeprefix('text_model.')}"
        state[f"conditioner.embedders.0.transformer.{inner}"] = value
    for name, value in as_open_clip(parts["text_encoder_2"].state_dict()).items():
        state[f"conditioner.embedders.1.model.{name}"] = value
    return state


@pytest.fixture(scope="session")
def small():
    """The makers above."""
    pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    makers = (unet, vae, text, vision, motion, controlnet, adapter, sdxl, randomise)
    makers += (sparse, as_ldm, as_ldm_vae, as_open_clip, sdxl_file)
    makers += (sdxl_controlnet, sdxl_adapter, union)
    return SimpleNamespace(**{make.__name__: make for make in makers})


@pytest.fixture(scope="session")
def sources(small, tmp_path_factory):
    """A folder with a whole set of sources, as their libraries save them."""
    from safetensors.numpy import save_file

    root = tmp_path_factory.mktemp("sources")
    small.unet().save_pretrained(root / "pipeline" / "unet")
    small.vae().save_pretrained(root / "pipeline" / "vae")
    small.text().save_pretrained(root / "pipeline" / "text_encoder")
    small.vision().save_pretrained(root / "vision")
    small.motion().save_pretrained(root / "motion")
    small.controlnet().save_pretrained(root / "controlnet")
    save_file(small.adapter(), root / "adapter.safetensors")
    return root
