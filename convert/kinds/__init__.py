"""Every kind of network that `mv2 convert` knows, each in a file of its own; see `convert.kind`.

A source is searched for them in this order, and LoRAs, which are no networks, and Control-LoRAs
first of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mv2_jax import lookup
from mv2_jax.convert.kind import Kind

_HERE = "mv2_jax.convert.kinds"
KINDS = {
    "unet": f"{_HERE}.unet:KIND",
    "controlnet": f"{_HERE}.controlnet:KIND",
    "control_lora": f"{_HERE}.control_lora:KIND",
    "sparse_control": f"{_HERE}.sparse_control:KIND",
    "vae": f"{_HERE}.vae:KIND",
    "text_encoder": f"{_HERE}.clip:TEXT",
    "image_encoder": f"{_HERE}.clip:VISION",
    "motion": f"{_HERE}.motion:KIND",
    "image_adapter": f"{_HERE}.image_adapter:KIND",
    "interpolator": f"{_HERE}.interpolator:KIND",
    "embedding": f"{_HERE}.embedding:KIND",
    "lora": f"{_HERE}.lora:LORA",
    "motion_lora": f"{_HERE}.lora:MOTION_LORA",
}


def get(name: str) -> Kind:
    """The kind of this name. Raises InputError where there is none; the nearest is named."""
    return lookup.find(name, KINDS, "kind of network", fits=Kind)


def every() -> Iterator[tuple[str, Kind]]:
    """(name, kind) of all."""
    for name in KINDS:
        yield name, get(name)


@contextmanager
def beside(names: Iterable[str]) -> Iterator[None]:
    """While this lasts, kinds from outside the package, `module:NAME`, are searched for as well,
    first of all.

    Raises:
        InputError: there is no such kind.
    """
    own = {name: name for name in names if get(name)}
    before = dict(KINDS)
    try:
        KINDS.clear()
        KINDS.update({**own, **before})
        yield
    finally:
        KINDS.clear()
        KINDS.update(before)


def of(config: Any) -> Kind | None:
    """The kind whose networks have configs of this class, if any."""
    return next((kind for _, kind in every() if isinstance(config, kind.config)), None)
