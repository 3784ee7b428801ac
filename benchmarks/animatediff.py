"""AnimateDiff's own UNet, from a checkout of github.com/guoyww/AnimateDiff, and here.

The checkout's code runs as its authors wrote it, with its own inference configs; none of it is
here. It was written for diffusers 0.11. What has moved since stands in its old place while it is
imported, and no longer:

    diffusers.modeling_utils                      diffusers.models.modeling_utils
    diffusers.models.attention.CrossAttention     today's Attention, its methods named as then
    torchvision                                   imported there and never used: an empty module

So blocks, resnets, norms, motion modules and their positions are the checkout's; the arithmetic of
one attention, the feed-forward and the time embedding are the installed diffusers'.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from mv2_jax.config import MotionConfig, UNetConfig
from mv2_jax.convert import sources
from mv2_jax.convert.beside.case import Case, filled
from mv2_jax.convert.beside.unets import inputs_of, narrow, unet_target
from mv2_jax.convert.tables import motion, unet
from mv2_jax.errors import InputError
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context

# Positions as the published files hold them: 24 in v1's, 32 in the others'.
VERSIONS = {
    "v1": MotionConfig(max_frames=24, resnet_norm_scope="clip"),
    "v2": MotionConfig(mid_block=True),
    "v3": MotionConfig(),
}
MODELS, CONFIG = "animatediff/models", "configs/inference/inference-{}.yaml"
PACKAGE = "animatediff_checkout"  # an `animatediff` that is installed is never meant
FILE = "original.safetensors"


def check(folder: Path) -> None:
    """Says whether the folder can be run.

    Raises:
        InputError: it is no checkout of guoyww/AnimateDiff's main branch, or einops is missing.
    """
    parts = ("unet", "unet_blocks", "attention", "resnet", "motion_module")
    needed = [f"{MODELS}/{name}.py" for name in parts]
    needed += [CONFIG.format(version) for version in VERSIONS]
    for name in needed:
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} is no checkout of github.com/guoyww/AnimateDiff: it has no {name}"
            )
    if importlib.util.find_spec("einops") is None:
        raise InputError("AnimateDiff's code needs einops: pip install einops")


def original(version: str, small: bool, folder: Path) -> Case:
    """SD1.5 with a version's motion modules on eight frames, torch's side from the checkout."""
    cfg, side = UNetConfig(motion=VERSIONS[version]), 64
    cfg, side = (narrow(cfg), 9) if small else (cfg, side)
    given = functools.partial(inputs_of, cfg, 8, side)

    def make() -> Any:
        return network(folder)(
            block_out_channels=cfg.channels,
            layers_per_block=cfg.layers_per_block,
            attention_head_dim=cfg.heads,  # their number, as in diffusers
            cross_attention_dim=cfg.context_width,
            norm_num_groups=cfg.norm_groups,
            **settings(folder, version, cfg.motion),
        )

    def theirs(module: Any, given: dict[str, Any]) -> list[Any]:
        x = given["x"].permute(0, 4, 1, 2, 3)
        return [module(x, given["t"], given["text"]).sample.permute(0, 2, 3, 4, 1)]

    def ours(dtype: Any, params: Any, given: dict[str, Any]) -> list[jax.Array]:
        context = Context(given["text"])
        return [UNet(cfg, dtype).apply({"params": params}, given["x"], given["t"], context)]

    def fill(folder: Path) -> Any:
        return convert(sources.load(folder / FILE), cfg, given())

    return Case(make, given, theirs, ours, fill, save)


def convert(source: Mapping[str, Any], cfg: UNetConfig, given: dict[str, np.ndarray]) -> Any:
    """Our parameters, once the file alone has told that its modules are the config's.

    Raises:
        ValueError: it tells of other modules.
    """
    told = motion.describe({name: sources.spec(source, name).shape for name in source})
    # Heads and groups leave no trace in a file, and narrow networks have others.
    told = dataclasses.replace(told, heads=cfg.motion.heads, norm_groups=cfg.motion.norm_groups)
    if told != cfg.motion:
        raise ValueError(f"the file is read as {told}, and is {cfg.motion}")
    table = [*unet.rules(cfg), *motion.find(source)]
    return filled(source, table, unet_target(cfg, given))


def save(module: Any, folder: Path) -> None:
    """The weights under the checkout's names, with the positions, as published files hold them."""
    from safetensors.torch import save_file

    positions = {name: x for name, x in module.named_buffers() if name.endswith(".pe")}
    save_file({**module.state_dict(), **positions}, folder / FILE)


def settings(folder: Path, version: str, cfg: MotionConfig) -> dict[str, Any]:
    """What the version's inference config gives to the UNet, with our heads and positions."""
    import yaml

    text = (folder / CONFIG.format(version)).read_text()
    told = yaml.safe_load(text)["unet_additional_kwargs"]
    own = {
        "num_attention_heads": cfg.heads,
        "temporal_position_encoding_max_len": cfg.max_frames,  # the configs leave it at 24
    }
    return {**told, "motion_module_kwargs": {**told["motion_module_kwargs"], **own}}


def network(folder: Path) -> type:
    """The checkout's UNet3DConditionModel."""
    package = ModuleType(PACKAGE)
    package.__path__ = [str(folder / MODELS)]
    with standing_in({PACKAGE: package, **stand_ins()}):
        return importlib.import_module(f"{PACKAGE}.unet").UNet3DConditionModel


def stand_ins() -> dict[str, ModuleType]:
    """Modules by the names under which diffusers 0.11 had what the checkout imports."""
    from diffusers.models import attention, modeling_utils, normalization
    from diffusers.models.attention_processor import Attention

    class CrossAttention(Attention):
        """Attention with what the motion modules' own forward passes ask of it."""

        _slice_size = None
        _use_memory_efficient_attention_xformers = False

        def reshape_heads_to_batch_dim(self, x: Any) -> Any:
            return self.head_to_batch_dim(x)

        def _attention(self, query: Any, key: Any, value: Any, mask: Any = None) -> Any:
            scores = self.get_attention_scores(query, key, mask)
            return self.batch_to_head_dim(scores @ value)

    old = ModuleType("diffusers.models.attention")
    old.CrossAttention, old.FeedForward = CrossAttention, attention.FeedForward
    old.AdaLayerNorm = normalization.AdaLayerNorm
    return {
        "diffusers.modeling_utils": modeling_utils,
        "diffusers.models.attention": old,
        "torchvision": ModuleType("torchvision"),
    }


@contextlib.contextmanager
def standing_in(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """These modules under these names while it lasts."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
