"""CLIP's text encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mv2_jax.config import TextConfig
from mv2_jax.convert import published, structure, targets
from mv2_jax.convert.kind import Kind, Layout, Part, below, claim, shapes
from mv2_jax.convert.tables import clip


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    """The text encoders of a source."""
    for prefix, table in clip.find_text(source):
        names = below(source, prefix)
        if "token_embedding.weight" in names:
            layout, cfg = "OpenCLIP's", structure.open_clip_text(shapes(source, names))
        else:
            inner = "text_model." if any(n.startswith("text_model.") for n in names) else ""
            layout = "transformers'"
            cfg = structure.text(shapes(source, names), settings, inner)
        title = f"a CLIP text encoder (width {cfg.width}, {cfg.layers} layers)"
        yield Part("text_encoder", title, layout, claim(source, names, table), table, cfg)


def layout(bundle: Any, cfg: TextConfig) -> Layout:
    """transformers' folder."""
    table = clip.transformers_text("text_model.")
    return published.transformers(table, published.text(cfg), "clip_text_model")


KIND = Kind(
    title="a text encoder",
    serves="--text-encoder",
    find=find,
    config=TextConfig,
    target=targets.text,
    layout=layout,
    compare="mv2_jax.convert.compare_networks:text",
)
