"""RIFE 4.0 as hzwer/Practical-RIFE saved it (`flownet.pkl`), its refinement networks included."""

from __future__ import annotations

from mv2_jax.convert.engine import Ignore, Rule, conv, dense, under
from mv2_jax.convert.rules import Table


def rules(prefix: str = "") -> Table:
    """The table of the whole network; `prefix` is what the file puts before every name."""
    return under(
        [
            *_conv_prelu("block{i}.conv0.{j}", "block_{i}/conv0_{j}"),
            *_conv_prelu("block{i}.convblock.{j}", "block_{i}/convblock_{j}"),
            *dense("block{i}.lastconv", "block_{i}/lastconv", op="conv_transpose"),
            *_conv_prelu("contextnet.conv{i}.conv{j}", "contextnet/conv{i}_conv{j}"),
            *_conv_prelu("unet.down{i}.conv{j}", "unet/down{i}_conv{j}"),
            *dense("unet.up{i}.0", "unet/up{i}_0", op="conv_transpose"),
            Rule("unet.up{i}.1.weight", "unet/up{i}_1/alpha"),
            *conv("unet.conv", "unet/conv"),
            Ignore("block_tea.{x:**}", "a block that saw the true frame, for training"),
        ],
        prefix,
    )


def _conv_prelu(source: str, target: str) -> list[Rule]:
    return [
        *conv(f"{source}.0", f"{target}/conv"),
        Rule(f"{source}.1.weight", f"{target}/prelu/alpha"),
    ]
