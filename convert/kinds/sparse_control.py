"""SparseCtrl's encoder of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mv2_jax.config import SparseControlConfig
from mv2_jax.convert import published, structure, targets
from mv2_jax.convert.kind import Kind, Layout, Part, claim, shapes
from mv2_jax.convert.kinds.bodies import bodies, is_sparse_control
from mv2_jax.convert.tables import sparse_control


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    """The SparseCtrl encoders of a source."""
    for names, layout in bodies(source):
        if is_sparse_control(names):
            cfg = structure.sparse_control(shapes(source, names), settings)
            table = sparse_control.find(names, cfg)
            tensors = claim(source, names, table)
            title = "a SparseCtrl encoder of pictures"
            yield Part("sparse_control", title, layout, tensors, table, cfg)


def layout(bundle: Any, cfg: SparseControlConfig) -> Layout:
    """diffusers' folder."""
    return published.diffusers(sparse_control.diffusers(cfg), published.sparse_control(cfg))


KIND = Kind(
    title="a SparseCtrl encoder",
    serves="--controlnet",
    find=find,
    config=SparseControlConfig,
    target=targets.sparse_control,
    layout=layout,
    compare="mv2_jax.convert.compare_networks:sparse",
)
