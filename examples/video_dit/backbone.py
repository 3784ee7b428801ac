"""The DiT as a backbone, and the condition that shows it the reference picture's latent."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mv2_jax.stages.conditions import Usual
from video_dit.network import DiT


@dataclass(frozen=True)
class Reference(Usual):
    """The reference's scaled latent [B, h, w, C], in training the first frame's. Nothing is zeros.

    It has no parameters; withheld and dropped together with the picture's tokens.
    """

    name = "reference"
    role = "image"
    drop = "drop_image"
    needs = ("reference",)
    trees = ()

    def blank(self, cfg, batch):
        return {"reference": jnp.zeros((batch, *cfg.latent_shape[1:]))}

    def init(self, cfg, key, x, t, context, held):
        return {}

    def encode(self, params, cfg, inputs):
        shown = inputs.get("reference")
        shown = inputs["latent"][:, 0] if shown is None else shown
        return shown, jnp.zeros_like(shown)

    def feed(self, params, cfg, conditioning, x, t, context):
        return context.replace(more={**context.more, "reference": conditioning})


@dataclass(frozen=True)
class VideoDiT:
    """`width` is that of tokens; `patch` cells a side of the latent plane make one of them."""

    in_channels: int = 16
    frames: int | None = 8
    width: int = 128
    depth: int = 4
    heads: int = 4
    patch: int = 2

    parts = ("dit",)
    own = ("dit",)  # stored as dit_i2v
    rules = (  # the rest are named as the package's layers
        (r"/ada/kernel$", (None, "fsdp")),
        (r"/ada/bias$", ()),
    )
    sharded = True

    def network(self, dtype=jnp.float32, remat=False):
        return DiT(self.width, self.depth, self.heads, self.patch, dtype, remat)

    def init(self, key, x, t, context):
        made = jax.jit(self.network().init)(key, x, t, *self._given(context))
        return {"dit": made["params"]}

    def select(self, params):
        return {"dit": params["dit"]}

    def apply(self, params, x, t, context, *, dtype=jnp.float32, remat=False):
        network, own = self.network(dtype, remat), {"params": params["dit"]}
        return network.apply(own, x, t, *self._given(context))

    def _given(self, context):
        return context.more["reference"], (context.text, context.image, context.image_scale)
