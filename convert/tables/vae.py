"""AutoencoderKL as diffusers saves it, with the newer and the older names of its attention."""

from __future__ import annotations

from mv2_jax.convert.engine import Rule, conv, dense, norm
from mv2_jax.convert.tables.unet import resnet

_HALF = "{half:encoder|decoder}"
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out_0"}


def rules() -> list[Rule]:
    """The table of the whole autoencoder."""
    table = [
        *conv("{which:quant_conv|post_quant_conv}", "{which}"),
        *conv(f"{_HALF}.conv_{{end:in|out}}", "{half}/conv_{end}"),
        *norm(f"{_HALF}.conv_norm_out", "{half}/conv_norm_out"),
    ]
    for source, target in (
        ("{side:down|up}_blocks.{i}", "{side}_blocks_{i}"),
        ("mid_block", "mid_block"),
    ):
        table += resnet(f"{_HALF}.{source}.resnets.{{j}}", f"{{half}}/{target}/resnets_{{j}}")
    table += conv(
        f"{_HALF}.{{side:down|up}}_blocks.{{i}}.{{change:downsamplers|upsamplers}}.0.conv",
        "{half}/{side}_blocks_{i}/{change}_0/conv",
    )
    return table + _attention(f"{_HALF}.mid_block.attentions.0", "{half}/mid_block/attentions_0")


def _attention(source: str, target: str) -> list[Rule]:
    table = [
        *norm(f"{source}.group_norm", f"{target}/group_norm"),
        *dense(f"{source}.to_{{x:q|k|v}}", f"{target}/to_{{x}}"),
        *dense(f"{source}.to_out.0", f"{target}/to_out_0"),
    ]
    for old, new in _OLD_NAMES.items():
        table += dense(f"{source}.{old}", f"{target}/{new}")
    return table
