"""Networks that make frames between frames: those of `stages.vfi_table`, RIFE's and others'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mv2_jax.convert import vfi
from mv2_jax.convert.engine import ConversionError
from mv2_jax.convert.kind import FileNetwork, Kind
from mv2_jax.stages import vfi_table


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[FileNetwork]:
    """The interpolator of a source, which holds nothing else."""
    try:
        table, cfg = vfi.recognise(source)
    except ConversionError:
        return
    title = f"an interpolator ({type(cfg).__name__.removesuffix('Config')})"
    yield FileNetwork("interpolator", title, "its publisher's", source, table, cfg)


def component(cfg: Any) -> str:
    """Under what name a cascade folder holds such a network."""
    return vfi_table.of(cfg).component or "rife"


KIND = Kind(
    title="an interpolator",
    serves="--vfi, or alone with -o FILE.safetensors, which mv2 interpolate --vfi takes",
    find=find,
    config=tuple(each.config for each in vfi_table.TABLE.values() if each.recognise),
    target=vfi.target,
)
