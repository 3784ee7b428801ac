"""A diffusion stage: a backbone, a list of conditions, a process and a start.

T2I, I2V and V2V are values of it (`t2i`, `i2v`, `v2v` say what is put together and where a chain
starts). Everything here is a pure function over parameter trees: {tree name: nested dict}, by the
names that the conditions and the backbone give their trees ("text_encoder", "spatial", "motion",
"image_encoder", "image_attn", "control").

The way of what a user gives: raw inputs by name (`conditions.Inputs`); of them `condition` makes
the conditioning, once a chain: {condition's name: tree}, leading axes [R, B], the rows that the
guidance rule runs and the samples; of that `predict` makes the backbone's `Context`, at every step.
A still picture is a clip of one frame.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mv2_jax.config import USUAL_RULE, SparseControlConfig, StageConfig
from mv2_jax.diffusion import guidance, windows
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion.guidance import Rule
from mv2_jax.diffusion.losses import Loss, LossConfig, diffusion_loss
from mv2_jax.errors import InputError
from mv2_jax.lookup import find, lacks, nearest
from mv2_jax.models import backbone as backbones
from mv2_jax.stages.conditions import ByFrame, Condition, Context, HasConfigs, Inputs, Named, Params
from mv2_jax.stages.conditions.control import Control
from mv2_jax.stages.conditions.image import ImageTokens
from mv2_jax.stages.conditions.motion import Motion
from mv2_jax.stages.conditions.sparse import Sparse
from mv2_jax.stages.conditions.text import Text
from mv2_jax.text.emphasis import Marked

Conditioning = dict[str, Any]
USUAL = {"t2i": ("text",)}  # of a stage that names no conditions
PICTURED = ("text", "image", "control")  # of every other stage
CONTROL = re.compile(r"control(_[2-9])?")  # each ControlNet's name
DROP = 0.1  # how often a condition is dropped in training


@dataclass(frozen=True)
class Config:
    """A stage, put together; static under jit. Make it with `build`.

    name: "t2i", "i2v" or "v2v": whose noise it draws, and whose own trees it takes.
    conditions: in the order in which they feed the backbone.
    factor: pixels along a latent cell; dtype: of computation.
    remat: what the backward pass computes again, for memory (`models.unet.REMAT`).

    Raises:
        ValueError: text encoders that are not those that the UNet wants.
    """

    name: str
    stage: StageConfig
    conditions: tuple[Condition, ...]
    factor: int
    dtype: Any = jnp.float32
    remat: str | bool = False

    def __post_init__(self) -> None:
        for condition in self.conditions:
            if isinstance(condition, Text):
                condition.check(getattr(self.stage.unet, "pooled_width", None))

    @property
    def backbone(self) -> backbones.Backbone:
        return backbones.of(self.stage.unet)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """[T, h, w, C] of one clip."""
        height, width = self.stage.size
        cells = (height // self.factor, width // self.factor)
        return self.stage.frames, *cells, self.backbone.in_channels

    @property
    def trees(self) -> tuple[str, ...]:
        """Names of every parameter tree, each once."""
        of_conditions = (name for each in self.conditions for name in each.trees)
        return tuple(dict.fromkeys((*of_conditions, *self.backbone.parts)))

    @property
    def rule(self) -> Rule:
        """The guidance rule that its config names, over the roles that its conditions have."""
        named = guidance.rule(self.stage.rule or USUAL_RULE)
        return named.among(each.role for each in self.conditions)

    @property
    def windows(self) -> windows.Windows:
        """How clips that are longer than the backbone knows are cut."""
        stage = self.stage
        return windows.Windows(*stage.windows, stage.blend, stage.context)

    @property
    def inputs(self) -> frozenset[str]:
        """Names of the raw inputs that its conditions need."""
        return frozenset(name for each in self.conditions for name in each.needs)

    def with_conditions(self, wanted: tuple[Any, ...] | None) -> tuple[Condition, ...]:
        """These conditions by their names, and others as they are: what a stage's
        `StageConfig.conditions` would make of those that it has."""
        moving = tuple(each for each in self.conditions if isinstance(each, Motion))
        if wanted is None:
            wanted = tuple(each.name for each in self.conditions if each not in moving)
        words = [isinstance(w, str) and ":" not in w for w in wanted]
        made = (self.condition(w) if word else _own(w) for w, word in zip(wanted, words))
        return (*made, *moving)

    def condition(self, name: str) -> Condition:
        """The condition of this name. Raises ValueError; the nearest is named."""
        for each in self.conditions:
            if each.name == name:
                return each
        known = [each.name for each in self.conditions]
        raise ValueError(f"{self.name} has no condition {name!r}{nearest(name, known)}")


def build(
    name: str,
    stage: StageConfig,
    configs: Named,
    factor: int,
    dtype: Any = jnp.float32,
    remat: str | bool = False,
) -> Config:
    """The stage that configs describe.

    Args:
        configs: of the networks that its conditions are made of: "text_encoder", "text_encoder_2"
            (SDXL alone), "image_encoder", "image_attn", "control", "control_2" and so on.

    Raises:
        InputError: a condition that is none, or the config of one is missing.
        ValueError: as `Config`.
    """
    wanted = stage.conditions
    wanted = USUAL.get(name, PICTURED) if wanted is None else wanted
    pooled = getattr(stage.unet, "pooled_width", None)
    try:
        made = tuple(_condition(each, configs, pooled is not None) for each in wanted)
    except KeyError as missing:
        raise InputError(f"{name}: there is no config of {missing.args[0]!r} for it") from None
    moving = (Motion(),) if getattr(stage.unet, "motion", None) else ()
    return Config(name, stage, (*made, *moving), factor, dtype, remat)


def _condition(wanted: Any, configs: Named, pooled: bool) -> Condition:
    """A condition by its word, or as it is."""
    steers = isinstance(wanted, str) and CONTROL.fullmatch(wanted)
    if wanted not in PICTURED and not steers:
        return _own(wanted)
    if wanted == "text":
        return Text(configs["text_encoder"], configs["text_encoder_2"] if pooled else None)
    if wanted == "image":
        return ImageTokens(configs["image_encoder"], configs["image_attn"])
    control = configs[wanted]
    if isinstance(control, SparseControlConfig):
        return Sparse(control, wanted)
    return Control(control, wanted)


def _own(wanted: Any) -> Condition:
    """A condition from outside the package: itself, or the `module:name` of it or of its class."""
    if isinstance(wanted, str):
        wanted = find(wanted, dict.fromkeys(PICTURED), "condition")
        wanted = wanted() if isinstance(wanted, type) else wanted
    if isinstance(wanted, type):
        raise InputError(f"{wanted.__name__} is a class; a condition is {wanted.__name__}(...)")
    if not isinstance(wanted, Condition):
        lack = lacks(wanted, Condition)
        raise InputError(f"{type(wanted).__name__} is no condition: it lacks {lack}")
    return wanted


def rules(cfg: Config) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """Sharding rows of its networks beside `sharding.RULES`."""
    return tuple(row for each in (*cfg.conditions, cfg.backbone) for row in each.rules)


def configs(cfg: Config) -> dict[str, Any]:
    """What stands as the config of each tree where it is stored, {tree name: config}."""
    made: dict[str, Any] = {}
    for each in cfg.conditions:
        made.update(
            each.configs() if isinstance(each, HasConfigs) else dict.fromkeys(each.trees, each)
        )
    unet = cfg.stage.unet
    own = cfg.backbone
    of_parts = own.configs() if isinstance(own, HasConfigs) else dict.fromkeys(own.parts, unet)
    return {**of_parts, **made}


def init(cfg: Config, key: jax.Array, held: Params | None = None) -> Params:
    """Fresh parameters of every tree.

    Args:
        held: trees that are given and stand in the result; a ControlNet's body begins as a copy
            of a "spatial" among them.
    """
    held = held or {}
    x, t, context = jnp.zeros((1, 1, *cfg.latent_shape[1:])), jnp.zeros(1), Context()
    made: Params = {}

    def merged(more: Params) -> None:
        for name, tree in more.items():
            made[name] = {**made[name], **tree} if name in made else tree

    def fed(each: Condition, params: Params, context: Context) -> Context:
        conditioning, _ = each.encode(params, cfg, each.blank(cfg, 1))
        return each.feed(params, cfg, conditioning, x, t, context)

    for each in cfg.conditions:
        merged(each.init(cfg, key, x, t, context, held))
        shapes = jax.eval_shape(partial(fed, each), made, context)
        context = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    merged(cfg.backbone.init(key, x, t, context))
    return {name: held.get(name, tree) for name, tree in made.items()}


def blank(cfg: Config, batch: int) -> dict[str, Any]:
    """Raw inputs of zeros for every condition."""
    return {name: x for each in cfg.conditions for name, x in each.blank(cfg, batch).items()}


@partial(jax.jit, static_argnames=("cfg", "rule"))
def condition(params: Params, inputs: Inputs, *, cfg: Config, rule: Rule) -> Conditioning:
    """The conditioning of a chain: what its rows are told, leading axes [R, B].

    Args:
        inputs: raw ones by name; see `conditions.Inputs`.
        rule: which rows there are, such as `cfg.rule`.

    Raises:
        ValueError: a condition lacks an input.
    """
    conditioning = {}
    for each in cfg.conditions:
        for name in each.needs:
            if inputs.get(name) is None:
                raise ValueError(f"{cfg.name}'s condition {each.name!r} needs {name!r}")
        pair = each.encode(params, cfg, inputs)
        rows = (pair[each.role in withheld] for withheld in rule.withheld)
        conditioning[each.name] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    return conditioning


def predict(
    params: Params, cfg: Config, x: jax.Array, t: jax.Array, conditioning: Conditioning
) -> jax.Array:
    """The backbone's output at noisy latents x [R, B, T, h, w, C] and timesteps t [R, B]; the same
    on any mesh within float error (`models.backbone.denoise`)."""

    def network(params: Params, *rows: Any) -> jax.Array:
        given = fed(params, cfg, Context(), *rows)
        out = cfg.backbone.apply(params, *given, dtype=cfg.dtype, remat=cfg.remat)
        return out.reshape(*rows[0].shape[:-1], out.shape[-1])

    rows = (x, t, conditioning)
    return backbones.denoise(network, at_steps(params, cfg), *rows, **on_meshes(cfg))


def on_meshes(cfg: Config) -> dict[str, Any]:
    """What `models.backbone.denoise` is to know of a stage."""
    shared = cfg.backbone.sharded and all(each.sharded for each in cfg.conditions)
    return {"shared": shared, "rules": rules(cfg)}


def fed(params: Params, cfg: Config, context: Context, *rows: Any) -> tuple[Any, Any, Context]:
    """x, t and the context that the backbone is given, of x, t and conditioning [R, B, ...]."""
    x, t, conditioning = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)
    for each in cfg.conditions:
        context = each.feed(params, cfg, conditioning[each.name], x, t, context)
    return x, t, context


def at_steps(params: Params, cfg: Config) -> Params:
    """The trees that a step reads, of all."""
    of_conditions = {name: params[name] for each in cfg.conditions for name in each.at_steps}
    return {**of_conditions, **cfg.backbone.select(params)}


def predict_one(
    params: Params, cfg: Config, x: jax.Array, t: jax.Array, conditioning: Conditioning
) -> jax.Array:
    """`predict` without rows: x [B, T, h, w, C], t [B], conditioning of leading axis B."""
    conditioning = jax.tree.map(lambda leaf: leaf[None], conditioning)
    return predict(params, cfg, x[None], t[None], conditioning)[0]


def in_windows(
    params: Params,
    cfg: Config,
    frames: int,
    steps: int = 1,
    step: int | jax.Array = 0,
    model: Any = predict,
) -> Any:
    """`model(x, t, conditioning)` of clips of `frames`, in overlapping windows where the backbone
    knows fewer; for step `step` of `steps`, since windows may move."""

    def some(conditioning: Conditioning, frames: jax.Array) -> Conditioning:
        by_frame = [each for each in cfg.conditions if isinstance(each, ByFrame)]
        by_frame = [each for each in by_frame if jax.tree.leaves(conditioning[each.name])]
        here = {e.name: jax.vmap(e.of_frames, (0, None)) for e in by_frame}
        return conditioning | {name: of(conditioning[name], frames) for name, of in here.items()}

    return windows.over(
        partial(model, params, cfg), frames, cfg.windows, axis=2, some=some, steps=steps, step=step
    )


def drops(cfg: Config) -> tuple[str, ...]:
    """Names of the chances with which its conditions are dropped in training: "drop_text"."""
    told = (each.drop for each in cfg.conditions if not isinstance(each, Motion))
    return tuple(dict.fromkeys(told))


def drop(
    params: Params, cfg: Config, inputs: Inputs, keys: jax.Array, rates: Mapping[str, float]
) -> Conditioning:
    """A training batch's conditioning, leading axis B: now and then of a condition its "nothing".

    Args:
        inputs: the batch; "negative" is the empty prompt's ids.
        keys: [B], one a sample.
        rates: how often, by the conditions' names of their chance (`drop_text`); `DROP` for those
            that are not there.
    """
    conditioning = {}
    for each in cfg.conditions:
        pair = each.encode(params, cfg, inputs)
        dropped = named.bernoulli(named.fold(keys, each.drop), rates.get(each.drop, DROP))
        conditioning[each.name] = jax.tree.map(partial(_chosen, dropped), *pair)
    return conditioning


def _chosen(dropped: jax.Array, conditioning: jax.Array, nothing: jax.Array) -> jax.Array:
    return jnp.where(dropped.reshape(-1, *[1] * (conditioning.ndim - 1)), nothing, conditioning)


def loss(
    params: Params,
    cfg: Config,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    rates: Mapping[str, float] = {},
    scales: Mapping[str, float] = {},
    shape: Loss = LossConfig(),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The denoising loss of a batch of clips, or of pictures (clips of one frame).

    Conditions are dropped independently, so that guidance over each has learnt its base.

    Args:
        batch: "latent" [B, T, h, w, C] (of pictures [B, h, w, C]) scaled, of any plane; "null_ids"
            [L], the tokens of the empty prompt; and what the conditions need: "ids" [B, L] (or
            [B, n, L], n rows of a long caption), "image" [B, H, W, 3] the reference in [-1, 1], of
            the latents' size in pixels; for SDXL optionally "size_ids" [B, 6], else the latents'
            whole plane is meant.
        key: one key of the step; each sample folds its own from it.
        rates: how often each condition is dropped, see `drop`.
        scales: "image_scale", "control_scale": at 0 the network learns to do without, and is to be
            sampled so.
    """
    latent = batch["latent"]
    latent = latent[:, None] if latent.ndim == 4 else latent
    keys = named.per_sample(key, latent.shape[0])
    inputs = {**batch, **scales, "latent": latent, **in_rows(batch)}
    conditioning = drop(params, cfg, inputs, keys, rates)
    model = partial(predict_one, params, cfg, conditioning=conditioning)
    return diffusion_loss(model, latent, keys, cfg.stage.schedule, shape)


def in_rows(batch: Mapping[str, jax.Array]) -> dict[str, Any]:
    """A training batch's "ids" and the "negative" beside them; captions of several rows marked."""
    ids, null = batch.get("ids"), batch["null_ids"][None]
    if ids is None or ids.ndim == 2:
        return {"negative": null}
    return {
        "ids": Marked(ids, jnp.ones(ids.shape, jnp.float32), null),
        "negative": Marked(
            jnp.broadcast_to(null, ids[:1].shape), jnp.ones(ids[:1].shape, jnp.float32), null
        ),
    }


def with_stage(cfg: Config, **changes: Any) -> Config:
    """The stage with another `StageConfig`."""
    return dataclasses.replace(cfg, stage=dataclasses.replace(cfg.stage, **changes))
