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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mv2_jax import components, sharding, text
from mv2_jax import numbers as sets
from mv2_jax.bundle import PICTURE, Bundle
from mv2_jax.config import VAEConfig
from mv2_jax.diffusion import guidance as guides
from mv2_jax.diffusion.samplers import State
from mv2_jax.lookup import nearest
from mv2_jax.programs import Programs, Progress, silent
from mv2_jax.stages import caching, controls, i2v, interpolators, t2i, v2v
from mv2_jax.stages import idle as unheard
from mv2_jax.stages import latents as codec
from mv2_jax.stages import prompts as words
from mv2_jax.stages import stage as stages
from mv2_jax.stages.chain import STEPS_AT_ONCE, Chain
from mv2_jax.stages.conditions.text import Changing, Ids
from mv2_jax.stages.stage import Config
from mv2_jax.text import Tokenizer

HELD = {"t2i": "picture", "i2v": "keyframes", "v2v": "refined"}
"""The `Cascade` field that holds a stage's config."""


_VAE = ("cfg", "dtype", "tile")


@partial(jax.jit, static_argnames=_VAE)
def _encode(params: Any, x: jax.Array, *, cfg: VAEConfig, dtype: Any, tile: int = 0) -> jax.Array:
    return codec.encode(params, cfg, x, dtype, tile)


@partial(jax.jit, static_argnames=_VAE)
def _decode(params: Any, z: jax.Array, *, cfg: VAEConfig, dtype: Any, tile: int = 0) -> jax.Array:
    return sharding.constrain(codec.decode(params, cfg, z, dtype, tile))


_resize = jax.jit(codec.resize, static_argnames=("size",))


