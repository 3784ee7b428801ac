"""SparseCtrl's RGB encoder in the layouts of diffusers and of the AnimateDiff repository.

Both are a ControlNet's with one convolution in the place of the condition's embedding, and motion
modules of a single attention. The original file is one state dict below "controlnet".
"""

from __future__ import annotations

from collections.abc import Iterable

from mv2_jax.config import SparseControlConfig
from mv2_jax.convert.engine import Fill, Ignore, Rule, conv
from mv2_jax.convert.tables import controlnet, motion

Table = list[Rule | Ignore | Fill]


def diffusers(cfg: SparseControlConfig) -> Table:
    """diffusers' SparseControlNetModel."""
    return [*_body(cfg), *motion.diffusers(cfg.unet.motion.attentions)]


def original(cfg: SparseControlConfig, *, stored_positions: bool = True) -> Table:
    """The AnimateDiff repository's .ckpt, its names as below "controlnet"."""
    modules = motion.original(cfg.unet.motion.attentions, stored_positions=stored_positions)
    return [*_body(cfg), *modules]


def find(names: Iterable[str], cfg: SparseControlConfig) -> Table:
    """The table for a file's names (without any prefix that wraps them all).

    Raises:
        ValueError: not SparseCtrl's RGB encoder.
    """
    names = set(names)
    if "controlnet_cond_embedding.weight" not in names:
        raise ValueError(
            "not SparseCtrl's RGB encoder: it has one convolution, controlnet_cond_embedding.weight"
            " (the scribble encoder has a stack of them)"
        )
    layout = motion.layout(names)
    if layout.original:
        return original(cfg, stored_positions=layout.stored_positions)
    return diffusers(cfg)


def _body(cfg: SparseControlConfig) -> list[Rule]:
    """Everything but the motion modules."""
    embedding = "controlnet_cond_embedding"
    return [*controlnet.body(cfg.unet), *conv(embedding, embedding)]
