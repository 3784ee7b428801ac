"""Steps that do less: DeepCache, and guidance in an interval. Both are for any weights.

DeepCache (arXiv 2312.00858), on its even schedule: of every `interval` steps, counted from the
first that is run, one runs the whole backbone; the others run its outermost part alone, around
features that the last whole step left. What is kept is the state of the way up where it meets the
skip connection number `branch`: of every row of guidance, sample, frame and window. Outside of it
everything is new at every step, with motion modules, text and pictures; ControlNets are run as far
as their residuals reach that part.

Outside of an interval of guidance (arXiv 2404.07724) the rows that would not count are not run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mv2_jax.diffusion import guidance as guides
from mv2_jax.diffusion import windows
from mv2_jax.diffusion.guidance import Guidance, Rule
from mv2_jax.diffusion.samplers import Point, State
from mv2_jax.errors import InputError
from mv2_jax.models import backbone as backbones
from mv2_jax.sharding import SAMPLES, constrain
from mv2_jax.stages import stage
from mv2_jax.stages.conditions import Context, Params
from mv2_jax.stages.stage import Conditioning, Config


class Kept(NamedTuple):
    """What a chain carries from step to step.

    age: steps that were run, []. guided: whether the last one ran all rows, [].
    features: [R, B, T, h, w, c], or of each window [W, R, B, t, h, w, c].
    """

    age: jax.Array
    guided: jax.Array
    features: jax.Array


def _keeping(cfg: Config) -> backbones.Keeping:
    """The stage's backbone. Raises InputError where it keeps nothing."""
    backbone = cfg.backbone
    if not isinstance(backbone, backbones.Keeping):
        name = type(cfg.stage.unet).__name__
        raise InputError(f"{cfg.name} cache_interval: {name} keeps nothing from step to step")
    return backbone


def check(cfg: Config, interval: int, branch: int) -> int | None:
    """The branch where steps are to be cached; None where every step is whole.

    Raises:
        InputError: the stage cannot, and why.
    """
    if interval <= 1:
        return None
    backbone, context = _keeping(cfg), cfg.stage.context
    if context != "static" and cfg.stage.frames > cfg.windows.window:
        raise InputError(
            f"{cfg.name} cache_interval: windows that move from step to step ({context}) keep "
            "nothing; take static ones"
        )
    if branch >= backbone.branches:
        raise InputError(
            f"{cfg.name} cache_branch is {branch}; its network has 0 to {backbone.branches - 1}"
        )
    return branch


@partial(jax.jit, static_argnames=("cfg", "rule", "branch"))
def begin(state: State, *, cfg: Config, rule: Rule, branch: int) -> State:
    """A chain's first state with room for what is kept."""
    samples, frames, *plane = state.x.shape[:-1]
    here = min(frames, cfg.windows.window)
    of_frame = _keeping(cfg).features(branch, (plane[0], plane[1]))
    shape = (rule.rows, samples, backbones.kept_frames(samples, here), *of_frame)
    if frames > here:
        cut = cfg.windows
        shape = (len(windows.starts(frames, cut.window, cut.overlap)), *shape)
    axes = (None,) * (len(shape) - 5)
    features = constrain(jnp.zeros(shape, cfg.dtype), *axes, SAMPLES)
    return state._replace(kept=Kept(jnp.int32(0), jnp.bool_(False), features))


def predict(
    params: Params,
    cfg: Config,
    x: jax.Array,
    t: jax.Array,
    conditioning: Conditioning,
    features: jax.Array,
    *,
    branch: int,
    whole: bool,
) -> tuple[jax.Array, jax.Array]:
    """`stage.predict`'s output, and features [R, B, T, h, w, c]: made anew by the `whole` network,
    or those of an earlier step, around which the outer part alone is run."""
    backbone = _keeping(cfg)

    def network(params: Params, *rows: Any) -> tuple[jax.Array, jax.Array]:
        *told, kept = rows
        given = stage.fed(params, cfg, Context(branch=None if whole else branch), *told)
        held = None if whole else kept.reshape(-1, *kept.shape[2:])
        out, made = backbone.apply_kept(params, *given, held, branch, dtype=cfg.dtype)
        out, made = (y.reshape(*told[0].shape[:3], *y.shape[2:]) for y in (out, made))
        return out, made

    rows = (x, t, conditioning, features)
    return backbones.denoise(network, stage.at_steps(params, cfg), *rows, **stage.on_meshes(cfg))


def predictor(
    params: Params,
    conditioning: Conditioning,
    guidance: Guidance,
    interval: jax.Array | None,
    *,
    cfg: Config,
    rule: Rule,
    steps: int,
    branch: int | None,
    bounded: bool,
) -> Callable[..., Any]:
    """`predict(x, point) -> output` of a chain's steps, or with what is kept as
    `predict(x, point, kept) -> (output, kept)`.

    Args:
        interval: whole steps come every so many, [] int32; branch: see `check`.
        bounded: guidance has an interval, outside of which the last row alone is run.
    """
    bounded = bounded and rule.rows > 1
    every = jnp.int32(1) if interval is None else interval

    def run(rule: Rule, some: Conditioning, x: jax.Array, point: Point, *kept: Any, **how: Any):
        model = partial(predict, branch=branch, **how) if kept else stage.predict
        step = 0 if point.index is None else point.index
        model = stage.in_windows(params, cfg, x.shape[1], steps, step, model)
        made = model(*rule.repeat(x, point), some, *kept)
        if not kept:
            return rule.combine(made, guidance, point.k)
        output, features = made
        return rule.combine(output, guidance, point.k), features

    last = jax.tree.map(lambda leaf: leaf[-1:], conditioning)
    all_or_last = partial(run, rule, conditioning), partial(run, guides.NONE, last)

    def some_rows(x: jax.Array, point: Point) -> jax.Array:
        return lax.cond(guidance.active(point.k), *all_or_last, x, point)

    def caching(x: jax.Array, point: Point, kept: Kept) -> tuple[jax.Array, Kept]:
        guided = guidance.active(point.k) if bounded else jnp.bool_(True)
        # Where rows set in or out the features of some are old: a whole step brings all up to date.
        whole = (kept.age % every == 0) | (guided != kept.guided)

        def all_rows(features: jax.Array, **how: Any) -> Any:
            return run(rule, conditioning, x, point, features, **how)

        def last_row(features: jax.Array, **how: Any) -> Any:
            at = (Ellipsis, slice(-1, None), *[slice(None)] * 5)
            out, own = run(guides.NONE, last, x, point, features[at], **how)
            return out, features.at[at].set(own)

        def either(rows: Callable[..., Any]) -> Callable[..., Any]:
            ways = (partial(rows, whole=True), partial(rows, whole=False))
            return lambda features: lax.cond(whole, *ways, features)

        if bounded:
            rows = (either(all_rows), either(last_row))
            output, features = lax.cond(guided, *rows, kept.features)
        else:
            output, features = either(all_rows)(kept.features)
        return output, Kept(kept.age + 1, guided, features)

    if branch is not None:
        return caching
    return some_rows if bounded else all_or_last[0]
