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

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import params as trees
from mv2_jax import text as tokenizers
from mv2_jax.bundle import PICTURE, Bundle
from mv2_jax.config import VAEConfig, nearest
from mv2_jax.diffusion import guidance as guides
from mv2_jax.diffusion.samplers import State
from mv2_jax.programs import Programs, Progress, silent
from mv2_jax.stages import chain, i2v, interpolators, latents, t2i, v2v, vfi, vfi_table, video
from mv2_jax.stages.prompts import Ids
from mv2_jax.text import Tokenizer, emphasis
from mv2_jax.text.emphasis import Marked


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

    `params` maps a component's name to its tree, and "interpolator" to that of VFI's network, whose
    config is `interpolator` (see `stages.interpolators`). `keys` are typed keys [B], one a sample,
    so that a sample of a batch equals the sample alone. `progress` is `programs.Progress`.
    """

    params: dict[str, Any]
    tokenizer: Tokenizer
    vae: VAEConfig
    interpolator: Any
    picture: t2i.Config
    keyframes: video.Config
    refined: video.Config
    dtype: Any
    picture_vae: VAEConfig | None = None  # T2I's, where it has its own
    programs: Programs = field(default_factory=Programs, repr=False, compare=False)

    def t2i(
        self,
        prompts: Sequence[str],
        *,
        keys: jax.Array,
        negative: str = "",
        steps: int | None = None,
        guidance: float = 5.0,
        guidance_rescale: float = 0.0,
        guidance_low: float = 0.0,
        guidance_high: float = 0.0,
        progress: Progress = silent,
    ) -> jax.Array:
        """Prompts -> pictures [B, H, W, 3] of the stage's size.

        Two pictures of one prompt are that prompt twice, with two keys.

        `guidance_rescale` and the interval from `guidance_low` to `guidance_high` (0: no bound)
        are those of `diffusion.guidance.Guidance`, here and in the video stages.

        Raises:
            ValueError: prompts and keys (and pictures, and keyframes) that differ in number.
        """
        _one_each(prompts=prompts, keys=keys)
        cfg, run = self.picture, partial(self.programs, "t2i", progress=progress)
        steps = steps or cfg.stage.steps
        params = self.parameters("t2i")
        given = run(t2i.condition, params, *self.ids(prompts, negative), cfg=cfg)
        given = guides.fewest(given, t2i.WAYS, guidance)
        state = run(t2i.start, keys, cfg=cfg, steps=steps)
        scales = guides.make(guidance, 1.0, guidance_rescale, guidance_low, guidance_high)

        def some(state: State, k: int) -> State:
            return run(t2i.advance, params, given, scales, state, cfg=cfg, steps=steps, k=k)

        state = chain.to_end("t2i", some, state, steps, progress)
        vae, vae_cfg = self._picture_vae()
        return run(_decode, vae, state.x, cfg=vae_cfg, dtype=self.dtype)

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
        guidance_rescale: float = 0.0,
        guidance_low: float = 0.0,
        guidance_high: float = 0.0,
        noise_prior: float = 1.0,
        image_scale: float = 1.0,
        control_scale: float = 1.0,
        free_init: int = 0,
        progress: Progress = silent,
    ) -> jax.Array:
        """Prompts and reference pictures [B, H, W, 3] -> keyframes [B, T, h, w, 3].

        `free_init`: how often the chain is begun again from the low frequencies of its end.
        """
        _one_each(prompts=prompts, image=image, keys=keys)
        cfg, run = self.keyframes, partial(self.programs, "i2v", progress=progress)
        steps = steps or cfg.stage.steps
        params, image = self.parameters("i2v"), jnp.asarray(image, jnp.float32)
        ids = self.ids(prompts, negative)
        scales = (np.float32(image_scale), np.float32(control_scale))
        small = run(_resize, image, size=cfg.stage.size)
        z = run(_encode, self.params["vae"], small, cfg=self.vae, dtype=self.dtype)
        reference = z if cfg.sparse else None
        given = run(video.condition, params, *ids, image, *scales, reference, cfg=cfg)
        given = guides.fewest(given, video.WAYS, guidance, image_guidance)
        state = run(i2v.start, keys, z, np.float32(noise_prior), cfg=cfg, steps=steps)
        scales = guides.make(
            guidance, image_guidance, guidance_rescale, guidance_low, guidance_high
        )
        for turn in range(int(free_init)):
            ended = self._denoise("i2v", run, cfg, params, given, state, steps, scales)
            state = run(i2v.again, keys, ended.x, np.int32(turn), cfg=cfg, steps=steps)
        return self._finish("i2v", run, cfg, params, given, state, steps, scales)

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
        guidance_rescale: float = 0.0,
        guidance_low: float = 0.0,
        guidance_high: float = 0.0,
        image_scale: float = 1.0,
        control_scale: float = 1.0,
        progress: Progress = silent,
    ) -> jax.Array:
        """Prompts, reference pictures and keyframes [B, T, h, w, 3] -> [B, T, H, W, 3]."""
        _one_each(prompts=prompts, image=image, keyframes=keyframes, keys=keys)
        cfg, run = self.refined, partial(self.programs, "v2v", progress=progress)
        steps = steps or cfg.stage.steps
        params, image = self.parameters("v2v"), jnp.asarray(image, jnp.float32)
        ids = self.ids(prompts, negative)
        scales = (np.float32(image_scale), np.float32(control_scale))
        reference = None
        if cfg.sparse:
            whole = run(_resize, image, size=cfg.stage.size)
            reference = run(_encode, self.params["vae"], whole, cfg=self.vae, dtype=self.dtype)
        given = run(video.condition, params, *ids, image, *scales, reference, cfg=cfg)
        given = guides.fewest(given, video.WAYS, guidance, image_guidance)
        large = run(_resize, jnp.asarray(keyframes, jnp.float32), size=cfg.stage.size)
        z = run(_encode, self.params["vae"], large, cfg=self.vae, dtype=self.dtype)
        state = run(v2v.start, keys, z, np.float32(strength), cfg=cfg, steps=steps)
        scales = guides.make(
            guidance, image_guidance, guidance_rescale, guidance_low, guidance_high
        )
        return self._finish("v2v", run, cfg, params, given, state, steps, scales)

    def vfi(self, frames: Any, times: int, *, progress: Progress = silent) -> jax.Array:
        """Frames [B, T, H, W, 3] -> [B, (T - 1) * times + 1, H, W, 3]."""
        run = partial(self.programs, "vfi", progress=progress)
        progress("vfi", 0, 1)
        frames = jnp.asarray(frames, jnp.float32)
        params, cfg = self.params["interpolator"], self.interpolator
        out = run(_interpolate, params, frames, cfg=cfg, times=times, dtype=self.dtype)
        out = jax.block_until_ready(out)
        progress("vfi", 1, 1)
        return out

    def encode(self, pixels: Any) -> jax.Array:
        """Pixels [B, (T,) H, W, 3] in [-1, 1] -> scaled latents [B, (T,) h, w, C]."""
        pixels = jnp.asarray(pixels, jnp.float32)
        return _encode(self.params["vae"], pixels, cfg=self.vae, dtype=self.dtype)

    def decode(self, latents: Any) -> jax.Array:
        """Scaled latents [B, (T,) h, w, C] -> pixels [B, (T,) H, W, 3] in [-1, 1]."""
        return _decode(self.params["vae"], jnp.asarray(latents), cfg=self.vae, dtype=self.dtype)

    def decode_picture(self, latents: Any) -> jax.Array:
        """`decode` of T2I's latents [B, h, w, C], which may have a VAE of their own."""
        vae, cfg = self._picture_vae()
        return _decode(vae, jnp.asarray(latents), cfg=cfg, dtype=self.dtype)

    def _picture_vae(self) -> tuple[Any, VAEConfig]:
        return self.params[self.component("t2i", "vae")], self.picture_vae or self.vae

    def ids(self, prompts: Sequence[str], negative: str = "") -> tuple[Ids, Ids]:
        """Token ids [B, L] of the prompts, and of what to steer away from, one row a prompt.

        `Marked`, both of them, where a part is marked to count more or less, or a prompt is longer
        than a row.
        """
        texts = list(prompts)
        marked = emphasis.rows(self.tokenizer, [*texts, *[negative] * len(texts)])
        ids, weights, empty = (jnp.asarray(part) for part in marked)
        halves = slice(len(texts)), slice(len(texts), None)
        if ids.shape[1] == 1 and (marked.weights == 1).all():
            towards, away = (ids[half, 0] for half in halves)
        else:
            towards, away = (Marked(ids[half], weights[half], empty) for half in halves)
        return towards, away

    def parameters(self, stage: str) -> dict[str, Any]:
        """The trees that a stage's functions take: `t2i`'s, or for "i2v" and "v2v" `video`'s."""
        if stage == "t2i":
            second = ("text_encoder_2",) if self.picture.text_2 else ()
            names = ("text_encoder", *second, "spatial")
            return {name: self.params[self.component("t2i", name)] for name in names}
        second = ("text_encoder_2",) if self.keyframes.text_2 else ()
        names = ("text_encoder", *second, "spatial", "image_encoder", "image_attn", "control")
        params = {name: self.params[name] for name in names}
        return {**params, "motion": self.params[f"motion_{stage}"]}

    def component(self, stage: str, name: str) -> str:
        """The component that holds a stage's network of this name, for `with_params`.

        T2I may have its own text encoders, VAE and UNet beside the video stages'.
        """
        own = PICTURE.get(name) if stage == "t2i" else None
        return own if own in self.params else name

    def with_params(self, **trees: Any) -> Cascade:
        """This cascade with other parameters for some components: `with_params(motion_i2v=...)`.

        Raises:
            ValueError: a component that it does not have; the nearest is named.
        """
        for name in trees:
            if name not in self.params:
                raise ValueError(f"there is no component {name!r}{nearest(name, self.params)}")
        return dataclasses.replace(self, params={**self.params, **trees})

    def with_stage(self, name: str, **changes: Any) -> Cascade:
        """This cascade with another `StageConfig` for a stage: `with_stage("t2i", sampler="lcm")`.

        Raises:
            ValueError: an unknown stage or field; the nearest is named.
        """
        held = {"t2i": "picture", "i2v": "keyframes", "v2v": "refined"}
        if name not in held:
            raise ValueError(f"there is no stage {name!r}{nearest(name, held)}")
        cfg = getattr(self, held[name])
        known = [field.name for field in dataclasses.fields(cfg.stage)]
        for field_name in changes:
            if field_name not in known:
                raise ValueError(f"a stage has no {field_name!r}{nearest(field_name, known)}")
        stage = dataclasses.replace(cfg.stage, **changes)
        return dataclasses.replace(self, **{held[name]: dataclasses.replace(cfg, stage=stage)})

    def _denoise(
        self,
        name: str,
        run: Any,
        cfg: video.Config,
        params: dict[str, Any],
        given: video.Condition,
        state: State,
        steps: int,
        scales: guides.Guidance,
    ) -> State:
        """The chain of a video stage from its first state to its last."""

        def some(state: State, k: int) -> State:
            return run(video.advance, params, given, scales, state, cfg=cfg, steps=steps, k=k)

        return chain.to_end(name, some, state, steps, run.keywords["progress"])

    def _finish(self, *given: Any) -> jax.Array:
        """The chain of a video stage (`_denoise`'s arguments) to its end, and that in pixels."""
        run, state = given[1], self._denoise(*given)
        return run(_decode, self.params["vae"], state.x, cfg=self.vae, dtype=self.dtype)


