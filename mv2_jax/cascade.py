"""The four stages composed: prompts in, video out.

    from mv2_jax import bundle, cascade
    from mv2_jax.diffusion import keys

    four = cascade.load(bundle.read())
    image = four.t2i(["a red ball bouncing over a meadow"], keys=keys.seeds([0]))
    keyframes = four.i2v(["a red ball ..."], image, keys=keys.seeds([0]))

A `Cascade` holds parameters and configs and nothing that changes but its compiled programs. Each
stage is the pure functions of `mv2_jax.stages`; this file says what one hands to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import params as trees
from mv2_jax import text as tokenizers
from mv2_jax.bundle import Bundle
from mv2_jax.config import RIFEConfig, VAEConfig
from mv2_jax.diffusion import guidance as guides
from mv2_jax.diffusion.samplers import State
from mv2_jax.programs import Programs, Progress, silent
from mv2_jax.stages import i2v, latents, t2i, v2v, vfi, video
from mv2_jax.text import Tokenizer

STEPS_AT_ONCE = 5  # a progress bar breathes this often; the result is that of one whole scan


@partial(jax.jit, static_argnames=("cfg", "dtype"))
def _encode(params: Any, pixels: jax.Array, *, cfg: VAEConfig, dtype: Any) -> jax.Array:
    return latents.encode(params, cfg, pixels, dtype)


@partial(jax.jit, static_argnames=("cfg", "dtype"))
def _decode(params: Any, z: jax.Array, *, cfg: VAEConfig, dtype: Any) -> jax.Array:
    return latents.decode(params, cfg, z, dtype)


@partial(jax.jit, static_argnames=("size",))
def _resize(pixels: jax.Array, *, size: tuple[int, int]) -> jax.Array:
    return latents.resize(pixels, size)


@dataclass(frozen=True)
class Cascade:
    """A loaded cascade; make it with `load`. Pictures and clips are fp32 arrays in [-1, 1].

    `params` maps a component's name to its tree. `keys` are typed keys [B], one a sample, so that
    a sample of a batch equals the sample alone. `progress` is `programs.Progress`.
    """

    params: dict[str, Any]
    tokenizer: Tokenizer
    vae: VAEConfig
    rife: RIFEConfig
    picture: t2i.Config
    keyframes: video.Config
    refined: video.Config
    dtype: Any
    programs: Programs = field(default_factory=Programs, repr=False, compare=False)

    def t2i(
        self,
        prompts: Sequence[str],
        *,
        keys: jax.Array,
        negative: str = "",
        steps: int | None = None,
        guidance: float = 5.0,
        progress: Progress = silent,
    ) -> jax.Array:
        """Prompts -> pictures [B, H, W, 3] of the stage's size."""
        cfg, run = self.picture, partial(self.programs, "t2i", progress=progress)
        steps = steps or cfg.stage.steps
        params = {name: self.params[name] for name in ("text_encoder", "spatial")}
        given = run(t2i.condition, params, *self._ids(prompts, negative), cfg=cfg)
        state = run(t2i.start, keys, cfg=cfg, steps=steps)
        scales = guides.make(guidance)

        def some(state: State, k: int) -> State:
            return run(t2i.advance, params, given, scales, state, cfg=cfg, steps=steps, k=k)

        state = _chain("t2i", some, state, steps, progress)
        return run(_decode, self.params["vae"], state.x, cfg=self.vae, dtype=self.dtype)

    def i2v(
        self,
        prompts: Sequence[str],
        image: Any,
        *,
        keys: jax.Array,
        negative: str = "",
        steps: int | None = None,
        guidance: float = 5.0,
        image_guidance: float = 1.0,
        noise_prior: float = 1.0,
        image_scale: float = 1.0,
        control_scale: float = 1.0,
        progress: Progress = silent,
    ) -> jax.Array:
        """Prompts and reference pictures [B, H, W, 3] -> keyframes [B, T, h, w, 3]."""
        cfg, run = self.keyframes, partial(self.programs, "i2v", progress=progress)
        steps = steps or cfg.stage.steps
        params, image = self._video_params("i2v"), jnp.asarray(image, jnp.float32)
        ids = self._ids(prompts, negative)
        scales = (np.float32(image_scale), np.float32(control_scale))
        given = run(video.condition, params, *ids, image, *scales, cfg=cfg)
        small = run(_resize, image, size=cfg.stage.size)
        z = run(_encode, self.params["vae"], small, cfg=self.vae, dtype=self.dtype)
        state = run(i2v.start, keys, z, np.float32(noise_prior), cfg=cfg, steps=steps)
        return self._finish("i2v", run, cfg, params, given, state, steps, guidance, image_guidance)

    def v2v(
        self,
        prompts: Sequence[str],
        image: Any,
        keyframes: Any,
        *,
        keys: jax.Array,
        negative: str = "",
        steps: int | None = None,
        strength: float = 0.5,
        guidance: float = 5.0,
        image_guidance: float = 1.0,
        image_scale: float = 1.0,
        control_scale: float = 1.0,
        progress: Progress = silent,
    ) -> jax.Array:
        """Prompts, reference pictures and keyframes [B, T, h, w, 3] -> [B, T, H, W, 3]."""
        cfg, run = self.refined, partial(self.programs, "v2v", progress=progress)
        steps = steps or cfg.stage.steps
        params, image = self._video_params("v2v"), jnp.asarray(image, jnp.float32)
        ids = self._ids(prompts, negative)
        scales = (np.float32(image_scale), np.float32(control_scale))
        given = run(video.condition, params, *ids, image, *scales, cfg=cfg)
        large = run(_resize, jnp.asarray(keyframes, jnp.float32), size=cfg.stage.size)
        z = run(_encode, self.params["vae"], large, cfg=self.vae, dtype=self.dtype)
        state = run(v2v.start, keys, z, np.float32(strength), cfg=cfg, steps=steps)
        return self._finish("v2v", run, cfg, params, given, state, steps, guidance, image_guidance)

    def vfi(self, frames: Any, times: int, *, progress: Progress = silent) -> jax.Array:
        """Frames [B, T, H, W, 3] -> [B, (T - 1) * times + 1, H, W, 3]."""
        run = partial(self.programs, "vfi", progress=progress)
        progress("vfi", 0, 1)
        frames = jnp.asarray(frames, jnp.float32)
        params = self.params["rife"]
        out = run(_interpolate, params, frames, cfg=self.rife, times=times, dtype=self.dtype)
        out = jax.block_until_ready(out)
        progress("vfi", 1, 1)
        return out

    def _ids(self, prompts: Sequence[str], negative: str) -> tuple[jax.Array, jax.Array]:
        texts = list(prompts)
        encode = self.tokenizer.encode
        return jnp.asarray(encode(texts)), jnp.asarray(encode([negative] * len(texts)))

    def _video_params(self, stage: str) -> dict[str, Any]:
        names = ("text_encoder", "spatial", "image_encoder", "image_attn", "control")
        params = {name: self.params[name] for name in names}
        return {**params, "motion": self.params[f"motion_{stage}"]}

    def _finish(
        self,
        name: str,
        run: Any,
        cfg: video.Config,
        params: dict[str, Any],
        given: video.Condition,
        state: State,
        steps: int,
        guidance: float,
        image_guidance: float,
    ) -> jax.Array:
        """The chain of a video stage from its first state to pixels."""
        scales = guides.make(guidance, image_guidance)

        def some(state: State, k: int) -> State:
            return run(video.advance, params, given, scales, state, cfg=cfg, steps=steps, k=k)

        state = _chain(name, some, state, steps, run.keywords["progress"])
        return run(_decode, self.params["vae"], state.x, cfg=self.vae, dtype=self.dtype)


