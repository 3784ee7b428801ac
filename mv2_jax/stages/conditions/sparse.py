"""SparseCtrl: the reference as the clip's first frame alone (arXiv 2311.16933)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mv2_jax import shards
from mv2_jax.config import SparseControlConfig
from mv2_jax.diffusion import keys
from mv2_jax.models.sparse_control import SparseControlNet, given_frames
from mv2_jax.stages.conditions import Context, Inputs, Params, weights
from mv2_jax.stages.conditions.control import added, copied

if TYPE_CHECKING:
    from mv2_jax.stages.stage import Config


@dataclass(frozen=True)
class Sparse:
    """The reference's latent, in the ControlNet's place. Nothing is residuals of zero."""

    net: SparseControlConfig

    name: str = "control"

    weighed = "control"
    role = "control"
    drop = "drop_image"
    needs = ("reference",)
    rules = ()
    sharded = True

    @property
    def trees(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def at_steps(self) -> tuple[str, ...]:
        return (self.name,)

    def configs(self) -> dict[str, Any]:
        return {self.name: self.net}

    def blank(self, cfg: Config, batch: int) -> dict[str, Any]:
        return {"reference": jnp.zeros((batch, *cfg.latent_shape[1:]))}

    def init(
        self,
        cfg: Config,
        key: jax.Array,
        x: jax.Array,
        t: jax.Array,
        context: Context,
        held: Params,
    ) -> Params:
        init = jax.jit(SparseControlNet(self.net).init)
        made = init(keys.fold(key, self.name), x, jnp.ones(x.shape[:2]), t, context)
        return {self.name: copied(made["params"], held.get("spatial"))}

    def encode(self, params: Params, cfg: Config, inputs: Inputs) -> tuple[Any, Any]:
        """Told "reference" [B, h, w, C], its scaled latent at the stage's size (in training the
        first frame's), and `weights`."""
        shown = inputs.get("reference")
        if shown is None:
            shown = inputs["latent"][:, 0]
        conditioning = weights.weights(self.name, inputs, shown.shape[0])
        conditioning["shown"] = shown
        return conditioning, weights.none(conditioning)

    def feed(
        self,
        params: Params,
        cfg: Config,
        conditioning: Any,
        x: jax.Array,
        t: jax.Array,
        context: Context,
    ) -> Context:
        frames, window = cfg.stage.frames, cfg.stage.windows[0]
        if frames > window:
            raise ValueError(f"a SparseCtrl cannot steer {frames} frames in windows of {window}")
        whole = given_frames(conditioning["shown"][:, None], (0,), shards.frames(x.shape[1]))
        latents, mask = (shards.own(part) for part in whole)
        network = SparseControlNet(self.net, cfg.dtype, cfg.remat)
        inputs = (latents, mask, t, context, weights.at(conditioning, t))
        return added(context, network.apply({"params": params[self.name]}, *inputs))
