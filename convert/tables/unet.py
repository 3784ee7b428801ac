"""UNet2DConditionModel as diffusers saves it (SD1.5 and, by its config, SDXL).

`encoder` and the networks below serve the ControlNet's table too: its body is half a UNet.
"""

from __future__ import annotations

from mv2_jax.config import UNetConfig
from mv2_jax.convert.engine import Rule, conv, dense, norm

# Where resnets and transformers stand: (source, target).
SIDES = ("{side:down|up}_blocks.{i}", "{side}_blocks_{i}")
MID = ("mid_block", "mid_block")


def rules(cfg: UNetConfig) -> list[Rule]:
    """The table of the spatial UNet. The config only chooses the layout of exported files."""
    table = [*stem(), *conv("conv_out", "conv_out"), *norm("conv_norm_out", "conv_norm_out")]
    for place in (SIDES, MID):
        table += blocks(*place, linear_projection=cfg.linear_projection)
    source, target = SIDES
    return table + conv(
        f"{source}.{{change:downsamplers|upsamplers}}.0.conv", f"{target}/{{change}}_0/conv"
    )


def stem() -> list[Rule]:
    """The first convolution and the embeddings of time and, in SDXL, of pooled text and sizes."""
    embedding = "{embedding:time_embedding|add_embedding}", "{embedding}"
    return [
        *conv("conv_in", "conv_in"),
        *dense(f"{embedding[0]}.linear_{{n:1|2}}", f"{embedding[1]}/linear_{{n}}"),
    ]


def blocks(source: str, target: str, *, linear_projection: bool) -> list[Rule]:
    """Every resnet and transformer at one place."""
    return [
        *resnet(f"{source}.resnets.{{j}}", f"{target}/resnets_{{j}}"),
        *transformer(
            f"{source}.attentions.{{j}}",
            f"{target}/attentions_{{j}}",
            linear_projection=linear_projection,
        ),
    ]


def resnet(source: str, target: str) -> list[Rule]:
    """A residual block, with or without time embedding and shortcut (the VAE's too)."""
    return [
        *norm(f"{source}.norm{{n:1|2}}", f"{target}/norm{{n}}"),
        *conv(f"{source}.conv{{n:1|2}}", f"{target}/conv{{n}}"),
        *conv(f"{source}.conv_shortcut", f"{target}/conv_shortcut"),
        *dense(f"{source}.time_emb_proj", f"{target}/time_emb_proj"),
    ]


def transformer(source: str, target: str, *, linear_projection: bool) -> list[Rule]:
    """A spatial transformer. Its projections are 1x1 convolutions in SD1.5, linear in SDXL."""
    op = "linear" if linear_projection else "conv_to_linear"
    layer = f"{source}.transformer_blocks.{{k}}", f"{target}/transformer_blocks_{{k}}"
    return [
        *norm(f"{source}.norm", f"{target}/norm"),
        *dense(f"{source}.proj_{{end:in|out}}", f"{target}/proj_{{end}}", op=op),
        *norm(f"{layer[0]}.norm{{n:1|2|3}}", f"{layer[1]}/norm{{n}}"),
        *attention(f"{layer[0]}.attn{{n:1|2}}", f"{layer[1]}/attn{{n}}"),
        *feed_forward(f"{layer[0]}.ff", f"{layer[1]}/ff"),
    ]


def attention(source: str, target: str) -> list[Rule]:
    """Query, key and value without bias, and the output projection with one."""
    return [
        *dense(f"{source}.to_{{x:q|k|v}}", f"{target}/to_{{x}}", bias=False),
        *dense(f"{source}.to_out.0", f"{target}/to_out_0"),
    ]


def feed_forward(source: str, target: str) -> list[Rule]:
    """The GEGLU feed-forward."""
    return [
        *dense(f"{source}.net.0.proj", f"{target}/net_0/proj"),
        *dense(f"{source}.net.2", f"{target}/net_2"),
    ]
