"""AnimateDiff's motion modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mv2_jax.config import MotionConfig
from mv2_jax.convert import published, structure
from mv2_jax.convert.kind import Kind, Layout, Part, claim, shapes
from mv2_jax.convert.tables import motion
from mv2_jax.errors import InputError


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    """The motion modules of a source; SparseCtrl's own are not theirs."""
    is_sparse = any(name.endswith("controlnet_cond_embedding.weight") for name in source)
    if is_sparse or not any(".motion_modules." in name for name in source):
        return
    names = {name: name for name in source}
    try:
        table = motion.find(names)
        cfg = structure.motion_modules(shapes(source, names), settings)
        original = motion.layout(names).original
    except ValueError as error:
        raise InputError(str(error)) from None
    middle = "a" if cfg.mid_block else "no"
    title = f"motion modules ({cfg.max_frames} frames, {middle} middle block)"
    layout = "AnimateDiff's" if original else "diffusers"
    yield Part("motion", title, layout, claim(source, names, table), table, cfg)


def layout(bundle: Any, cfg: MotionConfig) -> Layout:
    """diffusers' MotionAdapter, for the cascade's UNet."""
    settings = published.motion(cfg, bundle.config("spatial"))
    return published.diffusers(motion.diffusers(cfg.attentions), settings)


KIND = Kind(
    title="motion modules",
    serves="--motion or --motion-v2v",
    find=find,
    config=MotionConfig,
    layout=layout,
    compare="mv2_jax.convert.compare_networks:motion",
)
