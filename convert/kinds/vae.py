"""Autoencoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mv2_jax.config import VAEConfig
from mv2_jax.convert import ldm, published, structure, targets
from mv2_jax.convert.kind import Kind, Layout, Part, below, claim, prefixes, shapes, translated
from mv2_jax.convert.kinds.bodies import LDM
from mv2_jax.convert.tables import vae

# What latents are multiplied by, where no config says it.
SCALING, SCALING_SDXL = 0.18215, 0.13025


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    """The autoencoders of a source."""
    # Which VAE a bare file is leaves no trace in it; one beside SDXL's UNet is SDXL's.
    beside_sdxl = any(name.endswith("label_emb.0.0.weight") for name in source)
    scaling = SCALING_SDXL if beside_sdxl else SCALING
    table = vae.rules()
    for prefix in prefixes(source, "encoder.conv_in.weight"):
        names, layout = below(source, prefix), "diffusers"
        if "encoder.mid.block_1.conv1.weight" in names:
            names, layout = translated(names, ldm.vae_modules), LDM
        cfg = structure.vae(shapes(source, names), settings, scaling)
        yield Part("vae", title(cfg), layout, claim(source, names, table), table, cfg)


def title(cfg: VAEConfig) -> str:
    """What it is, for a person."""
    return f"a VAE (latents scaled by {cfg.scaling_factor:g})"


def layout(bundle: Any, cfg: VAEConfig) -> Layout:
    """diffusers' folder."""
    return published.diffusers(vae.rules(), published.vae(cfg))


KIND = Kind(
    title="a VAE",
    serves="--vae or --t2i-vae",
    find=find,
    config=VAEConfig,
    target=targets.vae,
    layout=layout,
    compare="mv2_jax.convert.compare_networks:vae",
)
