"""SD1.5's UNet with IP-Adapter-Plus: resampler and image attention, in torch and here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mv2_jax.config import ImageProjectionConfig, UNetConfig
from mv2_jax.convert import sources
from mv2_jax.convert.beside.case import Case, filled, last, noise, shapes
from mv2_jax.convert.beside.unets import inputs_of, narrow, unet_shape, unet_target, ups
from mv2_jax.convert.sources import Renamed
from mv2_jax.convert.tables import ip_adapter, ip_attention, unet
from mv2_jax.models.image_projection import ImageProjection
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context
from mv2_jax.params import merge, split

PATCHES = 257  # of ViT-H's 224 x 224 picture, the class token included


def adapter(small: bool) -> Case:
    """The states of a vision encoder in, the UNet's answer out."""
    cfg, side = dataclasses.replace(UNetConfig(), image_tokens=True), 64
    projection = ImageProjectionConfig()
    if small:
        cfg, side = narrow(cfg), 9
        projection = ImageProjectionConfig(
            in_width=80, width=48, out_width=cfg.context_width, heads=3, head_width=16
        )

    def given() -> dict[str, np.ndarray]:
        states = noise(1, PATCHES, projection.in_width, seed=4)
        return {**inputs_of(cfg, 1, side), "states": states}

    def theirs(module: Any, given: dict[str, Any]) -> list[Any]:
        x = given["x"][:, 0].permute(0, 3, 1, 2)
        tokens = module.projection(given["states"])
        added = {"image_embeds": [tokens]}
        out = module.unet(x, given["t"], given["text"], added_cond_kwargs=added).sample
        return [tokens, last(out)[:, None]]

    def ours(dtype: Any, params: Any, given: dict[str, Any]) -> list[jax.Array]:
        resampler = {"params": params["projection"]}
        tokens = ImageProjection(projection, dtype).apply(resampler, given["states"])
        context = Context(given["text"], tokens)
        network = {"params": params["unet"]}
        return [tokens, UNet(cfg, dtype).apply(network, given["x"], given["t"], context)]

    def fill(folder: Path) -> Any:
        target, some = unet_target(cfg, given()), given()
        image, spatial = split(target, lambda name: "_ip/" in name)
        source = sources.load(folder / "adapter.safetensors")
        found = ip_adapter.find(source)
        attention = {key: source[key] for key in source if key.startswith("ip_adapter.")}
        return {
            "unet": merge(
                filled(sources.load(folder / "unet"), unet.rules(cfg), spatial),
                filled(attention, ip_attention.rules(cfg), image),
            ),
            "projection": filled(
                Renamed(source, found.prefix),
                found.table,
                shapes(ImageProjection(projection), some["states"]),
            ),
        }

    return Case(lambda: build(cfg, projection), given, theirs, ours, fill, save)


def build(cfg: UNetConfig, projection: ImageProjectionConfig) -> Any:
    """A module of diffusers' UNet, its image attention as IP-Adapter's file numbers it, and the
    resampler."""
    import diffusers
    import torch
    from diffusers.models import embeddings
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    shape = unet_shape(cfg)
    up = ups(shape["down_block_types"])
    network = diffusers.UNet2DConditionModel(
        up_block_types=up, attention_head_dim=cfg.heads, **shape
    )
    whole = torch.nn.Module()
    whole.unet, whole.attention = network, torch.nn.ModuleDict()
    processors = dict(network.attn_processors)
    for number, name in enumerate(processors):
        if "attn2" in name:
            width = network.get_submodule(name.removesuffix(".processor")).to_q.weight.shape[0]
            processors[name] = IPAdapterAttnProcessor2_0(
                width, cfg.context_width, (projection.tokens,)
            )
            whole.attention[str(number)] = processors[name]
    whole.plain_names = list(network.state_dict())
    network.set_attn_processor(processors)
    network.encoder_hid_proj = torch.nn.Identity()
    network.register_to_config(encoder_hid_dim_type="ip_image_proj")
    whole.projection = embeddings.IPAdapterPlusImageProjection(
        embed_dims=projection.in_width,
        output_dims=projection.out_width,
        hidden_dims=projection.width,
        depth=projection.depth,
        dim_head=projection.head_width,
        heads=projection.heads,
        num_queries=projection.tokens,
    )
    return whole


def save(module: Any, folder: Path) -> None:
    """The UNet as diffusers names it, and the adapter as IP-Adapter's own file does."""
    from safetensors.torch import save_file

    (folder / "unet").mkdir(parents=True, exist_ok=True)
    state = module.unet.state_dict()
    plain = {name: state[name] for name in module.plain_names}
    save_file(plain, folder / "unet" / "diffusion_pytorch_model.safetensors")
    adapter = {f"image_proj.{name}": x for name, x in module.projection.state_dict().items()}
    for number, processor in module.attention.items():
        for letter in "kv":
            weight = getattr(processor, f"to_{letter}_ip")[0].weight
            adapter[f"ip_adapter.{number}.to_{letter}_ip.weight"] = weight.detach()
    save_file(adapter, folder / "adapter.safetensors")
