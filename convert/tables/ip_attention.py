"""IP-Adapter's image cross-attention: keys and values beside the text's in every attn2.

The original files number the attentions of a whole UNet, self-attentions (which hold nothing)
included, in the order down, up, mid; so the numbers depend on the UNet's shape.
"""

from __future__ import annotations

from collections.abc import Iterator

from mv2_jax.config import UNetConfig
from mv2_jax.convert.engine import Rule, dense


def rules(cfg: UNetConfig) -> list[Rule]:
    """The table of `ip_adapter.{n}.to_k_ip` and `to_v_ip`."""
    table: list[Rule] = []
    for m, target in enumerate(cross_attentions(cfg)):
        source = f"ip_adapter.{2 * m + 1}"
        table += dense(f"{source}.to_{{x:k|v}}_ip", f"{target}/to_{{x}}_ip", bias=False)
    return table


def cross_attentions(cfg: UNetConfig) -> Iterator[str]:
    """The tree paths of every attn2, in the original's order."""
    levels = list(enumerate(cfg.transformers))
    places = [(f"down_blocks_{i}", cfg.layers_per_block, depth) for i, depth in levels]
    places += [
        (f"up_blocks_{i}", cfg.layers_per_block + 1, depth)
        for i, depth in enumerate(reversed(cfg.transformers))
    ]
    places.append(("mid_block", 1, cfg.mid_transformers))
    for place, units, depth in places:
        for j in range(units):
            for k in range(depth):
                yield f"{place}/attentions_{j}/transformer_blocks_{k}/attn2"
