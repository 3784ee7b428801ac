"""Image tokens: the reference picture's look, for a cross-attention of its own.

IP-Adapter's decoupled attention (arXiv 2308.06721), for the appearance encoder of MagicVideo-V2
(arXiv 2401.04468, section 2.2), which gives no equations.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp

from mv2_jax import shards
from mv2_jax.config import ImageProjectionConfig, VisionConfig
from mv2_jax.diffusion import keys
from mv2_jax.models import clip_vision, image_projection
from mv2_jax.stages.conditions import Context, Inputs, Params, weights

if TYPE_CHECKING:
    from mv2_jax.stages.stage import Config


@dataclass(frozen=True)
class ImageTokens:
    """The reference's tokens. Nothing is those of no picture (zeros, as the encoder sees them).

    Its trees are the vision encoder and, of "image_attn", the projection; the rest of that tree is
    the UNet's (to_k_ip and to_v_ip).
    """

    vision: VisionConfig
    projection: ImageProjectionConfig

    name = "image"
    weighed = "image"
    role = "image"
    drop = "drop_image"
    needs = ("image",)
    takes = ("looks",)
    trees = ("image_encoder", "image_attn")
    rules = ()
    at_steps = ()
    sharded = True

    def configs(self) -> dict[str, Any]:
        return {"image_encoder": self.vision, "image_attn": self.projection}

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
        side = self.vision.image_size
        vision = jax.jit(clip_vision.VisionEncoder(self.vision).init)(
            keys.fold(key, "vision"), jnp.zeros((1, side, side, 3))
        )
        shape = (1, self.projection.in_width)
        if self.projection.kind != "linear":
            patches = (side // self.vision.patch_size) ** 2 + 1
            shape = (1, patches, self.projection.in_width)
        projection = jax.jit(image_projection.ImageProjection(self.projection).init)(
            keys.fold(key, "projection"), jnp.zeros(shape)
        )
        return {
            "image_encoder": vision["params"],
            "image_attn": {"projection": projection["params"]},
        }

    def encode(self, params: Params, cfg: Config, inputs: Inputs) -> tuple[Any, Any]:
        """Told "image" [B, H, W, 3] in [-1, 1], of any size; optionally "looks" [B, n, H, W, 3],
        more pictures whose tokens stand behind the first's, of any size too; and `weights`."""
        made = inputs.get("image_features")
        tokens, none = self.tokens(params, cfg, inputs["image"], made)
        looks = inputs.get("looks")
        if looks is not None:
            batch, count = looks.shape[:2]
            more, _ = self.tokens(params, cfg, looks.reshape(batch * count, *looks.shape[2:]))
            more = more.reshape(batch, count * more.shape[1], more.shape[2])
            tokens = jnp.concatenate([tokens, more], axis=1)
            none = jnp.tile(none, (1, 1 + count, 1))
        conditioning = weights.weights(self.name, inputs, tokens.shape[0])
        nothing = jnp.broadcast_to(none, tokens.shape)
        return {**conditioning, "tokens": tokens}, {**conditioning, "tokens": nothing}

    def of_frames(self, conditioning: Any, frames: jax.Array) -> Any:
        return weights.of_frames(conditioning, frames)

    def feed(
        self,
        params: Params,
        cfg: Config,
        conditioning: Any,
        x: jax.Array,
        t: jax.Array,
        context: Context,
    ) -> Context:
        return dataclasses.replace(
            context, image=conditioning["tokens"], image_scale=weights.at(conditioning, t)
        )

    def tokens(
        self, params: Params, cfg: Config, image: jax.Array, made: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Pictures [B, H, W, 3] -> their tokens [B, Li, C], and those of no picture [1, Li, C].

        `made`: what the vision encoder said of them before (`image_projection.features`).
        """
        vision = clip_vision.VisionEncoder(self.vision, cfg.dtype)
        project = image_projection.ImageProjection(self.projection, cfg.dtype)
        kind = self.projection.kind

        def run(params: Params, image: jax.Array, *made: jax.Array) -> tuple[jax.Array, jax.Array]:
            def encode(pixels: jax.Array) -> clip_vision.VisionOutput:
                own = {"params": params["image_encoder"]}
                return cast(clip_vision.VisionOutput, vision.apply(own, pixels))

            few = image[:1] if made else image
            pixels = clip_vision.preprocess(few, self.vision.image_size)
            none = image_projection.null_features(kind, encode, pixels)
            features = (
                made[0].astype(none.dtype)
                if made
                else image_projection.features(kind, encode(pixels))
            )
            both = jnp.concatenate([features, none])
            tokens = cast(jax.Array, project.apply({"params": params["projection"]}, both))
            return tokens[:-1], tokens[-1:]

        networks = {
            "image_encoder": params["image_encoder"],
            "projection": params["image_attn"]["projection"],
        }
        rows = (image,) if made is None else (image, made)
        return shards.over_samples(run, networks, *rows, results=("rows", "same"))