@partial(jax.jit, static_argnames=("cfg", "times", "dtype"))
def _interpolate(params: Any, frames: jax.Array, *, cfg: Any, times: int, dtype: Any) -> jax.Array:
    return vfi.interpolate(params, cfg, frames, times, dtype=dtype)


def _chain(name: str, some: Any, state: State, steps: int, progress: Progress) -> State:
    """Runs a chain to its end in equal parts, telling `progress` after each."""
    first = int(state.index)
    total = steps - first
    progress(name, 0, total)
    k = min(STEPS_AT_ONCE, steps)
    for _ in range(0, total, k):
        state = jax.block_until_ready(some(state, k))
        progress(name, min(int(state.index), steps) - first, total)
    return state


def load(bundle: Bundle, dtype: Any = jnp.float32) -> Cascade:
    """A cascade from a folder that `bundle.read` read. Every file is read and checked here.

    Parameters are cast to `dtype` once, and computed in it; norms, softmax, schedules and
    coordinates stay fp32.

    Raises:
        InputError: a component or stage is missing, or damaged.
    """
    names = [name for name in bundle.components if name != "rife"]
    params = {name: jax.device_put(trees.cast(bundle.load(name), dtype)) for name in names}
    # Where a folder brings no interpolator, the package's public one serves.
    shipped, rife = vfi.shipped() if "rife" not in bundle.components else (None, None)
    if shipped is None:
        shipped, rife = bundle.load("rife"), bundle.config("rife")
    params["rife"] = jax.device_put(trees.cast(shipped, dtype))
    vae, text = bundle.config("vae"), bundle.config("text_encoder")

    def video_config(stage: str) -> video.Config:
        return video.Config(
            stage=bundle.stages[stage],
            text=text,
            vision=bundle.config("image_encoder"),
            projection=bundle.config("image_attn"),
            control=bundle.config("control"),
            factor=vae.factor,
            dtype=dtype,
        )

    return Cascade(
        params=params,
        tokenizer=tokenizers.from_json(bundle.tokenizer),
        vae=vae,
        rife=rife,
        picture=t2i.Config(bundle.stages["t2i"], text, vae.factor, dtype),
        keyframes=video_config("i2v"),
        refined=video_config("v2v"),
        dtype=dtype,
    )
