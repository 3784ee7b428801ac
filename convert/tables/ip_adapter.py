"""IP-Adapter's image projections: from an image's features to context tokens.

The adapter's other half, `ip_adapter.{n}.to_k_ip`, is the UNet's: see tables/ip_attention.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from mv2_jax.convert.engine import Rule, dense, norm
from mv2_jax.convert.tables.clip import EncoderNames


def original_linear() -> list[Rule]:
    """IP-Adapter's own names for its one linear layer."""
    return [*dense("proj", "image_embeds"), *norm("norm", "norm")]


def diffusers_linear() -> list[Rule]:
    """diffusers' ImageProjection."""
    return [*dense("image_embeds", "image_embeds"), *norm("norm", "norm")]


def original_full() -> list[Rule]:
    """IP-Adapter's own names for the full-face adapter's two linear layers."""
    return [
        *dense("proj.0", "ff/net_0/proj"),
        *dense("proj.2", "ff/net_2"),
        *norm("proj.3", "norm"),
    ]


def diffusers_full() -> list[Rule]:
    """diffusers' IPAdapterFullImageProjection."""
    return [
        *dense("ff.net.0.proj", "ff/net_0/proj"),
        *dense("ff.net.2", "ff/net_2"),
        *norm("norm", "norm"),
    ]


def original_resampler() -> list[Rule]:
    """IP-Adapter-Plus's own names: key and value fused, the parts of a layer numbered."""
    attention, mlp = "layers.{i}.0", "layers.{i}.1"
    keys_values = tuple(f"layers_{{i}}/attn/to_{letter}/kernel" for letter in "kv")
    return [
        *_ends(),
        *norm(f"{attention}.norm1", "layers_{i}/ln0"),
        *norm(f"{attention}.norm2", "layers_{i}/ln1"),
        *dense(f"{attention}.to_q", "layers_{i}/attn/to_q", bias=False),
        Rule(f"{attention}.to_kv.weight", keys_values, "split_kv"),
        *dense(f"{attention}.to_out", "layers_{i}/attn/to_out_0", bias=False),
        *norm(f"{mlp}.0", "layers_{i}/ff_0"),
        *dense(f"{mlp}.1", "layers_{i}/ff_1/net_0/proj", bias=False),
        *dense(f"{mlp}.3", "layers_{i}/ff_1/net_2", bias=False),
    ]


def diffusers_resampler() -> list[Rule]:
    """diffusers' IPAdapterPlusImageProjection."""
    table = _ends()
    for source, target in (("ln0", "ln0"), ("ln1", "ln1"), ("ff.0", "ff_0")):
        table += norm(f"layers.{{i}}.{source}", f"layers_{{i}}/{target}")
    for source, target in (
        ("attn.to_{x:q|k|v}", "attn/to_{x}"),
        ("attn.to_out.0", "attn/to_out_0"),
        ("ff.1.net.0.proj", "ff_1/net_0/proj"),
        ("ff.1.net.2", "ff_1/net_2"),
    ):
        table += dense(f"layers.{{i}}.{source}", f"layers_{{i}}/{target}", bias=False)
    return table


_MARKS = {
    "proj.3.weight": original_full,
    "ff.net.0.proj.weight": diffusers_full,
    "proj.weight": original_linear,
    "image_embeds.weight": diffusers_linear,
    "layers.0.0.to_kv.weight": original_resampler,
    "layers.0.attn.to_k.weight": diffusers_resampler,
}
_PREFIXES = ("image_proj.", "encoder_hid_proj.image_projection_layers.0.", "")


def find(names: Iterable[str]) -> EncoderNames:
    """Where in an adapter's file its image projection is, and the table for it.

    Raises:
        ValueError: names of no layout known here (a FaceID adapter, for instance).
    """
    names = set(names)
    for mark, table in _MARKS.items():
        for prefix in _PREFIXES:
            if prefix + mark in names:
                return EncoderNames(prefix, table())
    raise ValueError(
        "no IP-Adapter image projection of a known layout in this file (the base, Plus and "
        "full-face adapters are known; FaceID ones are not)"
    )


def _ends() -> list[Rule]:
    return [
        Rule("latents", "latents"),
        *dense("proj_in", "proj_in"),
        *dense("proj_out", "proj_out"),
        *norm("norm_out", "norm_out"),
    ]
