"""AnimateDiff motion modules (v1, v2, v3 and their kin) in the original and diffusers layouts.

Positional encodings are kept as stored, for some modules retrained theirs. The original layout
stores one for each of the two attentions, diffusers one for both.
"""

from __future__ import annotations

from mv2_jax.convert.engine import Fill, Ignore, Rule, dense, norm
from mv2_jax.convert.tables.unet import attention, feed_forward
from mv2_jax.nn.motion import sinusoid_table

_PLACES = (
    ("{side:down|up}_blocks.{i}.motion_modules.{j}", "{side}_blocks_{i}/motion_modules_{j}"),
    ("mid_block.motion_modules.{j}", "mid_block/motion_modules_{j}"),
)


def original(*, stored_positions: bool = True) -> list[Rule | Ignore | Fill]:
    """The layout of the AnimateDiff repository's .ckpt files.

    `stored_positions` False is for modules published without encodings (AnimateLCM): they are
    the sinusoid's.
    """
    table: list[Rule | Ignore | Fill] = [
        Ignore("animatediff_config{rest:**}", "settings stored among the weights"),
    ]
    for source, target in _PLACES:
        source = f"{source}.temporal_transformer"
        layer = f"{source}.transformer_blocks.{{k}}", f"{target}/transformer_blocks_{{k}}"
        table += _shell(source, target)
        for n in range(2):
            block = f"{layer[0]}.attention_blocks.{n}", f"{layer[1]}/attn{n + 1}"
            table += attention(block[0], f"{block[1]}/attn")
            table += norm(f"{layer[0]}.norms.{n}", f"{layer[1]}/norm{n + 1}")
            if stored_positions:
                table.append(Rule(f"{block[0]}.pos_encoder.pe", f"{block[1]}/pe", "unbatch"))
        table += norm(f"{layer[0]}.ff_norm", f"{layer[1]}/norm3")
        table += feed_forward(f"{layer[0]}.ff", f"{layer[1]}/ff")
    if not stored_positions:
        table.append(Fill("{layer:**}/attn{n:1|2}/pe", lambda shape: sinusoid_table(*shape)))
    return table


def diffusers() -> list[Rule]:
    """The layout of diffusers' MotionAdapter."""
    table: list[Rule] = []
    for source, target in _PLACES:
        layer = f"{source}.transformer_blocks.{{k}}", f"{target}/transformer_blocks_{{k}}"
        table += _shell(source, target)
        table += attention(f"{layer[0]}.attn{{n:1|2}}", f"{layer[1]}/attn{{n}}/attn")
        table += norm(f"{layer[0]}.norm{{n:1|2|3}}", f"{layer[1]}/norm{{n}}")
        table += feed_forward(f"{layer[0]}.ff", f"{layer[1]}/ff")
        positions = f"{layer[1]}/attn1/pe", f"{layer[1]}/attn2/pe"
        table.append(Rule(f"{layer[0]}.pos_embed.pe", positions, "share_unbatched"))
    return table


def _shell(source: str, target: str) -> list[Rule]:
    """The norm and the projections around the layers."""
    return [
        *norm(f"{source}.norm", f"{target}/norm"),
        *dense(f"{source}.proj_{{end:in|out}}", f"{target}/proj_{{end}}"),
    ]
