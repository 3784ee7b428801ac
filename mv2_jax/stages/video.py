"""What I2V and V2V see: text, the reference picture's tokens, and its pixels through ControlNet.

MagicVideo-V2, arXiv 2401.04468, sections 2.2 and 2.3. The two stages run one network over the same
spatial weights; each has its own motion modules, and says in its own file what its chains start
from. The paper names the mechanisms and gives no equations; their forms here are the published
ones: IP-Adapter's decoupled attention (arXiv 2308.06721) for the appearance encoder, ControlNet
(arXiv 2302.05543) on the RGB reference, AnimateDiff (arXiv 2307.04725) for motion. In the
ControlNet's place a SparseCtrl (arXiv 2311.16933) may stand: it is given the reference's latent as
the clip's first frame, instead of pixels for every frame.

Parameters: {"text_encoder", "spatial", "motion", "image_encoder", "image_attn", "control"}, where
"image_attn" is {"projection": the resampler, "unet": the UNet's to_k_ip and to_v_ip}; and over
SDXL's spatial weights "text_encoder_2" (see `prompts`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mv2_jax import params as trees
from mv2_jax import shards
from mv2_jax.config import (
    ControlNetConfig,
    ImageProjectionConfig,
    SparseControlConfig,
    StageConfig,
    TextConfig,
    VisionConfig,
)
from mv2_jax.diffusion import guidance as guides
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import windows
from mv2_jax.diffusion.guidance import Guidance
from mv2_jax.diffusion.losses import LossConfig, diffusion_loss
from mv2_jax.diffusion.samplers import State
from mv2_jax.models import clip_vision, image_projection
from mv2_jax.models.backbone import denoise
from mv2_jax.models.controlnet import ControlNet
from mv2_jax.models.sparse_control import SparseControlNet, given_frames
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context
from mv2_jax.stages import chain, prompts
from mv2_jax.stages.latents import resize
from mv2_jax.stages.prompts import encode as encode_text

Params = dict[str, Any]
WAYS = 3  # guidance: nothing, the image, the image and the text


@dataclass(frozen=True)
class Config:
    """The stage's networks. `factor`: pixels along a latent cell; `dtype`: of computation.

    `remat`: recompute each block of UNet and ControlNet in the backward pass, for memory.
    `text_2`: SDXL's second text encoder; its UNet has a `pooled_width`.
    """

    stage: StageConfig
    text: TextConfig
    vision: VisionConfig
    projection: ImageProjectionConfig
    control: ControlNetConfig | SparseControlConfig
    factor: int
    dtype: Any = jnp.float32
    remat: bool = False
    text_2: TextConfig | None = None

    def __post_init__(self) -> None:
        prompts.check(self)

    @property
    def sparse(self) -> bool:
        """Whether the control is a SparseCtrl, which wants the reference's latent."""
        return isinstance(self.control, SparseControlConfig)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """[T, h, w, C] of one clip."""
        stage = self.stage
        height, width = stage.size
        cells = (height // self.factor, width // self.factor)
        return stage.frames, *cells, stage.unet.in_channels


@flax.struct.dataclass
class Condition:
    """What the network is told, leading axis B (or ways * B).

    text [B, L, C]; image tokens [B, Li, C] and their scale [B]; the reference's pixels
    [B, H, W, 3] in [0, 1] (of a SparseCtrl: its scaled latent [B, h, w, C]) and the ControlNet's
    scale [B], 0 where there is no reference. pooled [B, P] and size_ids [B, 6] are SDXL's alone,
    as in `prompts.Prompt`.
    """

    text: jax.Array
    tokens: jax.Array
    image_scale: jax.Array
    pixels: jax.Array
    control_scale: jax.Array
    pooled: jax.Array | None = None
    size_ids: jax.Array | None = None

    @property
    def added(self) -> dict[str, jax.Array | None]:
        """What of it joins the time embedding, as the networks take it."""
        return {"pooled": self.pooled, "size_ids": self.size_ids}


def init(cfg: Config, key: jax.Array, spatial: Params | None = None) -> Params:
    """Fresh parameters of every tree. With `spatial`, the ControlNet's body starts as its copy."""
    prompt = prompts.blank(cfg)
    text, added = prompt.text, prompt.added
    tokens = jnp.zeros((1, cfg.projection.tokens, cfg.projection.out_width))
    x, t = jnp.zeros((1, 1, *cfg.latent_shape[1:])), jnp.zeros(1)
    pixels = jnp.zeros((1, *cfg.stage.size, 3))

    def make(name: str, module: Any, *args: Any, **kwargs: Any) -> Params:
        return jax.jit(module.init)(named.fold(key, name), *args, **kwargs)["params"]

    unet = make("unet", UNet(cfg.stage.unet), x, t, Context(text, tokens), **added)
    if cfg.sparse:
        given = (x, jnp.ones((1, 1)), t, Context(text))
        control = make("control", SparseControlNet(cfg.control), *given)
    else:
        given = (x, t, Context(text), pixels)
        control = make("control", ControlNet(cfg.control), *given, **added)
    side = cfg.vision.image_size
    vision = make("vision", clip_vision.VisionEncoder(cfg.vision), jnp.zeros((1, side, side, 3)))
    patches = (side // cfg.vision.patch_size) ** 2 + 1
    shape = (1, cfg.projection.in_width)
    if cfg.projection.kind == "resampler":
        shape = (1, patches, cfg.projection.in_width)
    projection = make(
        "projection", image_projection.ImageProjection(cfg.projection), jnp.zeros(shape)
    )
    parts = split_unet(unet)
    return {
        **prompts.init(cfg, key),
        "spatial": parts["spatial"] if spatial is None else spatial,
        "motion": parts["motion"],
        "image_encoder": vision,
        "image_attn": {"projection": projection, "unet": parts["image_attn"]},
        "control": control if spatial is None else copy_body(control, spatial),
    }


def split_unet(tree: Params) -> dict[str, Params]:
    """A whole UNet's tree as {"spatial", "motion", "image_attn"}; `params.merge` undoes it."""
    motion, rest = trees.split(tree, lambda path: "motion_modules_" in path)
    image, spatial = trees.split(rest, lambda path: re.search(r"/to_[kv]_ip/", path) is not None)
    return {"spatial": spatial, "motion": motion, "image_attn": image}


def copy_body(control: Params, spatial: Params) -> Params:
    """A ControlNet's tree with what it shares with the UNet (names and shapes) copied from it."""
    source = trees.flatten(spatial)
    own = trees.flatten(control)
    return trees.unflatten(
        {
            path: source[path] if path in source and source[path].shape == leaf.shape else leaf
            for path, leaf in own.items()
        }
    )


def encode_image(params: Params, cfg: Config, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pictures [B, H, W, 3] in [-1, 1] -> tokens [B, Li, C], and those of no picture [1, Li, C]."""
    vision = clip_vision.VisionEncoder(cfg.vision, cfg.dtype)
    project = image_projection.ImageProjection(cfg.projection, cfg.dtype)
    kind = cfg.projection.kind

    def tokens(params: Params, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        def encode(pixels: jax.Array) -> clip_vision.VisionOutput:
            return vision.apply({"params": params["image_encoder"]}, pixels)

        pixels = clip_vision.preprocess(image, cfg.vision.image_size)
        features = image_projection.features(kind, encode(pixels))
        none = image_projection.null_features(kind, encode, pixels)
        tokens = project.apply({"params": params["projection"]}, jnp.concatenate([features, none]))
        return tokens[:-1], tokens[-1:]

    networks = {
        "image_encoder": params["image_encoder"],
        "projection": params["image_attn"]["projection"],
    }
    return shards.over_samples(tokens, networks, image, results=("rows", "same"))


def predict(
    params: Params, cfg: Config, x: jax.Array, t: jax.Array, condition: Condition
) -> jax.Array:
    """The network's output at noisy latents x [B, T, h, w, C] and timesteps t [B]."""
    unet = trees.merge(params["spatial"], params["motion"], params["image_attn"]["unet"])
    networks = {"unet": unet, "control": params["control"]}

    def network(networks: Params, x: jax.Array, t: jax.Array, given: Condition) -> jax.Array:
        x, t, given = jax.tree.map(lambda leaf: leaf[0], (x, t, given))
        residuals = _residuals(networks, cfg, x, t, given)
        context = Context(given.text, given.tokens, given.image_scale)
        unet, own = UNet(cfg.stage.unet, cfg.dtype, cfg.remat), {"params": networks["unet"]}
        out = unet.apply(own, x, t, context, residuals=residuals, **given.added)
        return out[None]

    row = jax.tree.map(lambda leaf: leaf[None], (x, t, condition))
    return denoise(network, networks, *row)[0]


def _residuals(
    params: Params, cfg: Config, x: jax.Array, t: jax.Array, given: Condition
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """What the ControlNet, or the SparseCtrl, adds to the UNet's states; on a device's share."""
    own, text = {"params": params["control"]}, Context(given.text)
    if not cfg.sparse:
        network = ControlNet(cfg.control, cfg.dtype, cfg.remat)
        return network.apply(own, x, t, text, given.pixels, given.control_scale, **given.added)
    whole = given_frames(given.pixels[:, None], (0,), shards.frames(x.shape[1]))
    latents, mask = (shards.own(part) for part in whole)
    sparse = SparseControlNet(cfg.control, cfg.dtype, cfg.remat)
    return sparse.apply(own, latents, mask, t, text, given.control_scale)


def loss(
    params: Params,
    cfg: Config,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    drop_text: float = 0.1,
    drop_image: float = 0.1,
    image_scale: float = 1.0,
    control_scale: float = 1.0,
    shape: LossConfig = LossConfig(),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The denoising loss of a batch of clips, or of pictures as one-frame clips.

    Text and image are dropped independently, so that guidance over each has learnt its base.

    Args:
        batch: "latent" [B, T, h, w, C] scaled; "image" [B, H, W, 3] the reference in [-1, 1],
            of the latents' size in pixels; "ids" [B, L]; "null_ids" [L] of the empty prompt; for
            SDXL optionally "size_ids" [B, 6], else the latents' whole plane is meant.
        image_scale, control_scale: weights of the image tokens and of the ControlNet; at 0 the
            network learns to do without, and is to be sampled so.
    """
    latent, image = batch["latent"], batch["image"]
    keys = named.per_sample(key, latent.shape[0])
    no_text = named.bernoulli(named.fold(keys, "drop_text"), drop_text)
    no_image = named.bernoulli(named.fold(keys, "drop_image"), drop_image)
    ids = jnp.where(no_text[:, None], batch["null_ids"][None], batch["ids"])
    tokens, none = encode_image(params, cfg, image)
    prompt = prompts.of_batch(encode_text(params, cfg, ids), cfg, batch)
    given = Condition(
        text=prompt.text,
        tokens=jnp.where(no_image[:, None, None], none, tokens),
        image_scale=jnp.full(latent.shape[:1], image_scale),
        pixels=latent[:, 0] if cfg.sparse else image * 0.5 + 0.5,
        control_scale=control_scale * (1.0 - no_image.astype(jnp.float32)),
        pooled=prompt.pooled,
        size_ids=prompt.size_ids,
    )
    return diffusion_loss(
        lambda x, t: predict(params, cfg, x, t, given), latent, keys, cfg.stage.schedule, shape
    )


@partial(jax.jit, static_argnames=("cfg",))
def condition(
    params: Params,
    ids: prompts.Ids,
    negative: prompts.Ids,
    image: jax.Array,
    image_scale: jax.Array,
    control_scale: jax.Array,
    reference: jax.Array | None = None,
    *,
    cfg: Config,
) -> Condition:
    """The conditions of a chain, stacked for three ways of guidance.

    Args:
        ids, negative: token ids [B, L] of the prompt, and of what to steer away from; both may
            be `Marked`.
        image: the reference [B, H, W, 3] in [-1, 1], of any size.
        image_scale, control_scale: numbers [] that weigh its tokens and its ControlNet.
        reference: its scaled latent [B, h, w, C] at the stage's size, for a SparseCtrl alone.

    Raises:
        ValueError: a SparseCtrl without that latent.
    """
    if cfg.sparse and reference is None:
        raise ValueError("the SparseCtrl of this stage wants the reference's latent, `reference`")
    batch = image.shape[0]
    both = encode_text(params, cfg, prompts.together(negative, ids))
    away = jax.tree.map(lambda x: x[:batch], both)
    towards = jax.tree.map(lambda x: x[batch:], both)
    tokens, none = encode_image(params, cfg, image)
    ones = jnp.ones((batch,), jnp.float32)
    with_image = Condition(
        text=away.text,
        tokens=tokens,
        image_scale=ones * image_scale,
        pixels=reference if cfg.sparse else resize(image, cfg.stage.size) * 0.5 + 0.5,
        control_scale=ones * control_scale,
        pooled=away.pooled,
        size_ids=away.size_ids,
    )
    told = with_image.replace(text=towards.text, pooled=towards.pooled)
    if not cfg.sparse and cfg.control.global_pool:
        # As diffusers has it: what is not told the prompt goes without a pooled ControlNet.
        with_image = with_image.replace(control_scale=0.0 * ones)
    nothing = with_image.replace(
        tokens=jnp.broadcast_to(none, tokens.shape), control_scale=0.0 * ones
    )
    return guides.stack(nothing, with_image, told)


@partial(jax.jit, static_argnames=("cfg", "steps", "k"))
def advance(
    params: Params,
    given: Condition,
    guidance: Guidance,
    state: State,
    *,
    cfg: Config,
    steps: int,
    k: int | None = None,
) -> State:
    """The next `k` of `steps` steps; the last state's x is the latent.

    `given` is `condition`'s, or what `guidance.fewest` left of it.

    Raises:
        ValueError: a clip longer than a motion window with a SparseCtrl, which says at which frame
            of the clip the reference stands.
    """
    frames, window = state.x.shape[1], cfg.stage.windows[0]
    if cfg.sparse and frames > window:
        raise ValueError(f"a SparseCtrl cannot steer {frames} frames in windows of {window}")

    def model(x: jax.Array, t: jax.Array, given: Condition) -> jax.Array:
        return predict(params, cfg, x, t, given)

    stage = cfg.stage
    model = windows.over(model, state.x.shape[1], *stage.windows, stage.blend)
    ways = given.text.shape[0] // state.x.shape[0]
    return chain.further(model, stage, given, guidance, state, ways=ways, steps=steps, k=k)
