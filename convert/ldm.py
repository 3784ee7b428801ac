"""The names of single-file Stable Diffusion checkpoints (Latent Diffusion's), as diffusers' names.

A file of a model site holds a UNet below `model.diffusion_model.`, a VAE below
`first_stage_model.` and text encoders, in the names of the first code (CompVis/latent-diffusion,
its ControlNet lllyasviel/ControlNet, its SDXL Stability-AI/generative-models). The tables know
diffusers' names alone, so these functions say what each module is called there:

    modules = unet_modules(4, 2)  # {"input_blocks.1.1": "down_blocks.0.attentions.0", ...}
    names = {renamed(name, modules): name for name in names}

A name that is no module's stays as it is, and so is unknown to the table, which reports it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_EMBEDDINGS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
_VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def renamed(name: str, modules: Mapping[str, str]) -> str:
    """A tensor's name in diffusers' words: its module's, then what follows the module's own."""
    stem = name
    while stem:
        if stem in modules:
            return modules[stem] + name[len(stem) :]
        stem = stem.rpartition(".")[0]
    return name


def unet_counts(names: Collection[str]) -> tuple[int, int]:
    """(levels, resnets a level) of a UNet or ControlNet, from its names.

    Blocks are numbered through; the first that only halves the plane ends the first level.
    """
    halving = _numbers(names, r"input_blocks\.(\d+)\.0\.op\.")
    blocks = _numbers(names, r"input_blocks\.(\d+)\.")
    layers = halving[0] - 1 if halving else blocks[-1]
    return len(halving) + 1, layers


def unet_modules(levels: int, layers: int) -> dict[str, str]:
    """{module of a UNet or ControlNet in LDM's names: in diffusers'}.

    Where a level has no transformer, what follows a resnet there has its number; names tell the
    two apart, so both are listed.
    """
    modules = dict(_EMBEDDINGS)
    for i in range(levels):
        for j in range(layers):
            source = f"input_blocks.{1 + i * (layers + 1) + j}"
            modules |= _unit(source, f"down_blocks.{i}", j)
        halving = f"input_blocks.{(i + 1) * (layers + 1)}.0.op"
        modules[halving] = f"down_blocks.{i}.downsamplers.0.conv"
        for j in range(layers + 1):
            source = f"output_blocks.{i * (layers + 1) + j}"
            modules |= _unit(source, f"up_blocks.{i}", j)
            for part in (1, 2):
                modules[f"{source}.{part}.conv"] = f"up_blocks.{i}.upsamplers.0.conv"
    modules |= _parts("middle_block.0", "mid_block.resnets.0", _RESNET)
    modules["middle_block.1"] = "mid_block.attentions.0"
    return modules | _parts("middle_block.2", "mid_block.resnets.1", _RESNET)


def controlnet_modules(names: Collection[str]) -> dict[str, str]:
    """`unet_modules` of a ControlNet with these names, and its own parts."""
    modules = unet_modules(*unet_counts(names))
    for n in _numbers(names, r"zero_convs\.(\d+)\.0\."):
        modules[f"zero_convs.{n}.0"] = f"controlnet_down_blocks.{n}"
    modules["middle_block_out.0"] = "controlnet_mid_block"
    # Convolutions and activations take turns; the first and the last have names of their own.
    hints = _numbers(names, r"input_hint_block\.(\d+)\.")
    for k, n in enumerate(hints):
        part = "conv_in" if k == 0 else "conv_out" if n == hints[-1] else f"blocks.{k - 1}"
        modules[f"input_hint_block.{n}"] = f"controlnet_cond_embedding.{part}"
    return modules


def vae_modules(names: Collection[str]) -> dict[str, str]:
    """{module of an autoencoder in LDM's names: in diffusers'}. Decoder levels count backwards."""
    modules: dict[str, str] = {}
    for half, side in (("encoder", "down"), ("decoder", "up")):
        levels = _numbers(names, rf"{half}\.{side}\.(\d+)\.")
        for i in levels:
            level = i if side == "down" else levels[-1] - i
            source, target = f"{half}.{side}.{i}", f"{half}.{side}_blocks.{level}"
            for j in _numbers(names, rf"{re.escape(source)}\.block\.(\d+)\."):
                modules |= _parts(f"{source}.block.{j}", f"{target}.resnets.{j}", _VAE_RESNET)
            change = f"{side}sample.conv"
            modules[f"{source}.{change}"] = f"{target}.{side}samplers.0.conv"
        middle = f"{half}.mid_block"
        for j in range(2):
            modules |= _parts(f"{half}.mid.block_{j + 1}", f"{middle}.resnets.{j}", _VAE_RESNET)
        modules |= _parts(f"{half}.mid.attn_1", f"{middle}.attentions.0", _VAE_ATTENTION)
        modules[f"{half}.norm_out"] = f"{half}.conv_norm_out"
    return modules


def _unit(source: str, block: str, j: int) -> dict[str, str]:
    """A resnet and the transformer that may follow it."""
    modules = _parts(f"{source}.0", f"{block}.resnets.{j}", _RESNET)
    return modules | {f"{source}.1": f"{block}.attentions.{j}"}


def _parts(source: str, target: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{source}.{theirs}": f"{target}.{ours}" for theirs, ours in parts.items()}


def _numbers(names: Collection[str], pattern: str) -> list[int]:
    """The numbers that a pattern's group takes, in order."""

    def found() -> Iterator[int]:
        for name in names:
            match = re.match(pattern, name)
            if match:
                yield int(match[1])

    return sorted(set(found()))
