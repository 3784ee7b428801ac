"""CLIP's vision encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mv2_jax.config import VisionConfig
from mv2_jax.convert import published, structure, targets
from mv2_jax.convert.kind import Kind, Layout, Part, below, claim, shapes
from mv2_jax.convert.tables import clip


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    """The vision encoders of a source."""
    for prefix, table in clip.find_vision(source):
        names = below(source, prefix)
        if "conv1.weight" in names:
            layout, cfg = "OpenCLIP's", structure.open_clip_vision(shapes(source, names))
        else:
            inner = "vision_model." if any(n.startswith("vision_model.") for n in names) else ""
            layout = "transformers'"
            cfg = structure.vision(shapes(source, names), settings, inner)
        title = f"a CLIP vision encoder (width {cfg.width}, {cfg.layers} layers)"
        yield Part("image_encoder", title, layout, claim(source, names, table), table, cfg)


def layout(bundle: Any, cfg: VisionConfig) -> Layout:
    """transformers' folder."""
    table = clip.transformers_vision("vision_model.")
    return published.transformers(table, published.vision(cfg), "clip_vision_model")


KIND = Kind(
    title="an image encoder",
    serves="--image-encoder",
    find=find,
    config=VisionConfig,
    target=targets.vision,
    layout=layout,
    compare="mv2_jax.convert.compare_networks:vision",
)
