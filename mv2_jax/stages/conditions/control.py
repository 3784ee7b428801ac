"""ControlNet: the reference picture's layout, as residuals for a UNet (arXiv 2302.05543).

MagicVideo-V2 feeds it the RGB reference for every frame (arXiv 2401.04468, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mv2_jax import params as trees
from mv2_jax.config import ControlNetConfig
from mv2_jax.diffusion import keys as named
from mv2_jax.models.controlnet import ControlNet
from mv2_jax.nn.transformer import Context
from mv2_jax.stages.conditions import Asked, Fed, Params
from mv2_jax.stages.latents import resize

if TYPE_CHECKING:
    from mv2_jax.stages.stage import Config


@dataclass(frozen=True)
class Control:
    """The reference's pixels. Nothing is residuals of zero. It reads the text that was fed.

    A pooled one (ControlNet 1.1 shuffle) goes with the text: as diffusers has it, what is not told
    the prompt goes without it.
    """

    net: ControlNetConfig

    name = "control"
    drop = "drop_image"
    needs = ("image",)
    trees = ("control",)
    rules = ()
    at_steps = ("control",)
    sharded = True

    @property
    def role(self) -> str:
        return "text" if self.net.global_pool else "control"

    def configs(self) -> dict[str, Any]:
        return {"control": self.net}

    def blank(self, cfg: Config, batch: int) -> dict[str, Any]:
        return {"image": jnp.zeros((batch, *cfg.stage.size, 3))}

    def init(
        self, cfg: Config, key: jax.Array, x: jax.Array, t: jax.Array, fed: Fed, held: Params
    ) -> Params:
        pixels = jnp.zeros((1, *cfg.stage.size, 3))
        init = jax.jit(ControlNet(self.net).init)
        made = init(named.fold(key, "control"), x, t, Context(fed.text), pixels, **fed.added)
        return {"control": copied(made["params"], held.get("spatial"))}

    def encode(self, params: Params, cfg: Config, asked: Asked) -> tuple[Any, Any]:
        """Told "image" [B, H, W, 3] in [-1, 1], of any size (in training of the latents'), and
        "control_scale" [] (1)."""
        image = asked["image"]
        if "latent" not in asked:
            image = resize(image, cfg.stage.size)
        pixels = image * 0.5 + 0.5
        return scaled(pixels, asked.get("control_scale", 1.0))

    def feed(
        self, params: Params, cfg: Config, told: Any, x: jax.Array, t: jax.Array, fed: Fed
    ) -> Fed:
        network = ControlNet(self.net, cfg.dtype, cfg.remat)
        own, told = {"params": params["control"]}, (told["shown"], told["scale"])
        residuals = network.apply(own, x, t, Context(fed.text), *told, **fed.added)
        return fed.replace(residuals=residuals)


def scaled(shown: jax.Array, scale: Any) -> tuple[Any, Any]:
    """(told, nothing) of what a network is shown [B, ...]: nothing is a scale of zero."""
    ones = jnp.ones(shown.shape[:1], jnp.float32)
    return {"shown": shown, "scale": ones * scale}, {"shown": shown, "scale": 0.0 * ones}


def copied(control: Params, spatial: Params | None) -> Params:
    """A ControlNet's tree with what it shares with a UNet (names and shapes) copied from it."""
    if spatial is None:
        return control
    source, own = trees.flatten(spatial), trees.flatten(control)
    return trees.unflatten(
        {
            path: source[path] if path in source and source[path].shape == leaf.shape else leaf
            for path, leaf in own.items()
        }
    )