@partial(jax.jit, static_argnames=("cfg", "times", "dtype"))
def _interpolate(params: Any, frames: jax.Array, *, cfg: Any, times: int, dtype: Any) -> jax.Array:
    return interpolators.interpolate(params, cfg, frames, times, dtype=dtype)


def _interpolator(bundle: Bundle) -> tuple[Any, Any]:
    """The tree and config of what a folder puts between frames."""
    own = vfi_table.chosen(bundle.components)
    if own is None:
        return vfi.shipped()
    return vfi_table.complete(bundle.load(own), bundle.config(own))


def _one_each(**given: Any) -> None:
    """Refuses batches of different lengths, which would broadcast to something nobody meant."""
    counts = {name: len(rows) for name, rows in given.items()}
    if isinstance(given["prompts"], str):
        raise ValueError("prompts is one text; give a list of them")
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"one of each is needed for every sample, not {listed}")


def load(
    bundle: Bundle, dtype: Any = jnp.float32, *, interpolator: tuple[Any, Any] | None = None
) -> Cascade:
    """A cascade from a folder that `bundle.read` read. Every file is read and checked here.

    Parameters are cast to `dtype` once, and computed in it; norms, softmax, schedules and
    coordinates stay fp32. `interpolator` is the tree and config of the network to put between
    frames; by default it is the folder's own, or the package's public one.

    Raises:
        InputError: a component or stage is missing, or damaged.
    """
    held: dict[str, Any] = {}  # by checksum: one file may serve two stages
    params = {}
    for name, component in bundle.components.items():
        if vfi_table.is_component(name):
            continue
        if component.sha256 not in held:
            held[component.sha256] = jax.device_put(trees.cast(bundle.load(name), dtype))
        params[name] = held[component.sha256]
    tree, between = interpolator or _interpolator(bundle)
    params["interpolator"] = jax.device_put(trees.cast(tree, dtype))
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
            text_2=encoder_2("text_encoder_2", bundle.config("spatial")),
        )

    def encoder_2(name: str, unet: Any) -> Any:
        """The config of a second text encoder, where that UNet wants one."""
        return bundle.config(name) if unet.pooled_width is not None else None

    def own(name: str) -> Any:
        """The config of T2I's own network of this name, or of the one it shares."""
        held = PICTURE[name] in bundle.components
        return bundle.config(PICTURE[name] if held else name)

    picture_vae = own("vae")
    second = "t2i_text_encoder_2" if "t2i_unet" in bundle.components else "text_encoder_2"
    text_2 = encoder_2(second, bundle.stages["t2i"].unet)
    return Cascade(
        params=params,
        tokenizer=tokenizers.from_json(bundle.tokenizer),
        vae=vae,
        interpolator=between,
        picture=t2i.Config(
            bundle.stages["t2i"], own("text_encoder"), picture_vae.factor, dtype, text_2
        ),
        keyframes=video_config("i2v"),
        refined=video_config("v2v"),
        dtype=dtype,
        picture_vae=picture_vae,
    )
