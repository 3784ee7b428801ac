"""AnimateDiff motion modules (v1, v2, v3 and their kin) in the original and diffusers layouts.

Positional encodings are kept as stored, for some modules retrained theirs. The original layout
stores one for each attention, diffusers one for all of a layer.

Hotshot-XL's are AnimateDiff's under other words, which `hotshot` translates.

`find` tells the layout of a file, and `describe` the config of the modules in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mv2_jax.config import MotionConfig
from mv2_jax.convert.engine import Fill, Ignore, Rule, dense, norm
from mv2_jax.convert.tables.unet import attention, feed_forward
from mv2_jax.nn.motion import sinusoid_table

Table = list[Rule | Ignore | Fill]

_PLACES = (
    ("{side:down|up}_blocks.{i}.motion_modules.{j}", "{side}_blocks_{i}/motion_modules_{j}"),
    ("mid_block.motion_modules.{j}", "mid_block/motion_modules_{j}"),
)


class MotionLayout(NamedTuple):
    """How a file names motion modules, and whether it holds their positional encodings."""

    original: bool
    stored_positions: bool


def layout(names: Iterable[str]) -> MotionLayout:
    """The layout of a file, which may hold other things too.

    Raises:
        ValueError: no motion modules of a known layout.
    """
    names = [name for name in names if ".motion_modules." in name]
    if any(".temporal_transformer." in name for name in names):
        return MotionLayout(True, any(name.endswith(".pos_encoder.pe") for name in names))
    if any(".attn1." in name for name in names):
        return MotionLayout(False, any(name.endswith(".pos_embed.pe") for name in names))
    raise ValueError(
        "no motion modules of a known layout in this file (AnimateDiff's own and diffusers' "
        "MotionAdapter are known)"
    )


def hotshot(names: Iterable[str]) -> dict[str, str]:
    """{name in AnimateDiff's words: its own} of a file of Hotshot-XL's temporal layers."""
    return {
        re.sub(
            r"\.temporal_attentions\.(\d+)\.", r".motion_modules.\1.temporal_transformer.", name
        ).replace(".pos_encoder.positional_encoding", ".pos_encoder.pe"): name
        for name in names
        if ".temporal_attentions." in name
    }


def find(names: Iterable[str], attentions: int = 2) -> Table:
    """The table for a file of motion modules. Raises as `layout` does."""
    found = layout(names)
    write = original if found.original else diffusers
    return write(attentions, stored_positions=found.stored_positions)


def describe(shapes: Mapping[str, tuple[int, ...]]) -> MotionConfig:
    """The config of a file's motion modules, told from its names and shapes.

    Two versions computed differently from what their shapes say, and are known by them: v1 (24
    positions on four levels) normalised over whole clips in the UNet's resnets, and SDXL's (three
    levels) in the modules themselves. Heads and groups leave no trace; they are 8 and 32 in every
    published version.

    Raises:
        ValueError: no motion modules of a known layout.
    """
    found = layout(shapes)
    names = [name for name in shapes if ".motion_modules." in name]
    blocks = r"\.attention_blocks\.(\d+)\." if found.original else r"\.attn(\d+)\."

    def count(pattern: str) -> int:
        return len({match[1] for name in names if (match := re.search(pattern, name))})

    positions = {shapes[name][1] for name in names if name.endswith(".pe")}
    frames = min(positions, default=MotionConfig.max_frames)
    levels = count(r"^down_blocks\.(\d+)\.")
    return MotionConfig(
        max_frames=frames,
        layers=count(r"\.transformer_blocks\.(\d+)\."),
        attentions=count(blocks),
        mid_block=any(name.startswith("mid_block.") for name in names),
        norm_scope="clip" if levels == 3 else "frame",
        resnet_norm_scope="clip" if levels == 4 and frames == 24 else "frame",
    )


def original(attentions: int = 2, *, stored_positions: bool = True) -> Table:
    """The layout of the AnimateDiff repository's .ckpt files.

    Args:
        attentions: self-attentions a layer (2 in a video UNet, 1 in SparseCtrl).
        stored_positions: False for modules published without encodings (AnimateLCM): they are
            the sinusoid's.
    """
    table: Table = [Ignore("animatediff_config{rest:**}", "settings stored among the weights")]
    for source, target in _PLACES:
        source = f"{source}.temporal_transformer"
        layer = f"{source}.transformer_blocks.{{k}}", f"{target}/transformer_blocks_{{k}}"
        table += _shell(source, target)
        for n in range(attentions):
            block = f"{layer[0]}.attention_blocks.{n}", f"{layer[1]}/attn{n + 1}"
            table += attention(block[0], f"{block[1]}/attn")
            table += norm(f"{layer[0]}.norms.{n}", f"{layer[1]}/norm{n + 1}")
            if stored_positions:
                table.append(Rule(f"{block[0]}.pos_encoder.pe", f"{block[1]}/pe", "unbatch"))
        table += norm(f"{layer[0]}.ff_norm", f"{layer[1]}/norm{attentions + 1}")
        table += feed_forward(f"{layer[0]}.ff", f"{layer[1]}/ff")
    return table if stored_positions else [*table, _POSITIONS]


def diffusers(attentions: int = 2, *, stored_positions: bool = True) -> Table:
    """The layout of diffusers' MotionAdapter. Arguments as of `original`; 1 or 2 attentions.

    Its third norm is the feed-forward's, whatever stands before it.
    """
    table: Table = []
    for source, target in _PLACES:
        layer = f"{source}.transformer_blocks.{{k}}", f"{target}/transformer_blocks_{{k}}"
        table += _shell(source, target)
        for n in range(1, attentions + 1):
            table += attention(f"{layer[0]}.attn{n}", f"{layer[1]}/attn{n}/attn")
            table += norm(f"{layer[0]}.norm{n}", f"{layer[1]}/norm{n}")
        table += norm(f"{layer[0]}.norm3", f"{layer[1]}/norm{attentions + 1}")
        table += feed_forward(f"{layer[0]}.ff", f"{layer[1]}/ff")
        if stored_positions:
            positions = tuple(f"{layer[1]}/attn{n}/pe" for n in range(1, attentions + 1))
            op = "unbatch" if attentions == 1 else "share_unbatched"
            table.append(Rule(f"{layer[0]}.pos_embed.pe", positions, op))
    return table if stored_positions else [*table, _POSITIONS]


_POSITIONS = Fill("{layer:**}/attn{n:1|2}/pe", lambda shape: sinusoid_table(*shape))


def _shell(source: str, target: str) -> list[Rule]:
    """The norm and the projections around the layers."""
    return [
        *norm(f"{source}.norm", f"{target}/norm"),
        *dense(f"{source}.proj_{{end:in|out}}", f"{target}/proj_{{end}}"),
    ]
