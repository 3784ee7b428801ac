"""What a backbone is: the network that a stage denoises with, as a value.

A stage's config names it (`config.StageConfig.unet`). A UNet's config is wrapped here; a config of
one's own is its own backbone: a frozen dataclass with the members of `Backbone`, named as
`module:Class` in recipes and cascade folders. docs/extending.md walks through one.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from mv2_jax import params as trees
from mv2_jax.config import UNetConfig
from mv2_jax.diffusion import keys as named
from mv2_jax.errors import InputError
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context
from mv2_jax.stages.conditions import Fed, Params


@runtime_checkable
class Backbone(Protocol):
    """A denoising network.

    in_channels: of its latents.
    frames: the longest clip that it knows (longer ones go in windows); None: any.
    parts: names of the parameter trees that it reads, `init`'s among them.
    own: the parts that each stage has for itself, stored as `part_stage` ("motion_i2v"); the
        others are shared by all stages that have one of that name.
    rules: (pattern, axes) rows for parameters that `sharding.RULES` does not know.
    sharded: whether its layers know of shards, as this package's do: see `models.backbone.denoise`,
        behind which each device of a mesh runs its samples. Else it has whole clips and parameters.
    """

    in_channels: int
    frames: int | None
    parts: tuple[str, ...]
    own: tuple[str, ...]
    rules: tuple[tuple[str, tuple[Any, ...]], ...]
    sharded: bool

    def init(self, key: jax.Array, x: jax.Array, t: jax.Array, fed: Fed) -> Params:
        """{part: fresh tree}; x, t and fed as in `apply`, of one sample."""
        ...

    def select(self, params: Params) -> Params:
        """Of all trees of a stage, what `apply` reads."""
        ...

    def apply(
        self,
        params: Params,
        x: jax.Array,
        t: jax.Array,
        fed: Fed,
        *,
        dtype: Any = jnp.float32,
        remat: bool = False,
    ) -> jax.Array:
        """The output at noisy latents x [N, T, h, w, C] and timesteps t [N], shaped like x.

        N are the rows of guidance times the samples. `params` holds what `select` says, and more.
        `dtype` is of computation; `remat` recomputes blocks in the backward pass, for memory.
        """
        ...


@dataclass(frozen=True)
class UNetBackbone:
    """`models.unet.UNet`: spatial weights, motion modules, and the image tokens' attention."""

    cfg: UNetConfig

    own = ("motion",)
    rules = ()
    sharded = True

    @property
    def in_channels(self) -> int:
        return self.cfg.in_channels

    @property
    def frames(self) -> int | None:
        return self.cfg.motion.max_frames if self.cfg.motion else None

    @property
    def parts(self) -> tuple[str, ...]:
        motion = ("motion",) if self.cfg.motion else ()
        return ("spatial", *motion, *(("image_attn",) if self.cfg.image_tokens else ()))

    def configs(self) -> dict[str, Any]:
        spatial = dataclasses.replace(self.cfg, motion=None, image_tokens=False)
        return {"spatial": spatial, "motion": self.cfg.motion}

    def init(self, key: jax.Array, x: jax.Array, t: jax.Array, fed: Fed) -> Params:
        moving = self.cfg.motion is not None or self.cfg.image_tokens
        init, name = jax.jit(UNet(self.cfg).init), "unet" if moving else "spatial"
        made = init(named.fold(key, name), x, t, Context(fed.text, fed.image), **fed.added)
        split = split_unet(made["params"])
        image = {"image_attn": {"unet": split["image_attn"]}} if self.cfg.image_tokens else {}
        motion = {"motion": split["motion"]} if self.cfg.motion else {}
        return {"spatial": split["spatial"], **motion, **image}

    def select(self, params: Params) -> Params:
        chosen = {name: params[name] for name in self.parts}
        if self.cfg.image_tokens:
            chosen["image_attn"] = {"unet": params["image_attn"]["unet"]}
        return chosen

    def apply(
        self,
        params: Params,
        x: jax.Array,
        t: jax.Array,
        fed: Fed,
        *,
        dtype: Any = jnp.float32,
        remat: bool = False,
    ) -> jax.Array:
        held = [params["spatial"]]
        if self.cfg.motion:
            held.append(params["motion"])
        image = ()
        if self.cfg.image_tokens:
            held.append(params["image_attn"]["unet"])
            image = (fed.image, fed.image_scale)
        network, own = UNet(self.cfg, dtype, remat), {"params": trees.merge(*held)}
        context = Context(fed.text, *image)
        return network.apply(own, x, t, context, residuals=fed.residuals, **fed.added)


def of(config: Any) -> Backbone:
    """The backbone that a stage's config names.

    Raises:
        InputError: a config that is none; the message says what it lacks.
    """
    if isinstance(config, UNetConfig):
        return UNetBackbone(config)
    if isinstance(config, type):
        raise InputError(f"{config.__name__} is a class; a backbone is {config.__name__}(...)")
    if not isinstance(config, Backbone):
        wanted = [*Backbone.__annotations__, "init", "select", "apply"]
        lacks = ", ".join(name for name in wanted if not hasattr(config, name))
        raise InputError(f"{type(config).__name__} is no backbone: it lacks {lacks}")
    return config


def split_unet(tree: Params) -> dict[str, Params]:
    """A whole UNet's tree as {"spatial", "motion", "image_attn"}; `params.merge` undoes it."""
    motion, rest = trees.split(tree, lambda path: "motion_modules_" in path)
    image, spatial = trees.split(rest, lambda path: re.search(r"/to_[kv]_ip/", path) is not None)
    return {"spatial": spatial, "motion": motion, "image_attn": image}
