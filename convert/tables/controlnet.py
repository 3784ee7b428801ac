"""ControlNetModel as diffusers saves it: half a UNet, a condition embedding, zero convolutions."""

from __future__ import annotations

from mv2_jax.config import ControlNetConfig, UNetConfig
from mv2_jax.convert.engine import Rule, conv, dense, fused, norm
from mv2_jax.convert.tables import unet


def rules(cfg: ControlNetConfig) -> list[Rule]:
    """The table. The config only chooses the layout of exported files."""
    embedding = "controlnet_cond_embedding"
    layer, ours = "transformer_layes.{i}", "transformer_layes_{i}"
    return [
        *body(cfg.unet),
        *conv(f"{embedding}.conv_{{end:in|out}}", f"{embedding}/conv_{{end}}"),
        *conv(f"{embedding}.blocks.{{i}}", f"{embedding}/blocks_{{i}}"),
        # ControlNet Union's; the misspelt name is its own.
        Rule("task_embedding", "task_embedding/embedding"),
        *fused(f"{layer}.attn", f"{ours}/self_attn"),
        *(
            rule
            for theirs, mine in (("c_fc", "fc1"), ("c_proj", "fc2"))
            for rule in dense(f"{layer}.mlp.{theirs}", f"{ours}/mlp/{mine}")
        ),
        *norm(f"{layer}.ln_{{j}}", f"{ours}/layer_norm{{j}}"),
        *dense("spatial_ch_projs", "spatial_ch_projs"),
        *dense("control_add_embedding.linear_{j}", "control_add_embedding/linear_{j}"),
    ]


def body(cfg: UNetConfig) -> list[Rule]:
    """All but the condition's embedding: half a UNet and the convolutions on its states."""
    linear_projection = cfg.linear_projection
    down = "down_blocks.{i}", "down_blocks_{i}"
    return [
        *unet.stem(),
        *unet.blocks(*down, linear_projection=linear_projection),
        *unet.blocks(*unet.MID, linear_projection=linear_projection),
        *conv(f"{down[0]}.downsamplers.0.conv", f"{down[1]}/downsamplers_0/conv"),
        *conv("controlnet_down_blocks.{i}", "controlnet_down_blocks_{i}"),
        *conv("controlnet_mid_block", "controlnet_mid_block"),
    ]
