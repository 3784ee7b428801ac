"""VQ-FIGAN as danier97/LDMVFI saves it: alone, or as `first_stage_model.` in LDMVFI's file.

The network is `GANVFIConfig.ldmvfi()`. Such a file's `state_dict` also holds the discriminator and
the perceptual network it was trained with (`loss.`), and averaged copies (`model_ema.`).
"""

from __future__ import annotations

from mv2_jax.convert.engine import Ignore, Rule, conv, dense, norm, under

HEADS = {
    # In the public kernel's words `offset_x` (alpha) moves rows and `offset_y` (beta) columns.
    "moduleAlpha{k:1|2}": "rows_{k}",
    "moduleBeta{k:1|2}": "columns_{k}",
    "moduleKernelVertical{k:1|2}": "vertical_{k}",
    "moduleKernelHorizontal{k:1|2}": "horizontal_{k}",
    "moduleMask": "mask",
    "moduleResidual": "residual",
}


def rules(prefix: str = "") -> list:
    """The table of the autoencoder; `prefix` is what the file puts before every name.

    With a prefix, whatever lies outside it (LDMVFI's diffusion model) is ignored.
    """
    table = [*_encoder(), *_decoder()]
    table += conv("quant_conv", "quant_conv") + conv("post_quant_conv", "post_quant_conv")
    table.append(Rule("quantize.embedding.weight", "quantize/embedding"))
    table += [
        Ignore("loss.{x:**}", "the discriminator and the perceptual network of its training"),
        Ignore("model_ema.{x:**}", "averaged copies"),
        Ignore(
            "decoder.up.{i}.cross_attn.proj_in.{n}.num_batches_tracked",
            "how long its batch norms were trained",
        ),
        Ignore("decoder.up.{i}.cross_attn.out_conv.{x:**}", "stored, but never called"),
    ]
    if not prefix:
        return table
    rest = ("model", "model_ema", "cond_stage_model")
    outside = [Ignore(f"{name}.{{x:**}}", "LDMVFI's diffusion model") for name in rest]
    outside += [Ignore(f"{name}", "LDMVFI's schedule") for name in ("{x:*}",)]
    return under(table, prefix) + outside


def _resnet(source: str, target: str) -> list[Rule]:
    return [
        *norm(f"{source}.norm{{n:1|2}}", f"{target}/norm{{n}}"),
        *conv(f"{source}.conv{{n:1|2}}", f"{target}/conv{{n}}"),
        *conv(f"{source}.nin_shortcut", f"{target}/conv_shortcut"),
    ]


def _attention(source: str, target: str) -> list[Rule]:
    """MaxViT's two squares, each with a feed-forward."""
    attn, ff = f"{source}.attn_{{kind:block|grid}}", f"{source}.ff_{{kind:block|grid}}"
    inner = f"{target}/attn_{{kind}}"
    return [
        *norm(f"{attn}.norm", f"{inner}_norm"),
        *dense(f"{attn}.fn.to_{{n:q|k|v}}", f"{inner}/to_{{n}}", bias=False),
        *dense(f"{attn}.fn.to_out.0", f"{inner}/to_out", bias=False),
        Rule(f"{attn}.fn.rel_pos_bias.weight", f"{inner}/rel_pos_bias"),
        *norm(f"{ff}.norm", f"{target}/ff_{{kind}}_norm"),
        *dense(f"{ff}.fn.net.{{n:0|3}}", f"{target}/ff_{{kind}}/net_{{n}}"),
    ]


def _batch_norm(source: str, target: str) -> list[Rule]:
    stored = (("running_mean", "mean"), ("running_var", "var"))
    return norm(source, target) + [Rule(f"{source}.{a}", f"{target}/{b}") for a, b in stored]


def _middle(side: str) -> list[Rule]:
    return [
        *_resnet(f"{side}.mid.block_{{k:1|2}}", f"{side}/mid/block_{{k}}"),
        *_attention(f"{side}.mid.attn_1", f"{side}/mid/attn_1"),
        *conv(f"{side}.conv_in", f"{side}/conv_in"),
        *norm(f"{side}.norm_out", f"{side}/norm_out"),
        *conv(f"{side}.conv_out", f"{side}/conv_out"),
    ]


def _encoder() -> list[Rule]:
    return [
        *_middle("encoder"),
        *_resnet("encoder.down.{i}.block.0", "encoder/block_{i}"),
        *conv("encoder.down.{i}.downsample.conv", "encoder/downsample_{i}/conv"),
    ]


def _decoder() -> list[Rule]:
    look, target = "decoder.up.{i}.cross_attn", "decoder/cross_attn_{i}"
    inner = f"{target}/proj_in"
    rules = [
        *_middle("decoder"),
        *_resnet("decoder.up.{i}.block.0", "decoder/block_{i}"),
        *conv("decoder.up.{i}.upsample.conv", "decoder/upsample_{i}/conv"),
        *_attention(look, target),
        *conv(f"{look}.proj_in.{{n:0|3|7}}", f"{inner}/net_{{n}}"),
        *_batch_norm(f"{look}.proj_in.{{n:1|4|8}}", f"{inner}/net_{{n}}"),
        *dense(f"{look}.proj_in.6.gate.{{n:1|3}}", f"{inner}/gate_{{n}}", bias=False),
    ]
    for source, name in HEADS.items():
        rules += conv(f"decoder.{source}.{{j}}", f"decoder/heads/{name}/conv_{{j}}")
    return rules
