"""The cascade that is planned, a preset's or a folder's: configs and shapes; no weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mv2_jax import bundle as bundles
from mv2_jax import cascade, components, sharding, text
from mv2_jax.bundle import PICTURE, Bundle, StoredComponent
from mv2_jax.configs import presets
from mv2_jax.errors import InputError
from mv2_jax.infer import choices, interpolators, ready, rehearse, settings
from mv2_jax.infer.planning.recorded import AnyMesh
from mv2_jax.stages import stage as stages


@dataclass(frozen=True)
class Source:
    """A cascade on its way to a plan.

    shapes: every component's tree of shapes, in the type that it is computed in.
    """

    bundle: Bundle
    shapes: Mapping[str, Any]
    tokenizer: Any
    interpolator: Any
    dtype: Any

    def on(self, mesh: AnyMesh) -> cascade.Cascade:
        """The cascade with its parameters laid out over a mesh as `cascade.load` does."""
        params = {
            name: _placed(tree, mesh, self._rules(name)) for name, tree in self.shapes.items()
        }
        own = {name: cascade.stage_of(self.bundle, name, self.dtype) for name in cascade.HELD}
        picture = PICTURE["vae"] if PICTURE["vae"] in self.bundle.components else "vae"
        return cascade.Cascade(
            params=params,
            tokenizer=self.tokenizer,
            vae=self.bundle.config("vae"),
            interpolator=self.interpolator,
            dtype=self.dtype,
            picture_vae=self.bundle.config(picture),
            numbers=self.bundle.numbers,
            **{cascade.HELD[name]: cfg for name, cfg in own.items()},
        )

    def _rules(self, name: str) -> Any:
        if name == components.INTERPOLATOR:
            return None
        part = self.bundle.components.get(name)
        return part.rules if part else ()


def _placed(tree: Any, mesh: AnyMesh, rules: Any) -> Any:
    """As `sharding.lay_out`: by the rules, or whole where `rules` is None or knows them not."""
    where = None
    if rules is not None:
        try:
            where = sharding.shardings(tree, mesh, rules)
        except ValueError:
            where = None
    if where is None:
        where = jax.tree.map(lambda leaf: NamedSharding(mesh, P()), tree)
    return jax.tree.map(
        lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), tree, where
    )


def of_preset(name: str, dtype: Any = jnp.bfloat16) -> Source:
    """A full-size preset's cascade. T2I has networks of its own where they differ from I2V's."""
    preset = presets.PRESETS[name]
    video, shapes, parts = preset.I2V.unet, {}, {}
    plain = dataclasses.replace(video, motion=None, image_tokens=False)
    for stage in ("t2i", "i2v", "vfi"):
        shapes |= rehearse.shapes(preset, stage)
    shapes["motion_v2v"] = shapes["motion_i2v"]
    configs = {
        "text_encoder": preset.TEXT,
        "vae": preset.VAE,
        "spatial": plain,
        "motion_i2v": video.motion,
        "motion_v2v": video.motion,
        "image_encoder": preset.VISION,
        "image_attn": preset.PROJECTION,
        "control": preset.CONTROL,
    }
    own = {
        "t2i_text_encoder": preset.TEXT,
        "t2i_text_encoder_2": preset.TEXT_2,
        "t2i_unet": preset.T2I.unet,
        "t2i_vae": preset.PICTURE_VAE,
    }
    if video.pooled_width:
        configs["text_encoder_2"] = preset.TEXT_2
    if preset.T2I.unet == plain:
        for component in own:
            shapes.pop(component, None)
    else:
        configs |= {key: config for key, config in own.items() if config is not None}
    for key, config in configs.items():
        parts[key] = StoredComponent(key, config, "", 0, "", "", "")
    bundle = Bundle(
        folder=Path(f"preset {name}"),
        name=name,
        components=parts,
        stages={"t2i": preset.T2I, "i2v": preset.I2V, "v2v": preset.V2V},
        defaults={stage: dict(numbers) for stage, numbers in preset.DEFAULTS.items()},
        tokenizer=None,
        spatial=None,
    )
    words = text.CLIPTokenizer(max_length=preset.TEXT.max_length)
    return Source(bundle, _cast(shapes, dtype), words, preset.RIFE, jnp.dtype(dtype))


def of_folder(folder: str, preset: str | None, dtype: Any = jnp.bfloat16) -> Source:
    """A cascade folder's; files are looked at, and not read. Raises InputError as `bundle.read`."""
    bundle = presets.complete(bundles.read(folder), preset)
    shapes = {name: components.stored(bundle, name) for name in bundle.components}
    tree, config = components.own_interpolator(bundle)
    shapes[components.INTERPOLATOR] = tree
    words = text.from_json(bundle.tokenizer)
    return Source(bundle, _cast(shapes, dtype), words, config, jnp.dtype(dtype))


def chosen(
    source: Source,
    choice: choices.Choices,
    given: Mapping[str, Any],
    size: tuple[int, int] | None = None,
    controls: int = 1,
) -> tuple[Source, dict[str, dict[str, Any]]]:
    """The cascade with `mv2 generate`'s choices and sizes, and every stage's numbers.

    Args:
        given: numbers by `settings.Setting.dest`.
        controls: ControlNets, all like the first.

    Raises:
        InputError: what `mv2 generate` would refuse.
    """
    source = _controlled(source, controls)
    bundle = choices.apply(ready.with_size(source.bundle, size), choice)
    numbers = settings.resolve(given, {}, bundle)
    network = ready.interpolator(bundle)
    shapes, between = dict(source.shapes), source.interpolator
    if network == "none":
        numbers["vfi"]["between"] = 0
    elif network:
        tree, between = interpolators.load(network, bundle)
        shapes[components.INTERPOLATOR] = _cast(tree, source.dtype)
    return dataclasses.replace(source, bundle=bundle, shapes=shapes, interpolator=between), numbers


def _controlled(source: Source, count: int) -> Source:
    """It with so many ControlNets."""
    held = [name for name in bundles.CONTROLS if name in source.bundle.components]
    if count <= len(held):
        return source
    if not held:
        raise InputError("--controls: this cascade has no ControlNet")
    parts, shapes = dict(source.bundle.components), dict(source.shapes)
    staged = dict(source.bundle.stages)
    names = bundles.CONTROLS[:count]
    for name in names[len(held) :]:
        parts[name] = dataclasses.replace(parts[held[0]], name=name)
        shapes[name] = shapes[held[0]]
    for stage in ("i2v", "v2v"):
        wanted = staged[stage].conditions or stages.PICTURED
        more = tuple(name for name in names if name not in wanted)
        staged[stage] = dataclasses.replace(staged[stage], conditions=(*wanted, *more))
    bundle = dataclasses.replace(source.bundle, components=parts, stages=staged)
    return dataclasses.replace(source, bundle=bundle, shapes=shapes)


def _cast(tree: Any, dtype: Any) -> Any:
    """Shapes of a tree, with floats in the type of computation."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype) if floating else leaf.dtype)

    return jax.tree.map(one, tree)