@dataclass(frozen=True)
class Cascade:
    """A loaded cascade; make it with `load`. Pictures and clips are fp32 arrays in [-1, 1].

    `params` maps a component's name to its tree, and "interpolator" to that of VFI's network, whose
    config is `interpolator` (see `stages.interpolators`). `keys` are typed keys [B], one a sample,
    so that a sample of a batch equals the sample alone. `numbers` are every stage's, as the weights
    like them best (`mv2_jax.numbers`): what a call does not name is taken from there. `progress` is
    `programs.Progress`, told after every `at_once` steps.
    """

    params: Mapping[str, Any]
    tokenizer: Tokenizer
    vae: VAEConfig
    interpolator: interpolators.Config
    picture: Config
    keyframes: Config
    refined: Config
    dtype: Any
    picture_vae: VAEConfig | None = None  # T2I's, where it has its own
    numbers: sets.Numbers = field(default_factory=sets.usual)
    programs: Programs = field(default_factory=Programs, repr=False, compare=False)
    at_once: int = STEPS_AT_ONCE

    def t2i(
        self,
        prompts: Sequence[str],
        *,
        keys: jax.Array,
        negative: str = "",
        more: Mapping[str, Any] | None = None,
        progress: Progress = silent,
        **numbers: float | None,
    ) -> jax.Array:
        """Prompts -> pictures [B, H, W, 3] of the stage's size.

        Two pictures of one prompt are that prompt twice, with two keys.

        Args:
            more: raw inputs of conditions of one's own, by name, one a sample.
            numbers: of `mv2_jax.numbers.T2I` (of `I2V` and `V2V` in the video stages): "steps",
                "guidance" and so on; None as the weights like it.

        Raises:
            ValueError: prompts and keys (and pictures, and keyframes) that differ in number, a
                number that the stage does not have, or a change of one that has no effect (`idle`).
        """
        controls.one_each(prompts=prompts, keys=keys)
        rest = {"negative": negative, "more": more, "progress": progress}
        begun = self.chain("t2i", prompts, keys, numbers, **rest)
        return self.made(begun, begun.end(at_once=self.at_once))[:, 0]

    def i2v(
        self,
        prompts: Sequence[str],
        image: Any,
        *,
        keys: jax.Array,
        negative: str = "",
        more: Mapping[str, Any] | None = None,
        progress: Progress = silent,
        **numbers: float | None,
    ) -> jax.Array:
        """Prompts and reference pictures [B, H, W, 3] -> keyframes [B, T, h, w, 3]."""
        controls.one_each(prompts=prompts, image=image, keys=keys)
        rest = {"negative": negative, "more": more, "progress": progress}
        begun = self.chain("i2v", prompts, keys, numbers, image, **rest)
        return self.made(begun, begun.end(at_once=self.at_once))

    def v2v(
        self,
        prompts: Sequence[str],
        image: Any,
        keyframes: Any,
        *,
        keys: jax.Array,
        negative: str = "",
        more: Mapping[str, Any] | None = None,
        progress: Progress = silent,
        **numbers: float | None,
    ) -> jax.Array:
        """Prompts, reference pictures and keyframes [B, T, h, w, 3] -> [B, T, H, W, 3]."""
        controls.one_each(prompts=prompts, image=image, keyframes=keyframes, keys=keys)
        rest = {"negative": negative, "more": more, "progress": progress}
        begun = self.chain("v2v", prompts, keys, numbers, image, keyframes, **rest)
        return self.made(begun, begun.end(at_once=self.at_once))

    def chain(
        self,
        name: str,
        prompts: Sequence[str],
        keys: jax.Array,
        numbers: Mapping[str, float | None],
        image: Any = None,
        keyframes: Any = None,
        *,
        negative: str = "",
        more: Mapping[str, Any] | None = None,
        progress: Progress = silent,
    ) -> Chain:
        """A diffusion stage's chain before its first step, from what the methods above take."""
        cfg, run = self.stage(name), partial(self.programs, name, progress=progress)
        components.only(self.params, self._components(name))
        usual = sets.guided(self.numbers, name)
        own = sets.changed(name, usual, numbers)
        unheard.refuse(cfg, usual, own, more or ())
        branch = caching.check(cfg, own.cache_interval, own.cache_branch)
        steps = int(own.steps or cfg.stage.steps)
        extent = controls.extent(cfg, own, steps, keyframes)
        inputs = dict(zip(("ids", "negative"), self.ids(prompts, negative, *extent, stage=name)))
        if "text_encoder_2" in cfg.trees:
            inputs |= controls.of_text(cfg, own)
        inputs |= {input: jnp.asarray(value) for input, value in (more or {}).items()}
        given: tuple[Any, ...] = ()
        if isinstance(own, sets.Video):
            inputs["image"] = image = jnp.asarray(image, jnp.float32)
            if name == "i2v" or "reference" in cfg.inputs:
                inputs["reference"] = self._small(run, cfg, image)
            if isinstance(own, sets.I2V):
                given = (inputs["reference"], np.float32(own.noise_prior))
            else:
                given = (self._small(run, cfg, keyframes), np.float32(own.strength))
            weights = controls.inputs(cfg, own, steps, keyframes, len(prompts))
            inputs = {**weights, **inputs}
        guidance = guides.of(own)
        rule = cfg.rule.least(guidance)
        params = self.parameters(name)
        conditioning = run(stages.condition, params, inputs, cfg=cfg, rule=rule)
        state = run(STARTS[name], keys, *given, cfg=cfg, steps=steps)
        turns = own.free_init if isinstance(own, sets.I2V) else 0
        rows = (conditioning, guidance, rule)
        less = (own.cache_interval, branch, guidance.bounded)
        return Chain(cfg, params, *rows, state, keys, steps, turns, *less, run, progress)

    def made(self, chain: Chain, end: State) -> jax.Array:
        """The pixels [B, T, H, W, 3] of a chain's end."""
        picture = chain.cfg.name == "t2i"
        vae, cfg = self._picture_vae() if picture else (self.params["vae"], self.vae)
        static = {"cfg": cfg, "dtype": self.dtype, "tile": chain.cfg.stage.tile}
        return chain.run(_decode, vae, end.x, **static)

    def _small(self, run: Any, cfg: Config, pixels: Any) -> jax.Array:
        """Pictures or clips as scaled latents at a stage's size."""
        pixels = run(_resize, jnp.asarray(pixels, jnp.float32), size=cfg.stage.size)
        static = {"cfg": self.vae, "dtype": self.dtype, "tile": cfg.stage.tile}
        return run(_encode, self.params["vae"], pixels, **static)

    def vfi(self, frames: Any, times: int, *, progress: Progress = silent) -> jax.Array:
        """Frames [B, T, H, W, 3] -> [B, (T - 1) * times + 1, H, W, 3]."""
        run = partial(self.programs, "vfi", progress=progress)
        components.only(self.params, [components.INTERPOLATOR])
        progress("vfi", 0, 1)
        frames = jnp.asarray(frames, jnp.float32)
        params, cfg = self.params[components.INTERPOLATOR], self.interpolator
        out = run(_interpolate, params, frames, cfg=cfg, times=times, dtype=self.dtype)
        out = jax.block_until_ready(out)
        progress("vfi", 1, 1)
        return out

    def encode(self, pixels: Any) -> jax.Array:
        """Pixels [B, (T,) H, W, 3] in [-1, 1] -> scaled latents [B, (T,) h, w, C]."""
        pixels, vae = jnp.asarray(pixels, jnp.float32), self.params["vae"]
        return self.programs("vae", _encode, vae, pixels, cfg=self.vae, dtype=self.dtype)

    def decode(self, latents: Any) -> jax.Array:
        """Scaled latents [B, (T,) h, w, C] -> pixels [B, (T,) H, W, 3] in [-1, 1]."""
        return self._pixels(latents, self.params["vae"], self.vae)

    def decode_picture(self, latents: Any) -> jax.Array:
        """`decode` of T2I's latents [B, h, w, C], which may have a VAE of their own."""
        return self._pixels(latents, *self._picture_vae())

    def _pixels(self, latents: Any, vae: Any, cfg: VAEConfig) -> jax.Array:
        latents = jnp.asarray(latents)
        return self.programs("vae", _decode, vae, latents, cfg=cfg, dtype=self.dtype)

    def _picture_vae(self) -> tuple[Any, VAEConfig]:
        return self.params[self.component("t2i", "vae")], self.picture_vae or self.vae

    def ids(
        self, prompts: Sequence[str], negative: str = "", *extent: Any, stage: str = "i2v"
    ) -> tuple[Ids | Changing, Ids | Changing]:
        """Token ids of the prompts, and of what to steer away from, as a stage's text encoders know
        them: see `stages.prompts.ids`."""
        return words.ids(text.of_stage(self.tokenizer, stage), prompts, negative, *extent)

    def stage(self, name: str) -> Config:
        """A diffusion stage's config. Raises ValueError; the nearest is named."""
        if name not in HELD:
            raise ValueError(f"there is no stage {name!r}{nearest(name, HELD)}")
        return getattr(self, HELD[name])

    def idle(self, name: str, **numbers: float | None) -> dict[str, str]:
        """{number: why} of a stage's numbers that change nothing, as these weights are put together
        and beside `numbers` (and the weights' own); "negative" stands for the negative prompt."""
        if name not in HELD:
            return {}
        own = sets.changed(name, sets.guided(self.numbers, name), numbers)
        return unheard.beside(self.stage(name), own)

    def inputs(self, name: str) -> frozenset[str]:
        """Names of the raw inputs that a stage's conditions read, `more` among them."""
        return unheard.inputs(self.stage(name))

    def parameters(self, stage: str) -> dict[str, Any]:
        """The trees that a stage's functions take."""
        return {name: self.params[self.component(stage, name)] for name in self.stage(stage).trees}

    def _components(self, stage: str) -> list[str]:
        """All components that a diffusion stage takes, the VAE's among them."""
        names = [self.component(stage, name) for name in self.stage(stage).trees]
        return [*names, self.component(stage, "vae")]

    def component(self, stage: str, name: str) -> str:
        """The component that holds a stage's tree of this name, for `with_params`.

        A stage may have its own beside the others': motion modules each has ("motion_i2v"), T2I may
        have text encoders, a VAE and a UNet.
        """
        own = PICTURE.get(name, name) if stage == "t2i" else name
        return next((held for held in (own, f"{name}_{stage}") if held in self.params), name)

    def with_params(self, **trees: Any) -> Cascade:
        """This cascade with other parameters for some components: `with_params(motion_i2v=...)`.

        Raises:
            ValueError: a component that it does not have; the nearest is named.
        """
        for name in trees:
            if name not in self.params:
                raise ValueError(f"there is no component {name!r}{nearest(name, self.params)}")
        return dataclasses.replace(self, params=components.changed(self.params, trees))

    def with_interpolator(self, tree: Any, cfg: interpolators.Config) -> Cascade:
        """This cascade with another network between frames, see `stages.interpolators`."""
        placed = components.place_interpolator(tree, self.dtype, self.programs.mesh)
        changed = components.changed(self.params, {components.INTERPOLATOR: placed})
        return dataclasses.replace(self, params=changed, interpolator=cfg)

    def with_stage(self, name: str, **changes: Any) -> Cascade:
        """This cascade with another `StageConfig` for a stage: `with_stage("t2i", sampler="lcm")`.

        Raises:
            ValueError: an unknown stage or field; the nearest is named.
        """
        cfg = self.stage(name)
        known = [field.name for field in dataclasses.fields(cfg.stage)]
        for field_name in changes:
            if field_name not in known:
                raise ValueError(f"a stage has no {field_name!r}{nearest(field_name, known)}")
        if "conditions" in changes:
            conditions = cfg.with_conditions(changes["conditions"])
            cfg = dataclasses.replace(cfg, conditions=conditions)
        return dataclasses.replace(self, **{HELD[name]: stages.with_stage(cfg, **changes)})

    def with_numbers(self, name: str, **changes: float) -> Cascade:
        """This cascade with other numbers for a stage: `with_numbers("i2v", guidance=4.0)`.

        Raises:
            ValueError: an unknown stage or number, the nearest is named; or one without effect.
        """
        if name not in self.numbers:
            raise ValueError(f"there is no stage {name!r}{nearest(name, self.numbers)}")
        usual = self.numbers[name]
        own = sets.changed(name, usual, changes)
        if isinstance(usual, sets.Guided) and isinstance(own, sets.Guided):
            unheard.refuse(self.stage(name), usual, own)
        return dataclasses.replace(self, numbers={**self.numbers, name: own})


