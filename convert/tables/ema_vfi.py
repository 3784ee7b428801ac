"""EMA-VFI as MCG-NJU/EMA-VFI saves it (`ours.pkl`, `ours_small.pkl`, and their `_t` variants).

The public files put `module.` before every name, which training on several GPUs leaves there.
"""

from __future__ import annotations

from mv2_jax.convert.engine import Ignore, Rule, conv, dense, norm, under


def rules(prefix: str = "module.") -> list:
    """The table of the whole network; `prefix` is what the file puts before every name."""
    return under(
        [
            *_conv_stages("feature_bone."),
            *_attention_stages("feature_bone."),
            *_conv_prelu("block.{i}.conv.{j}", "block_{i}/conv_{j}"),
            *_conv_prelu("unet.down{i}.conv{j}", "unet/down{i}_conv{j}"),
            *dense("unet.up{i}.0", "unet/up{i}_0", op="conv_transpose"),
            Rule("unet.up{i}.1.weight", "unet/up{i}_1/alpha"),
            *conv("unet.conv", "unet/conv"),
            Ignore("{x:**}.attn_mask", "the last picture's window mask, made anew here"),
            Ignore("{x:**}.HW", "the size that mask was made for"),
        ],
        prefix,
    )


def _conv_prelu(source: str, target: str) -> list[Rule]:
    return [
        *conv(f"{source}.0", f"{target}/conv"),
        Rule(f"{source}.1.weight", f"{target}/prelu/alpha"),
    ]


def _conv_stages(root: str) -> list[Rule]:
    """The first three stages. A block's layers are numbered through, a PReLU after each."""
    rules = []
    for stage in (2, 3):
        rules += _conv_prelu(f"{root}patch_embed{stage}", f"feature_bone/patch_embed{stage}")
    for j in range(8):  # deeper than any public variant
        source, target = f"{root}block{{i:1|2|3}}.conv", f"feature_bone/block{{i}}_{j}"
        rules += conv(f"{source}.{2 * j}", f"{target}/conv")
        rules.append(Rule(f"{source}.{2 * j + 1}.weight", f"{target}/prelu/alpha"))
    return rules


def _attention_stages(root: str) -> list[Rule]:
    source, target = f"{root}block{{i:4|5}}.{{j}}", "feature_bone/block{i}_{j}"
    rules = [
        *conv(f"{root}patch_embed4.layers.{{j}}", "feature_bone/patch_embed4/layers_{j}"),
        *conv(f"{root}patch_embed{{i:4|5}}.proj", "feature_bone/patch_embed{i}/proj"),
        *norm(f"{root}patch_embed{{i:4|5}}.norm", "feature_bone/patch_embed{i}/norm"),
        *norm(f"{root}norm{{i:4|5}}", "feature_bone/norm{i}"),
        *norm(f"{source}.norm{{k:1|2}}", f"{target}/norm{{k}}"),
        *conv(f"{source}.mlp.dwconv.dwconv", f"{target}/mlp/dwconv"),
    ]
    for name in ("attn.q", "attn.cor_embed", "attn.proj", "attn.motion_proj", "mlp.fc1", "mlp.fc2"):
        rules += dense(f"{source}.{name}", f"{target}/{name.replace('.', '/')}")
    for end, leaf in (("weight", "kernel"), ("bias", "bias")):
        halves = tuple(f"{target}/attn/{name}/{leaf}" for name in ("k", "v"))
        rules.append(Rule(f"{source}.attn.kv.{end}", halves, "split_kv"))
    return rules
