"""Autoencoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mv2_jax.config import VAEConfig
from mv2_jax.convert import config_from_shapes, diffusers_config, ldm, param_shapes
from mv2_jax.convert.kind import (
    FileNetwork,
    Kind,
    Layout,
    Torch,
    below,
    claim,
    prefixes,
    same,
    shapes,
    translated,
)
from mv2_jax.convert.kinds.bodies import LDM
from mv2_jax.convert.tables import vae

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle
    from mv2_jax.convert.compare_networks import Job
    from mv2_jax.convert.pending import PendingNetwork

# What latents are multiplied by, where no config says it.
SCALING, SCALING_SDXL = 0.18215, 0.13025


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[FileNetwork]:
    """The autoencoders of a source."""
    # Which VAE a bare file is leaves no trace in it; one beside SDXL's UNet is SDXL's.
    beside_sdxl = any(name.endswith("label_emb.0.0.weight") for name in source)
    scaling = SCALING_SDXL if beside_sdxl else SCALING
    table = vae.rules()
    for prefix in prefixes(source, "encoder.conv_in.weight"):
        names, layout = below(source, prefix), "diffusers"
        if "encoder.mid.block_1.conv1.weight" in names:
            names, layout = translated(names, ldm.vae_modules), LDM
        cfg = config_from_shapes.vae(shapes(source, names), settings, scaling)
        yield FileNetwork("vae", title(cfg), layout, claim(source, names, table), table, cfg)


def title(cfg: VAEConfig) -> str:
    """What it is, for a person."""
    return f"a VAE (latents scaled by {cfg.scaling_factor:g})"


def layout(bundle: Bundle, cfg: VAEConfig) -> Layout:
    """diffusers' folder."""
    return diffusers_config.diffusers(vae.rules(), diffusers_config.vae(cfg))


def fits(name: str, network: PendingNetwork, built: Mapping[str, PendingNetwork]) -> None:
    """Whether its latents are those of the UNet that it serves, T2I's own or the others'."""
    own = name == "t2i_vae"
    unet, whose = ("t2i_unet", "T2I's UNet") if own else ("spatial", "the UNet")
    theirs = built[unet].config.in_channels
    same(network, network.config.plane_channels, theirs, "latent channels", whose)


def expected(job: Job) -> dict[str, Any]:
    """What its latents are shifted and multiplied by."""
    said = job.network.found.settings
    unet = job.all.get("t2i_unet") if job.name == "t2i_vae" else job.all["spatial"]
    # What the publishers' own code has: CompVis' v1-inference.yaml and Stability's sd_xl_base.yaml.
    plain = SCALING_SDXL if unet is not None and unet.config.pooled_width else SCALING
    scaling = said.get("scaling_factor") or (SCALING if said else plain)
    return {"scaling_factor": scaling, "shift_factor": said.get("shift_factor") or 0.0}


KIND = Kind(
    title="a VAE",
    serves="--vae or --t2i-vae",
    find=find,
    config=VAEConfig,
    target=param_shapes.vae,
    layout=layout,
    fits=fits,
    torch=Torch(
        compare="mv2_jax.convert.compare_networks:vae",
        published=lambda cfg, unet: diffusers_config.vae(cfg),
        unsaid=lambda cfg: {"norm_num_groups": 32},
        converters={LDM: "mv2_jax.convert.reference:ldm_vae"},
        expected=expected,
    ),
)