STARTS = {"t2i": t2i.start, "i2v": i2v.start, "v2v": v2v.start}


@partial(jax.jit, static_argnames=("cfg", "times", "dtype"))
def _interpolate(
    params: Any, frames: jax.Array, *, cfg: interpolators.Config, times: int, dtype: Any
) -> jax.Array:
    return sharding.constrain(interpolators.interpolate(params, cfg, frames, times, dtype=dtype))


def load(
    bundle: Bundle,
    dtype: Any = jnp.float32,
    *,
    interpolator: tuple[Any, interpolators.Config] | None = None,
    mesh: Mesh | None = None,
    resident: str = "all",
) -> Cascade:
    """A cascade from a folder that `bundle.read` read. Every file is read and checked here.

    Parameters are cast to `dtype` once, and computed in it; norms, softmax, schedules, coordinates
    stay fp32. `interpolator` is the tree and config of the network to put between frames, else the
    folder's or the public one. Over a `mesh` every process calls the same, gets the same pixels.
    With `resident` "stage" no more than one stage's weights lie on the devices; each stage reads
    its own anew (`mv2_jax.components`).

    Raises:
        InputError: a component or stage is missing, or damaged.
    """
    tree, between = interpolator or components.own_interpolator(bundle)
    return Cascade(
        params=components.load(bundle, dtype, tree, mesh=mesh, resident=resident),
        tokenizer=text.from_json(bundle.tokenizer),
        interpolator=between,
        dtype=dtype,
        programs=Programs(mesh=mesh),
        **_staged(bundle, dtype),
    )


def restaged(four: Cascade, bundle: Bundle) -> Cascade:
    """The cascade with the stages of another bundle of the same folder; parameters and programs are
    shared. Raises InputError as `load`."""
    return dataclasses.replace(four, **_staged(bundle, four.dtype))


def _staged(bundle: Bundle, dtype: Any) -> dict[str, Any]:
    """What a `Cascade` holds of its stages."""
    vae = bundle.config("vae")
    picture_vae = bundle.config(PICTURE["vae"] if PICTURE["vae"] in bundle.components else "vae")
    made: dict[str, Any] = {"vae": vae, "picture_vae": picture_vae, "numbers": bundle.numbers}
    for name, field_name in HELD.items():
        made[field_name] = stage_of(bundle, name, dtype)
    return made


def stage_of(bundle: Bundle, name: str, dtype: Any = jnp.float32) -> Config:
    """A diffusion stage of a folder, put together; no weights are read.

    Raises:
        InputError: the folder lacks a component that it needs.
    """
    own = name == "t2i" and PICTURE["vae"] in bundle.components
    factor = bundle.config(PICTURE["vae"] if own else "vae").factor
    configs = components.Configs(bundle, name)
    return stages.build(name, bundle.stages[name], configs, factor, dtype)
