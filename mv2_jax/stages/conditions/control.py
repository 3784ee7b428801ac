"""ControlNet: the reference picture's layout, as residuals for a UNet (arXiv 2302.05543).

MagicVideo-V2 feeds it the RGB reference for every frame (arXiv 2401.04468, section 2.2). Several
add up, each a condition of its own: "control", "control_2" and so on.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mv2_jax import params as trees
from mv2_jax import shards
from mv2_jax.config import ControlNetConfig
from mv2_jax.diffusion import keys
from mv2_jax.models.controlnet import ControlNet
from mv2_jax.stages.conditions import Context, Inputs, Params, weights
from mv2_jax.stages.latents import resize

if TYPE_CHECKING:
    from mv2_jax.stages.stage import Config


@dataclass(frozen=True)
class Control:
    """The reference's pixels, or a picture or clip of its own. Nothing is residuals of zero. It
    reads the text that was fed.

    A pooled one (ControlNet 1.1 shuffle) goes with the text: as diffusers has it, what is not told
    the prompt goes without it.
    """

    net: ControlNetConfig
    name: str = "control"

    weighed = "control"
    drop = "drop_image"
    needs = ("image",)
    rules = ()
    sharded = True

    @property
    def trees(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def takes(self) -> tuple[str, ...]:
        return (f"{self.name}_image",)

    @property
    def at_steps(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def role(self) -> str:
        return "text" if self.net.global_pool else "control"

    def configs(self) -> dict[str, Any]:
        return {self.name: self.net}

    def blank(self, cfg: Config, batch: int) -> dict[str, Any]:
        return {"image": jnp.zeros((batch, *cfg.stage.size, 3))}

    def init(
        self,
        cfg: Config,
        key: jax.Array,
        x: jax.Array,
        t: jax.Array,
        context: Context,
        held: Params,
    ) -> Params:
        pixels = jnp.zeros((x.shape[0], *cfg.stage.size, 3))
        init = jax.jit(ControlNet(self.net).init)
        kind = jnp.zeros((x.shape[0],), jnp.int32) if self.net.types else None
        made = init(keys.fold(key, self.name), x, t, context, pixels, kind=kind)
        return {self.name: copied(made["params"], held.get("spatial"))}

    def encode(self, params: Params, cfg: Config, inputs: Inputs) -> tuple[Any, Any]:
        """Told "image" [B, H, W, 3] in [-1, 1], of any size (in training of the latents'), or in
        its place "NAME_image" [B, H, W, 3], or [B, T, H, W, 3] one a frame; `weights`; and of a
        ControlNet Union "NAME_type" [], what its pictures show (0)."""
        image = inputs.get(f"{self.name}_image", inputs["image"])
        if "latent" not in inputs:
            image = resize(image, cfg.stage.size)
        conditioning = weights.weights(self.name, inputs, image.shape[0])
        conditioning["shown"] = image * 0.5 + 0.5
        if self.net.types:
            kind = jnp.asarray(inputs.get(f"{self.name}_type", 0), jnp.int32)
            conditioning["kind"] = jnp.broadcast_to(kind, image.shape[:1])
        return conditioning, weights.none(conditioning)

    def of_frames(self, conditioning: Any, frames: jax.Array) -> Any:
        shown = conditioning["shown"]
        shown = shown[:, frames] if shown.ndim == 5 else shown
        return weights.of_frames({**conditioning, "shown": shown}, frames)

    def feed(
        self,
        params: Params,
        cfg: Config,
        conditioning: Any,
        x: jax.Array,
        t: jax.Array,
        context: Context,
    ) -> Context:
        network, shown = ControlNet(self.net, cfg.dtype, cfg.remat), conditioning["shown"]
        shown = shards.own(shown) if shown.ndim == 5 else shown
        scale, kind = weights.at(conditioning, t), conditioning.get("kind")
        inputs = (x, t, context, shown, scale, kind)
        return added(context, network.apply({"params": params[self.name]}, *inputs))


def added(context: Context, residuals: Any) -> Context:
    """The context with a ControlNet's residuals on top of those that are there."""
    if context.residuals is not None:
        residuals = jax.tree.map(jnp.add, context.residuals, residuals)
    return dataclasses.replace(context, residuals=residuals)


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
