"""How much motion modules move: AnimateDiff-Evolved's motion scale (its `scale_multival`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax

from mv2_jax.stages.conditions import Context, Inputs, Params

if TYPE_CHECKING:
    from mv2_jax.stages.stage import Config


@dataclass(frozen=True)
class Motion:
    """A factor of the keys of every attention over time.

    Every stage with motion modules has it behind its other conditions. No guidance withholds it,
    and where nothing is said, as in training, nothing is fed.
    """

    name = "motion_scale"
    role = "motion"
    drop = "drop_motion"
    needs = ()
    trees = ()
    rules = ()
    at_steps = ()
    sharded = True

    def blank(self, cfg: Config, batch: int) -> dict[str, Any]:
        return {}

    def init(
        self,
        cfg: Config,
        key: jax.Array,
        x: jax.Array,
        t: jax.Array,
        context: Context,
        held: Params,
    ) -> Params:
        return {}

    def encode(self, params: Params, cfg: Config, inputs: Inputs) -> tuple[Any, Any]:
        """Told "motion_scale" [B], or by frame [B, T]."""
        scale = inputs.get("motion_scale")
        made = {} if scale is None else {"scale": scale}
        return made, made

    def of_frames(self, conditioning: Any, frames: jax.Array) -> Any:
        return {
            name: scale[:, frames] if scale.ndim == 2 else scale
            for name, scale in conditioning.items()
        }

    def feed(
        self,
        params: Params,
        cfg: Config,
        conditioning: Any,
        x: jax.Array,
        t: jax.Array,
        context: Context,
    ) -> Context:
        return dataclasses.replace(context, motion_scale=conditioning.get("scale"))
